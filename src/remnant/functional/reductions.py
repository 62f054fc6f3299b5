"""From the rows of a metric to its number with an interval. No torch.

All have one form: the groups of values [columns, items], the draws, and back an interval, a number
that has none, or None where there is nothing to make one of.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from remnant.functional.stats import (
    Interval,
    auc,
    bootstrap,
    bootstrap_auc,
    bootstrap_mean,
    privleak,
    true_positives,
)

Array = NDArray[np.float64]
Groups = Sequence[Array]
# The share of never-read texts that may be taken for read ones (Carlini et al. 2022).
FALSE_POSITIVES = 0.01


class Draws(NamedTuple):
    """How often the items are drawn anew, and the seed of the draws."""

    resamples: int
    seed: int


Reduction = Callable[[Groups, Draws], Interval | float | None]


def drawn(groups: Groups, draws: Draws, of: Callable[..., float]) -> Interval | None:
    """A function of the groups with its interval, each group resampled apart; None where one is
    empty.
    """
    sizes = tuple(group.shape[-1] for group in groups)
    return bootstrap(
        lambda index: of(*(g[:, i] for g, i in zip(groups, index, strict=True))), sizes, *draws
    )


def mean(groups: Groups, draws: Draws) -> Interval | None:
    """The mean of one column.

    >>> mean([np.array([[0.0, 1.0]])], Draws(100, 0)).value
    0.5
    """
    ((column,),) = groups
    return bootstrap_mean(column, *draws)


def area(groups: Groups, draws: Draws) -> Interval | None:
    """AUC of forget values against holdout values, 0 to 1, near 0 where forget text is memorized.

    >>> area([np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]])], Draws(100, 0)).value
    0.0
    """
    (forget,), (holdout,) = groups
    return bootstrap_auc(forget, holdout, *draws)


def caught(groups: Groups, draws: Draws) -> Interval | None:
    """True positives of an attack at one percent of false ones, 0 to 1, high where text is known.

    >>> caught([np.array([[1.0, 9.0]]), np.array([[3.0, 4.0]])], Draws(100, 0)).value
    0.5
    """
    return drawn(groups, draws, lambda f, h: true_positives(f[0], h[0], FALSE_POSITIVES))


def relative_area(groups: Groups, draws: Draws) -> Interval | None:
    """PrivLeak: how far an AUC lies from that of a never-read model, as a share of the latter.

    0 is ideal. The never-read model's is taken as given, without its own uncertainty; None where it
    has none or it is 0.

    >>> sides = [np.array([[1.0, 4.0]]), np.array([[2.0, 3.0]])]
    >>> relative_area([*sides, *sides], Draws(100, 0)).value
    0.0
    """
    (forget,), (holdout,), *others = groups
    unread = auc(*(o[0] for o in others)) if others and all(o.size for o in others) else 0.0
    return bootstrap_auc(forget, holdout, *draws, lambda a: privleak(a, unread)) if unread else None
