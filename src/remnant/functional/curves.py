"""Curves over steps of training: how high they lie, and where they reach a level. No torch.

A step early on tells more than one later: steps are counted on the axis log(1 + steps), on which a
curve at 0, 4, 16 and 64 steps has points at nearly equal distances.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def height(steps: Sequence[int], values: Array) -> Array:
    """[items] mean height of curves [points, items] over log(1 + steps): the area under each, over
    the length of the axis. In the unit of the values; linear in them, so that differences and means
    of heights are heights of differences and means.

    Raises ValueError where the steps do not ascend from at least 0, are fewer than two, or are not
    as many as the points.

    Source: own, by trapezoids; area under relearning curves as in arXiv 2410.08827, section 4.
    Differs from the source in the axis, which is linear there.

    >>> height([0, 1, 3], np.array([[0.0], [1.0], [1.0]])).tolist()
    [0.75]
    """
    places = _axis(steps)
    if len(values) != len(places):
        raise ValueError(f"{len(values)} points at {len(places)} steps")
    widths = np.diff(places)[:, None]
    found: Array = ((values[1:] + values[:-1]) / 2 * widths).sum(0) / (places[-1] - places[0])
    return found


def steps_until(steps: Sequence[int], values: Sequence[float], level: float) -> float:
    """Steps, at least the first of them, after which a curve first is at a level or above, read
    off the straight line between two points on the axis log(1 + steps); infinity where it never is.

    Raises ValueError as ``height``.

    Source: own.

    >>> steps_until([0, 3, 15], [0.0, 0.0, 1.0], 0.5)
    7.0
    """
    places = _axis(steps)
    if len(values) != len(places):
        raise ValueError(f"{len(values)} points at {len(places)} steps")
    reached = next((i for i, value in enumerate(values) if value >= level), None)
    if not reached:
        return math.inf if reached is None else float(steps[0])
    before, after = values[reached - 1], values[reached]
    share = (level - before) / (after - before)
    place = places[reached - 1] + share * (places[reached] - places[reached - 1])
    return round(math.expm1(place), 9)


def _axis(steps: Sequence[int]) -> Array:
    places = np.log1p(np.array(steps, dtype=np.float64))
    if len(steps) < 2 or steps[0] < 0 or not (np.diff(places) > 0).all():
        raise ValueError(f"steps of a curve ascend from 0 or more, and are at least two: {steps}")
    return places
