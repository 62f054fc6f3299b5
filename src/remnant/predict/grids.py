"""The grids that a prediction knows, each as a pass over two equal blocks of float32 weights."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from remnant.catalog import quantizer_params
from remnant.errors import UserError, unknown
from remnant.predict import kernels

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
# The grids of `remnant predict` where the user names none.
DEFAULT = ("int8", "int4-tensor", "int4", "int4-g128", "int3-g128", "nf4", "fp4", "fp8", "q8_0", "q4_0")


class Grid(NamedTuple):
    """One grid: ``block`` entries share a scale (0: a row; -1: the whole weight)."""

    name: str
    family: str
    block: int
    bits: int = 4
    scheme: str = "sym"

    def length(self, columns: int, size: int) -> int:
        """Entries of a run of so many that share a scale."""
        return {0: columns, -1: size}.get(self.block, self.block)


def grid(name: str) -> Grid:
    """The grid of a quantizer's short name.

    Raises:
        UserError: no such name, or a quantizer whose codes depend on more than the weight itself.
    """
    found = quantizer_params(name)
    if found is None:
        raise unknown("quantizer", name, DEFAULT)
    family, params = found
    if family not in _PASSES:
        raise UserError(f"What {name} keeps is known only when its library has quantized both models.", "Quantize them and judge them.")
    if family == "rtn":
        size = params.get("group_size") if params["granularity"] == "group" else {"channel": 0, "tensor": -1}[str(params["granularity"])]
        return Grid(name, family, int(str(size)), int(str(params["bits"])), str(params["scheme"]))
    return Grid(name, family, int(str(params.get("block", 0))))


def extremes(weights: Floats) -> tuple[np.float32, np.float32]:
    """The smallest and the largest of a flat run of weights."""
    found = np.empty((2, 1), np.float32)
    kernels.extremes(weights, found[0], found[1])
    return found[0, 0], found[1, 0]


def look(t: Floats, u: Floats, block: int, update: Doubles) -> Floats:
    """What rounding needs to know of every block, [5, blocks]: smallest and largest of the target, of the unlearned model, sum of |d|.

    Args:
        t: flat weights of the target, a whole number of blocks.
        u: the unlearned ones.
        block: entries that share a scale.
        update: <d, d>, the sum of |d| and the changed weights are added to three float64.
    """
    known = np.empty((5, t.size // block), np.float32)
    kernels.extremes(t, known[0], known[1])
    kernels.extremes(u, known[2], known[3])
    kernels.update(t, u, known[4], update)
    return known


def joined(known: Floats, times: int) -> Floats:
    """The same of blocks so many times as long."""
    wide = np.empty((5, known.shape[1] // times), np.float32)
    kernels.join(known, wide)
    return wide


def add(grid: Grid, t: Floats, u: Floats, known: Floats, out: Doubles) -> None:
    """Add <r, r>, <r, d>, equal codes, erased weights and the sum of |d| / scale to five float64.

    Args:
        grid: which one.
        t: flat weights of the target, a whole number of blocks.
        u: the unlearned ones.
        known: of ``look``, of the blocks that share a scale.
        out: is added to.
    """
    low, high, divisor = _codes(grid)
    pass_over = kernels.asymmetric if grid.scheme == "asym" else _PASSES[grid.family]
    pass_over(t, u, known, np.float32(low), np.float32(high), np.float32(divisor), out)


_PASSES: dict[str, Callable[..., None]] = {
    "rtn": kernels.integers,
    "q8_0": kernels.q8_0,
    "q4_0": kernels.q4_0,
    "nf4": kernels.nf4,
    "fp4": kernels.fp4,
    "fp8": kernels.fp8,
}


def _codes(grid: Grid) -> tuple[float, float, float]:
    """Lowest and highest code, and what the largest weight is divided by for the step."""
    if grid.family == "q8_0":
        return -127, 127, 127
    if grid.family == "q4_0":
        return 0, 15, -8
    if grid.family != "rtn":
        return -1, 1, 448 if grid.family == "fp8" else 1
    top = 2 ** (grid.bits - 1) - 1
    low = -top if grid.scheme == "sym" else -top - 1
    return low, top, {"sym": top, "half-step": (2**grid.bits - 1) / 2, "paper": top + 1, "asym": top - low}[grid.scheme]


def least_common_block(grids: list[Grid]) -> int:
    """A length that every fixed block divides."""
    return math.lcm(*(g.block for g in grids if g.block > 0), 1)
