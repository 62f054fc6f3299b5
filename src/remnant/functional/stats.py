"""Numbers from rows: AUC, PrivLeak, means and their paired-bootstrap intervals. No torch."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A value with the bounds of its bootstrap interval, 95 % where nothing else is said."""

    value: float
    low: float
    high: float


def auc(forget: Array, holdout: Array) -> float:
    """P(holdout value < forget value) + half the ties, 0 to 1.

    Near 0 where forget text is memorized, 0.5 where it is not.

    Both arrays hold Min-k% values. Raises ValueError if one is empty.

    Source: MUSE (arXiv 2407.06460), as in its code. Differs from open-unlearning, which stores 1 -
    AUC.
    """
    if not len(forget) or not len(holdout):
        raise ValueError("AUC needs values on both sides")
    if np.isnan(forget).any() or np.isnan(holdout).any():
        return math.nan
    # scipy's rankdata says the same; importing it takes a second, and whole counts and halves are
    # exact in either way.
    ordered = np.sort(holdout)
    below = np.searchsorted(ordered, forget, "left") + np.searchsorted(ordered, forget, "right")
    return float(below.sum() / 2 / (len(forget) * len(holdout)))


def privleak(auc_value: float, auc_retrain: float) -> float:
    """(AUC - AUC of the retrain model) / AUC of the retrain model.

    0 is ideal, below 0 is under-forgotten. Not x100.

    Source: MUSE (arXiv 2407.06460), eq. 3. Raises ValueError for a reference of 0.
    """
    if auc_retrain <= 0:
        raise ValueError("the retrain model's AUC must be above 0")
    return (auc_value - auc_retrain) / auc_retrain


def resampled(sizes: tuple[int, ...], resamples: int, seed: int) -> list[NDArray[np.int64]]:
    """For each size, [resamples, size] indices drawn with replacement.

    Equal arguments give equal draws, so pairs stay pairs.
    """
    rng = np.random.default_rng(seed)
    return [rng.integers(0, size, (resamples, size)) for size in sizes]


def interval(value: float, draws: Array, level: float = 0.95) -> Interval | None:
    """The middle ``level`` of the finite draws.

    None where the value or a tenth of the draws is not finite.
    """
    finite = draws[np.isfinite(draws)]
    if not np.isfinite(value) or len(finite) < 0.9 * len(draws):
        return None
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def pooled(intervals: Sequence[Sequence[float]]) -> Interval:
    """The mean of some values.

    Its 95 % interval from their own (value, low, high), taken as independent and normal.
    """
    middle = sum(v for v, _, _ in intervals) / len(intervals)
    spread = math.sqrt(sum(((high - low) / 3.92) ** 2 for _, low, high in intervals)) / len(
        intervals
    )
    return Interval(middle, middle - 1.96 * spread, middle + 1.96 * spread)


def true_positives(forget: Array, holdout: Array, rate: float) -> float:
    """Share of forget values below a threshold that at most ``rate`` of the holdout values are
    below, 0 to 1; high where it is known.

    Source: Carlini et al. 2022 (arXiv 2112.03570), section 4 ("TPR at low FPR"). Raises ValueError
    if a side is empty.
    """
    if not len(forget) or not len(holdout):
        raise ValueError("true positives need values on both sides")
    threshold = np.sort(holdout)[min(len(holdout) - 1, int(rate * len(holdout)))]
    return float((forget < threshold).mean())


def bootstrap(
    of: Callable[[list[NDArray[np.int64]]], float],
    sizes: tuple[int, ...],
    resamples: int,
    seed: int,
) -> Interval | None:
    """A number from several groups of items, each resampled apart.

    Args:
        of: called with one array of indices per group.
        sizes: how many items the groups have.
        resamples: how often.
        seed: of the draws.

    Returns:
        None where a group is empty.
    """
    if not all(sizes):
        return None
    draws = resampled(sizes, resamples, seed)
    values = np.array([of(list(drawn)) for drawn in zip(*draws, strict=True)])
    return interval(of([np.arange(size) for size in sizes]), values)


def bootstrap_mean(
    values: Array, resamples: int, seed: int, level: float = 0.95
) -> Interval | None:
    """Mean of some rows with its interval; None without rows."""
    if not len(values):
        return None
    (index,) = resampled((len(values),), resamples, seed)
    return interval(float(values.mean()), values[index].mean(-1), level)


def bootstrap_auc(
    forget: Array,
    holdout: Array,
    resamples: int,
    seed: int,
    of: Callable[[float], float] = lambda a: a,
) -> Interval | None:
    """AUC (or a function of it) with its interval, forget and holdout resampled apart.

    None where a side is empty.
    """
    if not len(forget) or not len(holdout):
        return None
    drawn = auc_draws([(forget, holdout)], resamples, seed)[0]
    return interval(of(auc(forget, holdout)), np.array([of(float(d)) for d in drawn[1:]]))


