"""The grids that a prediction knows, and the table by which the compiled passes know them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from remnant.errors import UserError, unknown
from remnant.forecast.kernels import KINDS
from remnant.formats.base import Grid
from remnant.formats.table import by_name

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


def grid(name: str) -> Grid:
    """The grid of a quantizer's short name.

    Raises:
        UserError: no such name, or a quantizer whose codes depend on more than the weight itself.
    """
    found = by_name(name)
    if found is None:
        raise unknown("quantizer", name, DEFAULT)
    if found.format.grid is None:
        raise UserError(
            f"What {name} keeps is known only when its library has quantized both models.",
            "Quantize them and audit them.",
        )
    return found.format.grid(found.params)._replace(name=name)


class Table(NamedTuple):
    """Some grids as the compiled passes read them, for weights with rows of one length.

    ``base`` divides every block and every row; ``kinds``, ``blocks`` and ``bounds`` as in
    ``kernels.scan``.
    """

    base: int
    kinds: NDArray[np.int64]
    blocks: NDArray[np.int64]
    bounds: Floats


def table(grids: Sequence[Grid], columns: int, whole: Floats) -> Table:
    """The table of some grids for weights with rows of ``columns`` entries.

    ``whole`` [4, 1]: smallest and largest of the whole weight, in the target and in the unlearned
    model.
    """
    blocks = [{0: columns, -1: 0}.get(g.block, g.block) for g in grids]
    largest = [float(np.abs(ends).max()) for ends in (whole[:2], whole[2:])]
    return Table(
        math.gcd(columns, *blocks),
        np.array([KINDS.index(g.kind) for g in grids], np.int64),
        np.array(blocks, np.int64),
        np.array([_bounds(g, *largest) for g in grids], np.float32).reshape(-1, 4),
    )


def _bounds(grid: Grid, target: float, unlearned: float) -> tuple[float, float, float, float]:
    """Lowest and highest code, and what the steps of both models are made with."""
    by = grid.by_weight
    divisors = (by(target), by(unlearned)) if by else (grid.divisor, grid.divisor)
    return (grid.low, grid.high, *divisors)


def least_common_block(grids: list[Grid]) -> int:
    """A length that every fixed block divides."""
    return math.lcm(*(g.block for g in grids if g.block > 0), 1)
