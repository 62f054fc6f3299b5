"""Whether intervals that are said to hold together do: data sets drawn from a population whose
numbers are known, as skewed and as alike from test to test as those of the lab.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm

from remnant.functional.stats import auc, auc_draws, interval, ratio_draws, simultaneous

Array = NDArray[np.float64]
TESTS, ITEMS, MEMBERS, OTHERS = 11, 60, 120, 240
POPULATION, RESAMPLES = 200_000, 1000
# How much of a score is the item's own in all tests and models, and in one test for all models.
OF_ITEM, OF_TEST = 0.36, 0.16
# Scores of target, judged and never-read model: share of whole answers, of none, and how the rest
# is spread (a Beta distribution). Overlaps of words are so: ones and zeros, and small numbers.
SCORES = ((0.8, 0.02, 4, 2), (0.02, 0.5, 1, 5), (0.01, 0.6, 1, 5))
# How far forget text lies below unread text, in deviations of a text's own score.
BELOW = (3.0, 0.2, 0.0)


class Held(NamedTuple):
    """Shares of data sets in which all intervals held their numbers: simultaneous ones, and those
    of Bonferroni with ends at quantiles, as they were before; and of single intervals of 95 %.
    """

    together: float
    bonferroni: float
    single: float
    sets: int


def simulated(sets: int, rng: np.random.Generator) -> Held:
    """Draw data sets, make the intervals of every family of tests, and count where they hold."""
    scores, right = _population(rng)
    forget, holdout = _membership(POPULATION // 10, rng), _membership(POPULATION // 10, rng, 0.0)
    areas = [auc(f, h) for f, h in zip(forget, holdout, strict=True)]
    truth = np.append(right, (areas[2] - areas[1]) / (areas[2] - areas[0]))
    held = [_held(scores, (forget, holdout), truth, rng) for _ in range(sets)]
    together, bonferroni, single = np.mean(held, axis=0)
    return Held(float(together), float(bonferroni), float(single), sets)


def said(held: Held) -> str:
    """The shares in a sentence."""
    return (
        f"all {TESTS + 1} tests held in {held.together:.1%} of {held.sets} simulated data sets "
        f"(Bonferroni's by quantiles in {held.bonferroni:.1%}; one by itself in {held.single:.1%})"
    )


def _held(
    scores: Array, sides: tuple[Array, Array], truth: Array, rng: np.random.Generator
) -> tuple[float, float, float]:
    chosen = rng.integers(0, scores.shape[-1], ITEMS)
    seed = int(rng.integers(2**31))
    rows = [ratio_draws(tuple(s[:, chosen]), _left, RESAMPLES, seed) for s in scores]
    texts = [
        side[:, rng.integers(0, side.shape[-1], n)]
        for side, n in zip(sides, (MEMBERS, OTHERS), strict=True)
    ]
    areas = auc_draws(list(zip(*texts, strict=True)), RESAMPLES, seed)
    draws = np.array([*rows, (areas[2] - areas[1]) / (areas[2] - areas[0])])
    together = [i.low <= t <= i.high for i, t in zip(simultaneous(draws), truth, strict=True)]
    alone = _by_quantiles(draws, truth, 0.95)
    return all(together), all(_by_quantiles(draws, truth, 1 - 0.05 / len(draws))), np.mean(alone)


def _by_quantiles(draws: Array, truth: Array, level: float) -> list[bool]:
    found = [interval(d[0], d[1:], level) for d in draws]
    return [bool(i and i.low <= t <= i.high) for i, t in zip(found, truth, strict=True)]


def _left(target: Array, own: Array, unread: Array) -> Array:
    return (own - unread) / (target - unread)


def _population(rng: np.random.Generator) -> tuple[Array, Array]:
    """Scores [tests, models, items], and the share that is left by each test."""
    item = rng.normal(size=POPULATION)
    found = np.empty((TESTS, len(SCORES), POPULATION))
    for test in found:
        own = np.sqrt(OF_ITEM) * item + np.sqrt(OF_TEST) * rng.normal(size=POPULATION)
        for model, (whole, none, a, b) in zip(test, SCORES, strict=True):
            rest = np.sqrt(1 - OF_ITEM - OF_TEST) * rng.normal(size=POPULATION)
            place = norm.cdf(own + rest)
            part = beta.ppf(np.clip((place - none) / (1 - whole - none), 0, 1), a, b)
            model[:] = np.where(place > 1 - whole, 1.0, np.where(place < none, 0.0, part))
    return found, _left(*found.mean(-1).T)


def _membership(count: int, rng: np.random.Generator, known: float = 1.0) -> Array:
    """How surprising texts are to the models [models, texts]: low where they are known."""
    text = rng.gamma(2.0, size=count)
    return np.array([text + 0.5 * rng.normal(size=count) - known * below for below in BELOW])