def auc_draws(pairs: Sequence[tuple[Array, Array]], resamples: int, seed: int) -> Array:
    """[models, 1 + resamples] AUCs of several models on the same texts: the AUC itself, then
    resampled for all models together.

    Args:
        pairs: per model the values of forget texts and of holdout texts, in one order for all
            models; no side empty.
        resamples: how often forget and holdout texts are drawn anew.
        seed: of the draws.
    """
    forget, holdout = pairs[0]
    chosen = resampled((len(forget), len(holdout)), resamples, seed)
    # How often each text is drawn: an AUC is a bilinear form in these counts.
    counts = [
        np.apply_along_axis(np.bincount, 1, c, minlength=n)
        for c, n in zip(chosen, map(len, pairs[0]), strict=True)
    ]
    found = []
    for f, h in pairs:
        wins = (h[None, :] < f[:, None]) + 0.5 * (h[None, :] == f[:, None])
        draws = ((counts[0] @ wins) * counts[1]).sum(-1) / (len(f) * len(h))
        found.append(np.concatenate([[auc(f, h)], draws]))
    return np.array(found)


def bootstrap_ratio(
    parts: tuple[Array, ...], of: Callable[..., Array], resamples: int, seed: int
) -> Interval | None:
    """A function of the means of several aligned columns (same items, same order), all resampled
    together.

    Source: the paired bootstrap (Efron and Tibshirani 1993, chapter 6).
    """
    if not len(parts[0]):
        return None
    draws = ratio_draws(parts, of, resamples, seed)
    return interval(float(draws[0]), draws[1:])


def ratio_draws(
    parts: tuple[Array, ...], of: Callable[..., Array], resamples: int, seed: int
) -> Array:
    """[1 + resamples] what ``bootstrap_ratio`` is made of: the number itself, then resampled.

    Columns of equally many items are resampled alike under one seed, so that the draws of several
    metrics of the same items belong together.
    """
    (index,) = resampled((len(parts[0]),), resamples, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = of(*(np.array([p.mean()]) for p in parts))
        draws = of(*(p[index].mean(-1) for p in parts))
    return np.concatenate([value, draws])


def level_of_part(part: int, whole: int, level: float = 0.95) -> float:
    """The level of intervals that hold together in one part of all tests, so that those of all
    parts, whatever their order and however they hang together, hold with ``level``.

    The rate of errors is shared out by the number of tests (Bonferroni's inequality over parts). So
    one may look at a part before the next one is made, and stop there, and errs no more often.

    Args:
        part: tests of this part.
        whole: of all parts together, made or not.
        level: of all, 0 to 1.

    >>> round(level_of_part(5, 20), 4), level_of_part(20, 20)
    (0.9875, 0.95)
    """
    return 1 - (1 - level) * part / max(whole, 1)


def simultaneous(draws: Array, level: float = 0.95) -> list[Interval]:
    """Intervals of several numbers that all hold together with ``level``.

    The maximum is bootstrapped: how far the farthest of all numbers lies from its own value, in
    standard deviations of that number. Each interval reaches so far to both sides. Numbers that
    move together cost nothing, independent ones as much as Bonferroni's correction. Ends of
    quantiles, which that one takes, lie far too near for skewed scores (`make verdict-check`).

    Args:
        draws: [numbers, 1 + draws]: each number, then resampled, the items drawn once for all
            numbers. Draws that are not finite are left out.
        level: of all together, 0 to 1.

    Source: Romano and Wolf 2005 (Econometrica 73, 1237), section 4: the studentized maximum.
    Differs from the source in that the deviation is that of the draws.

    >>> rows = np.random.default_rng(0).normal(size=(1, 4001)) * [[1.0], [2.0], [3.0]]
    >>> [round((i.high - i.value) / scale, 1) for i, scale in zip(simultaneous(rows), (1, 2, 3))]
    [2.0, 2.0, 2.0]
    """
    if not len(draws):
        return []
    values = draws[:, :1]
    spread = np.nanstd(np.where(np.isfinite(draws), draws, np.nan)[:, 1:], axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        away = np.nan_to_num(np.abs(draws[:, 1:] - values) / spread, nan=0.0, posinf=0.0)
    reach = np.quantile(away.max(axis=0), level) * spread[:, 0]
    return [
        Interval(float(v), float(v - r), float(v + r))
        for v, r in zip(values[:, 0], reach, strict=True)
    ]
