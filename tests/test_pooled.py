"""Means over seeds: the same as by hand, and honest about seeds that lack a number."""

from math import sqrt

import pytest

from remnant.records import Cell, Outcome, Recovery, Variant, Verdict
from remnant.report.pooled import over_seeds
from remnant.report.table import Group

SHARES = {1: (0.2, 0.1, 0.3), 2: (0.4, 0.3, 0.5), 3: (0.6, 0.5, 0.7)}


def cell(model: str, seed: int, value: float | None, half: float = 2.0) -> Cell:
    return Cell(
        model=model,
        steps=("int4",),
        metric="verbmem",
        seed=seed,
        value=value,
        low=None if value is None else value - half,
        high=None if value is None else value + half,
        n=10,
        status="no scorable item" if value is None else "ok",
        corpus="news",
    )


def group(seed: int, cells: list[Cell], outcome: Outcome) -> Group:
    about = dict(Variant(model="npo", steps=("int4",)))
    recovery = Recovery(
        **about,
        metric="verbmem",
        retained=SHARES[seed],
        retained_of_full_target=None,
        recovery=SHARES[seed] if seed < 3 else None,
        recovery_over_retrain=None,
        status="ok",
    )
    verdict = Verdict(**about, outcome=outcome, reason="so")
    return Group("news", seed, cells, [recovery], [verdict], None)


def three(last: float | None = 30.0, outcome: Outcome = "came back") -> Group:
    target = cell("target", 0, 90.0)
    values = {1: 10.0, 2: 20.0, 3: last}
    groups = [
        group(s, [target, cell("npo", s, v)], outcome if s == 3 else "came back")
        for s, v in values.items()
    ]
    (found,) = over_seeds(groups)
    return found


def test_the_mean_over_seeds_and_its_interval_are_those_by_hand() -> None:
    found = three().cell("npo", "int4", "verbmem")
    assert found is not None
    assert found.value == pytest.approx(20.0)
    # Three independent standard errors of 2 / 1.96, averaged.
    assert found.high == pytest.approx(20.0 + 2 / sqrt(3))
    assert (found.n, found.seed, found.status) == (30, None, "mean over 3 of 3 seeds")


def test_a_seed_without_a_number_is_left_out_and_said() -> None:
    found = three(None).cell("npo", "int4", "verbmem")
    assert found is not None
    assert found.value == pytest.approx(15.0)
    assert found.status == "mean over 2 of 3 seeds"


def test_one_target_of_several_groups_is_counted_once() -> None:
    assert three().cell("target", "int4", "verbmem") == cell("target", 0, 90.0)


def test_recoveries_are_pooled_over_the_seeds_that_have_them() -> None:
    (found,) = three().recoveries
    assert found.retained is not None
    assert found.retained[0] == pytest.approx(0.4)
    assert found.recovery is not None
    assert found.recovery[0] == pytest.approx(0.3)
    assert found.recovery_over_retrain is None


def test_a_verdict_stands_only_where_all_seeds_agree() -> None:
    assert [v.outcome for v in three().verdicts] == ["came back"]
    assert three(outcome="hidden").verdicts == []


def test_one_seed_is_not_pooled() -> None:
    assert over_seeds([group(1, [cell("npo", 1, 10.0)], "came back")]) == []
