"""Before anything is unlearned: how many of the weights that an optimiser can move in bfloat16 does
each grid round to zero? docs/why.md says why that decides.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from remnant.forecast.checkpoint import Checkpoint
from remnant.forecast.stream import SAMPLE, scan
from remnant.formats.base import Grid
from remnant.functional.survival import FEW, movable_below, survival_of_model

Floats = NDArray[np.float32]
# Where nine tenths of the movable weights lie in the zero bin, every run of docs/why.md lost its
# update.
MOST = 0.9
# One step of bfloat16 in the bits of float32, and a value that no grid tells from 0.
_STEP, _NEXT_TO_NOTHING = np.uint32(1 << 16), np.float32(1e-30)


class Zone(NamedTuple):
    """What a rate can reach in a model whose weights are kept in bfloat16.

    ``rate``: of AdamW. ``movable``: share of the weights that a step of that size moves, 0 to 1.
    ``in_zero_bin``: by grid, the share of these that it rounds to zero, 0 to 1; None where no
    weight can move. Near 1: what is unlearned at this rate is erased.
    """

    rate: float
    movable: float
    in_zero_bin: dict[str, float | None]

    @property
    def erasing(self) -> list[str]:
        """The grids that round nearly all of what can move to zero."""
        return [n for n, share in self.in_zero_bin.items() if share is not None and share > MOST]

    @property
    def verdict(self) -> str:
        """In words."""
        cure = "Weights kept in float32 and stochastic rounding do not have this fault (--weights)."
        lost = f"rounded away under {', '.join(self.erasing)}: expect the text back there"
        if self.movable < FEW:
            what = f"; what is, is {lost}" if self.erasing else ""
            return f"So few move that little may be forgotten at all{what}. {cure}"
        if self.erasing:
            return f"What is forgotten is {lost}. {cure}"
        return "No grid here rounds away most of what can move."


class Nudge(NamedTuple):
    """Moves every weight below ``edge`` a step of bfloat16 towards zero, and zero itself a hair
    away from it: what lay in a zero bin still lies there.
    """

    edge: float

    def entries(self, first: int, weight: Floats) -> Floats:
        """What is added to these weights.

        >>> Nudge(0.5).entries(0, np.array([1.0, 0.25], np.float32)).tolist()
        [0.0, -0.0009765625]
        """
        nearer = ((weight.view(np.uint32) & ~(_STEP - 1)) - _STEP).view(np.float32)
        moved = np.where(weight == 0, _NEXT_TO_NOTHING, nearer - weight)
        return np.where(np.abs(weight) < self.edge, moved, np.float32(0))


def zone(
    target: Checkpoint,
    rate: float,
    grids: Sequence[Grid],
    report: Callable[[int, int, str], None] = lambda done, total, note: None,
    *,
    keep: Sequence[str] = (),
    sample: int = SAMPLE,
) -> Zone:
    """What a learning rate of AdamW can reach, and what each grid will leave of it.

    Args:
        target: the model before unlearning; weights wider than bfloat16 are taken as they are.
        rate: of AdamW, above 0; its step is about the rate in every weight.
        grids: what to round to; one whose groups divide no row is left out.
        report: called with (entries done, entries in all, name).
        keep: a weight whose name contains one of these words is not rounded.
        sample: as of ``scan``.

    Raises:
        UserError: as ``scan``.
    """
    sums = scan(target, target.moved(Nudge(movable_below(rate))), grids, report, keep, sample)
    seen = [next(iter(by.values())) for by in sums.values() if by]
    changed, weights = sum(s.changed for s in seen), sum(s.weights for s in seen)
    shares = {}
    for g in grids:
        under = {name: by[g.name] for name, by in sums.items() if g.name in by}
        if under:
            shares[g.name] = survival_of_model(under).in_zero_bin
    return Zone(rate, changed / weights if weights else 0.0, shares)
