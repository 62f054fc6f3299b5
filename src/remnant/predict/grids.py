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
ONE = np.float32(1)
# The grids of `remnant predict` where the user names none.
DEFAULT = ("int8", "int4-tensor", "int4", "int4-g128", "int3-g128", "nf4", "fp4", "fp8", "q8_0", "q4_0")
_INTEGER_FAMILIES = ("rtn", "q8_0", "q4_0")


class Grid(NamedTuple):
    """One grid: ``block`` entries share a scale (0: a row; -1: the whole weight)."""

    name: str
    family: str
    block: int
    bits: int = 4
    scheme: str = "sym"

    def length(self, columns: int) -> int:
        """Entries that share a scale, for the per-tensor grid those of a row (its scale is the same in all of them)."""
        return self.block if self.block > 0 else columns


class Extremes(NamedTuple):
    """Smallest and largest weight of every block."""

    low: Floats
    high: Floats


def grid(name: str) -> Grid:
    """The grid of a quantizer's short name.

    Raises:
        UserError: no such name, or a quantizer whose codes depend on more than the weight itself.
    """
    found = quantizer_params(name)
    if found is None:
        raise unknown("quantizer", name, DEFAULT)
    family, params = found
    if family in ("gptq", "awq"):
        raise UserError(f"What {name} keeps depends on calibration text, not on the weights alone.", "Quantize both models and judge them.")
    if family == "rtn":
        size = params.get("group_size") if params["granularity"] == "group" else {"channel": 0, "tensor": -1}[str(params["granularity"])]
        return Grid(name, family, int(str(size)), int(str(params["bits"])), str(params["scheme"]))
    return Grid(name, family, int(str(params.get("block", 0))))


def extremes(weights: Floats, block: int) -> Extremes:
    """The extremes of every block of a flat run of weights."""
    found = Extremes(np.empty(weights.size // block, np.float32), np.empty(weights.size // block, np.float32))
    kernels.extremes(weights, block, found.low, found.high)
    return found


def add(grid: Grid, t: Floats, u: Floats, block: int, t_ends: Extremes, u_ends: Extremes, out: NDArray[np.float64]) -> None:
    """Add <r, r>, <r, d>, equal codes, erased weights and the sum of |d| / scale to five float64.

    Args:
        grid: which one.
        t: flat weights of the target, a whole number of blocks.
        u: the unlearned ones.
        block: entries with one scale.
        t_ends: smallest and largest weight of the target's blocks.
        u_ends: of the unlearned model's.
        out: is added to.
    """
    if grid.family in _INTEGER_FAMILIES:
        t_step, t_scale, t_zero = _integer_scale(grid, t_ends)
        u_step, u_scale, u_zero = _integer_scale(grid, u_ends)
        low, high = _codes(grid)
        kernels.integers(t, u, block, t_step, t_scale, t_zero, u_step, u_scale, u_zero, np.float32(low), np.float32(high), out)
        return
    top = np.float32(448 if grid.family == "fp8" else 1)
    t_scale, u_scale = _safe(_largest(t_ends) / top), _safe(_largest(u_ends) / top)
    _PASSES[grid.family](t, u, block, t_scale, u_scale, out)


_PASSES: dict[str, Callable[..., None]] = {"nf4": kernels.nf4, "fp4": kernels.fp4, "fp8": kernels.fp8}


def _codes(grid: Grid) -> tuple[int, int]:
    if grid.family == "q8_0":
        return -127, 127
    if grid.family == "q4_0":
        return 0, 15
    top = 2 ** (grid.bits - 1) - 1
    return (-top if grid.scheme == "sym" else -top - 1), top


def _integer_scale(grid: Grid, ends: Extremes) -> tuple[Floats, Floats, Floats]:
    """Step (what weights are divided by), scale (what codes are multiplied with) and zero of every block."""
    none = np.zeros_like(ends.low)
    if grid.family == "q8_0":
        scale = _safe(_largest(ends) / np.float32(127))
        return scale, _as_half(scale), none
    if grid.family == "q4_0":
        signed = np.where(-ends.low >= ends.high, ends.low, ends.high) / np.float32(-8)
        scale = np.where(signed == 0, ONE, signed).astype(np.float32)
        return scale, _as_half(scale), none + np.float32(8)
    low, high = _codes(grid)
    if grid.scheme == "asym":
        smallest, largest = np.minimum(ends.low, np.float32(0)), np.maximum(ends.high, np.float32(0))
        scale = _safe(((largest - smallest) / np.float32(high - low)).astype(np.float32))
        return scale, scale, np.clip(np.float32(low) - np.rint(smallest / scale), low, high).astype(np.float32)
    divisor = {"sym": float(high), "half-step": (2**grid.bits - 1) / 2, "paper": float(-low)}[grid.scheme]
    scale = _safe(_largest(ends) / np.float32(divisor))
    return scale, scale, none


def _largest(ends: Extremes) -> Floats:
    return np.maximum(-ends.low, ends.high)


def _safe(scale: Floats) -> Floats:
    """A block of zeros has the scale one."""
    return np.where(scale > 0, scale, ONE).astype(np.float32)


def _as_half(scale: Floats) -> Floats:
    """A scale as it is stored in a GGUF file."""
    return scale.astype(np.float16).astype(np.float32)


def least_common_block(grids: list[Grid]) -> int:
    """A length that every fixed block divides."""
    return math.lcm(*(g.block for g in grids if g.block > 0), 1)
