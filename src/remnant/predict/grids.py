"""The grids that a prediction knows, and the table by which the compiled passes know them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from remnant.catalog import quantizer_params
from remnant.errors import UserError, unknown
from remnant.formats import fault_of
from remnant.predict.kernels import KINDS

Floats = NDArray[np.float32]
# The grids of `remnant predict` where the user names none.
DEFAULT = (
    "int8",
    "int4-tensor",
    "int4",
    "int4-g128",
    "int3-g128",
    "nf4",
    "fp4",
    "fp8",
    "q8_0",
    "q4_0",
)


class Grid(NamedTuple):
    """One grid: ``block`` entries share a scale (0: a row; -1: the whole weight)."""

    name: str
    family: str
    block: int
    bits: int = 4
    scheme: str = "sym"


def grid(name: str) -> Grid:
    """The grid of a quantizer's short name.

    Raises:
        UserError: no such name, or a quantizer whose codes depend on more than the weight itself.
    """
    found = quantizer_params(name)
    if found is None:
        raise unknown("quantizer", name, DEFAULT)
    family, params = found
    if fault := fault_of(family, params):
        raise UserError(f"The quantizer '{name}': {fault}")
    if family not in KINDS:
        raise UserError(
            f"What {name} keeps is known only when its library has quantized both models.",
            "Quantize them and judge them.",
        )
    if family == "rtn":
        size = (
            params.get("group_size")
            if params["granularity"] == "group"
            else {"channel": 0, "tensor": -1}[str(params["granularity"])]
        )
        return Grid(name, family, int(str(size)), int(str(params["bits"])), str(params["scheme"]))
    return Grid(name, family, int(str(params.get("block", 0))))


class Table(NamedTuple):
    """Some grids as the compiled passes read them, for weights with rows of one length.

    ``base`` divides every block and every row; ``kinds``, ``blocks`` and ``bounds`` as in
    ``kernels.survey``.
    """

    base: int
    kinds: NDArray[np.int64]
    blocks: NDArray[np.int64]
    bounds: Floats


def table(grids: Sequence[Grid], columns: int) -> Table:
    """The table of some grids; a row is ``columns`` weights long."""
    blocks = [{0: columns, -1: 0}.get(g.block, g.block) for g in grids]
    return Table(
        math.gcd(columns, *blocks),
        np.array(
            [KINDS.index("asym" if g.scheme == "asym" else g.family) for g in grids], np.int64
        ),
        np.array(blocks, np.int64),
        np.array([_bounds(g) for g in grids], np.float32).reshape(-1, 3),
    )


def _bounds(grid: Grid) -> tuple[float, float, float]:
    """Lowest and highest code, and what the largest weight is divided by for the step."""
    if grid.family == "q8_0":
        return -127, 127, 127
    if grid.family == "q4_0":
        return 0, 15, -8
    if grid.family != "rtn":
        return (-448, 448, 448) if grid.family == "fp8" else (-1, 1, 1)
    top = 2 ** (grid.bits - 1) - 1
    low = -top if grid.scheme == "sym" else -top - 1
    return (
        low,
        top,
        {"sym": top, "half-step": (2**grid.bits - 1) / 2, "paper": top + 1, "asym": top - low}[
            grid.scheme
        ],
    )


def least_common_block(grids: list[Grid]) -> int:
    """A length that every fixed block divides."""
    return math.lcm(*(g.block for g in grids if g.block > 0), 1)
