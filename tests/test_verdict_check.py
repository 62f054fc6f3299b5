"""The parts of `make verdict-check`: the rule of before, who must be called what, how errors are
counted; and that intervals which hold together do."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remnant.functional import stats
from remnant.metrics import Column
from remnant.records import Verdict
from remnant.stages.cells import Sheet

ROOT = Path(__file__).parent.parent
ITEMS = 40


@pytest.fixture(scope="module")
def check() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("verdict_check")
    sys.path.remove(str(ROOT / "benchmarks"))


def sheet(knows: float, useful: float = 0.9, seed: int = 0) -> Sheet:
    rng = np.random.default_rng(seed)

    def column(middle: float) -> dict[str, float]:
        return {str(i): float(middle + rng.normal(0, 0.02)) for i in range(ITEMS)}

    return Sheet(
        {
            Column("verbmem"): column(knows),
            Column("knowmem_forget"): column(knows),
            Column("knowmem_retain"): column(useful),
        },
        {},
    )


@pytest.mark.parametrize(
    ("own", "useful", "back", "full", "int4"),
    [
        (0.1, 0.9, 0.1, "stayed forgotten", "stayed forgotten"),
        (0.3, 0.9, 0.31, "stayed forgotten", "stayed forgotten"),
        (0.1, 0.9, 0.5, "stayed forgotten", "came back"),
        (0.6, 0.9, 0.6, "not forgotten", "not forgotten"),
        (0.1, 0.5, 0.1, "collapsed", "collapsed"),
    ],
)
def test_the_rule_of_before(
    check: Any, own: float, useful: float, back: float, full: str, int4: str
) -> None:
    sheets = {("target", f): sheet(0.9, seed=1) for f in ("full", "int4")}
    sheets |= {("retrain", f): sheet(0.1, seed=2) for f in ("full", "int4")}
    sheets |= {
        ("unlearned", "full"): sheet(own, useful, 3),
        ("unlearned", "int4"): sheet(back, useful, 4),
    }
    assert check.old_rule.judged(sheets, "full") == full
    assert check.old_rule.judged(sheets, "int4") == int4


def model(
    check: Any, truth: str, word: str, old: str = "unclear", relearned: float | None = None
) -> Any:
    planted = check.Planted("news", "m", truth, truth, lambda lab: lab)
    verdict = Verdict(model="unlearned", outcome=word, reason="so")  # type: ignore[arg-type]
    return check.Judged(planted, {"full": verdict}, {"full": old}, relearned)


def test_a_model_of_which_nobody_knows_counts_only_where_relearning_shows_it(check: Any) -> None:
    target = model(check, "knows", "known", relearned=0.9)
    target = target._replace(model=target.model._replace(kind="the target"))
    unread = [model(check, "never read", "gone", relearned=0.2 + 0.01 * i) for i in range(5)]
    knows = model(check, "asked", "hidden", relearned=0.5)
    chance = model(check, "asked", "gone", relearned=0.26)
    split = check.sides([target, *unread, knows, chance])
    assert split.gone == unread
    assert split.kept == [target, knows]
    assert split.unknown == [chance]


def test_a_pass_in_any_form_is_a_pass_and_any_other_word_an_alarm(check: Any) -> None:
    one = model(check, "knows", "gone", "stayed forgotten")
    assert (one.passes, one.alarms) == ((True, True), (False, False))
    verdicts = one.new | {"int4": Verdict(model="unlearned", outcome="known", reason="so")}
    both = one._replace(new=verdicts)
    assert (both.passes, both.alarms) == ((True, True), (True, False))


def test_rates_have_the_exact_interval(check: Any) -> None:
    # None of n: the upper end is the p with (1 - p)^n = 0.025.
    assert f"{100 * (1 - 0.025 ** (1 / 20)):.1f}%" in check.rate(0, 20)
    assert check.rate(0, 0) == "0 of 0"


def test_every_planted_model_has_a_name_of_its_own_and_there_are_enough(check: Any) -> None:
    models = [m for corpus in check.CORPORA for m in check.planted(corpus)]
    assert len({(m.corpus, m.name) for m in models}) == len(models)
    assert sum(m.truth == "never read" for m in models) >= 20
    assert sum(m.truth in ("knows", "destroyed") for m in models) >= 20


def test_simultaneous_intervals_reach_as_far_as_the_farthest_number_of_each_draw() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(3, 501)) * [[1.0], [5.0], [0.2]] + [[0.0], [3.0], [9.0]]
    worst = []
    for b in range(1, 501):
        far = [abs(row[b] - row[0]) / row[1:].std() for row in draws]
        worst.append(max(far))
    reach = np.quantile(worst, 0.95)
    for found, row in zip(stats.simultaneous(draws), draws, strict=True):
        assert found.value == row[0]
        assert found.high - found.value == pytest.approx(reach * row[1:].std())
        assert found.value - found.low == pytest.approx(reach * row[1:].std())


def test_numbers_that_move_together_or_not_at_all_cost_nothing() -> None:
    one = np.random.default_rng(0).normal(size=(1, 2001))
    alone = stats.simultaneous(one)[0]
    assert stats.simultaneous(np.vstack([one, 2 * one, 0 * one]))[0] == pytest.approx(alone)
    broken = np.where(np.arange(2001) % 50 == 7, np.nan, 3 * one)
    with_it = stats.simultaneous(np.vstack([one, broken]))
    assert with_it[0].high == pytest.approx(alone.high, rel=0.01)
    assert with_it[1].high - with_it[1].value == pytest.approx(3 * (alone.high - alone.value), 0.02)
    assert stats.simultaneous(np.empty((0, 9))) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_that_refuses_first_passed_the_old_rule_and_not_todays(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--work", str(tmp_path), "--only", "news refuses", "--draws", "2"]
    monkeypatch.setattr(sys, "argv", ["verdict_check", *given])
    assert check.main() == 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (last["models"], last["false_passes"], last["old_false_passes"]) == (1, 0, 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_simultaneous_intervals_hold_as_often_as_they_say(check: Any) -> None:
    held = check.coverage.simulated(1000, np.random.default_rng(0))
    assert 0.93 <= held.together <= 0.97
    assert held.bonferroni < held.together
