"""Curves over steps: their height and where they reach a level, by sums over a fine grid."""

import math

import numpy as np
import pytest

from remnant.functional.curves import height, steps_until

GRIDS = [[0, 4, 16, 64], [1, 2], [0, 1, 1000]]


def between(steps: list[int], values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Places on the axis log(1 + steps), and a curve at each of them."""
    axis = np.log1p(steps)
    places = np.linspace(axis[0], axis[-1], count)
    return places, np.interp(places, axis, values)


@pytest.mark.parametrize("steps", GRIDS)
def test_the_height_is_the_mean_over_a_fine_grid(steps: list[int]) -> None:
    values = np.random.default_rng(0).uniform(size=(len(steps), 5))
    slow = [between(steps, column, 200_001)[1].mean() for column in values.T]
    assert height(steps, values) == pytest.approx(slow, abs=1e-4)


def test_the_height_of_a_constant_is_the_constant_and_differences_are_kept() -> None:
    steps = GRIDS[0]
    own, other = np.random.default_rng(1).uniform(size=(2, 4, 3))
    assert height(steps, np.full((4, 2), 0.7)) == pytest.approx([0.7, 0.7])
    assert height(steps, own - other) == pytest.approx(height(steps, own) - height(steps, other))


@pytest.mark.parametrize("steps", GRIDS)
@pytest.mark.parametrize("level", [0.2, 0.5, 0.9])
def test_a_level_is_reached_where_a_fine_grid_first_is_there(
    steps: list[int], level: float
) -> None:
    for seed in range(8):
        values = np.random.default_rng(seed).uniform(size=len(steps))
        places, curve = between(steps, values, 200_001)
        there = np.flatnonzero(curve >= level)
        found = steps_until(steps, list(values), level)
        if len(there):
            assert math.log1p(found) == pytest.approx(places[there[0]], abs=1e-4)
        else:
            assert found == math.inf


def test_what_is_no_curve_is_refused() -> None:
    with pytest.raises(ValueError, match="ascend"):
        height([0, 4, 4], np.zeros((3, 1)))
    with pytest.raises(ValueError, match="ascend"):
        steps_until([5], [1.0], 0.5)
    with pytest.raises(ValueError, match="3 points at 2 steps"):
        height([0, 4], np.zeros((3, 1)))
    with pytest.raises(ValueError, match="1 points at 2 steps"):
        steps_until([0, 4], [1.0], 0.5)
