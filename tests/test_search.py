"""How far a model is pushed: up to the floor, back in between, and no longer than there is time."""

from pathlib import Path

import pytest

from remnant.errors import Diverged
from remnant.handles import Model
from remnant.records import Probed, UnlearnResult
from remnant.search import FEWEST, REACH, STEPS, Trial, best_of, searched, steps_within

FLOOR = 0.95
RIGHT = 0.8


def trial(rate: float, steps: int, forget: float, retain: float, end: float = 0.0) -> Trial:
    """A run whose kept checkpoint tells so much, and whose last step keeps ``end`` of retain."""
    chosen = Probed(step=steps, forget=forget, retain=retain)
    origin = Probed(step=0, forget=RIGHT, retain=RIGHT)
    last = chosen.model_copy(update={"retain": end or retain})
    result = UnlearnResult(
        steps=steps, stopped="", kept_step=steps, chosen=chosen, share_changed=1.0, ended="",
        rule="", probes=(origin, last),
    )  # fmt: skip
    return Trial(rate, steps, Model(Path("m"), result), result, float(steps), FLOOR)


def model_that_breaks_at(reach: float, rates: list[float]):  # type: ignore[no-untyped-def]
    """A model that forgets in proportion to how far it is pushed, and breaks beyond a reach."""

    def attempt(rate: float, steps: int) -> Trial:
        rates.append(rate)
        pushed = rate * steps / reach
        kept = RIGHT if pushed < 1 else 0.1
        return trial(rate, steps, RIGHT * max(0.05, 1 - pushed), kept)

    return attempt


@pytest.mark.parametrize("reach", [1e-4, 5e-4, 4e-3, 3e-2, 3e-1])
def test_the_best_trial_is_near_the_farthest_that_a_model_bears(reach: float) -> None:
    rates: list[float] = []
    found = searched(model_that_breaks_at(reach, rates), 1e9, 1.0)
    best = best_of(found)
    assert best.useful
    assert reach / 4 < best.reach < reach
    assert len(rates) == len(set(rates)) <= 8


def test_a_destroyed_model_is_never_the_best_of_several() -> None:
    gentle, broken = trial(1e-5, 100, 0.7, RIGHT), trial(1e-3, 100, 0.0, 0.1)
    assert best_of([gentle, broken]) is gentle
    assert best_of([broken]) is broken
    bent = trial(1e-4, 100, 0.1, 0.4)
    assert best_of([broken, bent]) is bent


def test_where_nothing_moved_the_next_trial_goes_ten_times_as_far() -> None:
    rates: list[float] = []
    searched(model_that_breaks_at(1e9, rates), 3.5 * STEPS, 1.0, STEPS)
    assert rates == [1e-5, 1e-4, 1e-3]


def test_the_time_bounds_number_and_length_of_trials() -> None:
    one = searched(model_that_breaks_at(1.0, []), 0.0, 1.0)
    assert [t.steps for t in one] == [FEWEST]
    assert one[0].reach == pytest.approx(REACH, rel=0.05)
    several = searched(model_that_breaks_at(1.0, []), 100.0, 1.0)
    assert sum(t.seconds for t in several) <= 100.0
    assert several[0].steps == 50
    assert steps_within(1e9, 1.0) == STEPS


def test_a_loss_that_is_not_finite_ends_the_search_with_what_there_is() -> None:
    def attempt(rate: float, steps: int) -> Trial:
        if rate > 1e-5:
            raise Diverged("not finite")
        return trial(rate, steps, RIGHT, RIGHT)

    assert [t.rate for t in searched(attempt, 1e9, 1.0, STEPS)] == [1e-5]
    with pytest.raises(Diverged):
        searched(lambda rate, steps: attempt(1.0, steps), 1e9, 1.0)
