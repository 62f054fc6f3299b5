"""Memory of freed tensors goes back to the system."""

import ctypes
from pathlib import Path

import pytest
import torch

from remnant.model.heap import give_back

# Numbers of a tensor of 2 MB, and how many of them.
SIZE, COUNT = 1 << 19, 64


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_holes_between_tensors_that_stay_are_given_back() -> None:
    # Behind a larger tensor glibc keeps those of this size on its heap.
    freed, stay = [torch.zeros(12 * SIZE)], []
    freed.clear()
    for _ in range(COUNT):
        freed.append(torch.ones(SIZE))
        stay.append(torch.ones(2048))
    freed.clear()
    before = resident()
    give_back()
    # What lies at the end of the heap glibc returns by itself.
    assert before - resident() > 0.3 * COUNT * 4 * SIZE
    assert all(bool((t == 1).all()) for t in stay)
