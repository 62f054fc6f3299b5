"""How fast this machine multiplies and copies, measured once a process; the one file that needs
torch.
"""

import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch

# A product of matrices as a small model has them, and a copy larger than the caches of processors.
SIDE, ROWS = 1024, 512
COPIED = 128 * 2**20
# The best of so many, since other work on the machine only slows down.
TRIES = 3


class Rates(NamedTuple):
    """``matmul``: operations a second in float32. ``half``: in bfloat16. ``copy``: bytes a second
    that are read and written, each counted.
    """

    matmul: float
    half: float
    copy: float


@cache
def rates() -> Rates:
    """Of this process's threads, on the processor."""
    source, target = (torch.zeros(COPIED // 4) for _ in range(2))
    copying = _seconds(lambda: target.copy_(source))
    return Rates(_matmul(torch.float32), _matmul(torch.bfloat16), 2 * COPIED / copying)


def _matmul(dtype: torch.dtype) -> float:
    a, b = torch.ones(ROWS, SIDE, dtype=dtype), torch.ones(SIDE, SIDE, dtype=dtype)
    return 2 * ROWS * SIDE * SIDE / _seconds(lambda: a @ b)


def _seconds(work: Callable[[], object]) -> float:
    """The shortest time of some tries, after one that warms up."""
    work()
    found = []
    for _ in range(TRIES):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)
