"""Audits that stop when their verdicts are decided: what may be said early, what never, and that
looks share the allowed error."""

import json
from collections.abc import Iterable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from remnant import api
from remnant.attacks import ATTACKS, LOOKS
from remnant.cli import main
from remnant.errors import UserError
from remnant.flow import plan as planning
from remnant.flow.audits import audit_node, is_settled, looks
from remnant.flow.node import Node
from remnant.flow.place import Outside
from remnant.flow.plan import plan
from remnant.flow.store import Store
from remnant.functional.stats import Interval, level_of_part, simultaneous
from remnant.metrics import MORE
from remnant.parsing import parse
from remnant.records import AuditSpec, Evidence, Rule, SweepSpec, Variant, Verdict
from remnant.stages import audit
from remnant.stages.cells import Sheet
from remnant.stages.evidence import NOT_YET, weigh
from remnant.stages.lineup import Lineup
from remnant.stages.verdict import decide
from tests.conftest import silent
from tests.test_attacks import R, T, attacked, measured
from tests.test_verdict import made, written

ALL = Rule(resamples=200, access="weights")
STOP = Rule(resamples=200, access="weights", stop=True)
QUIET = attacked(made(0.1, seed=3), 0.3, other=1)
ON_WEIGHTS = tuple(chain.from_iterable(LOOKS))


def judged(
    own: Sheet, not_yet: tuple[str, ...] = (), rule: Rule = STOP
) -> tuple[Verdict, list[Evidence]]:
    line = Lineup(T, own, R, T, own, R)
    evidence = weigh(line.form, Variant(model="m"), rule, line.full, not_yet)
    return decide(line, Variant(model="m"), [], evidence, rule), evidence


def test_looks_hold_every_test_on_weights_once_the_cheap_ones_first() -> None:
    assert tuple(ATTACKS) == ON_WEIGHTS
    for look in LOOKS:
        assert len({ATTACKS[name].kind for name in look}) == 1


def test_gone_needs_all_of_the_promised_tests() -> None:
    assert judged(QUIET)[0].outcome == "gone"
    assert judged(QUIET, rule=ALL)[0].outcome == "gone"
    for name in (look[0] for look in LOOKS):
        found, evidence = judged(QUIET, (name,))
        assert found.outcome == "not measured"
        assert found.reason in (
            f"{ATTACKS[name].kind}: {name} was not made yet",
            f"no test of {ATTACKS[name].kind} could be made: {NOT_YET}",
        )
        (own,) = [e for e in evidence if e.test == name]
        assert (own.says, own.said) == ("not measured", NOT_YET)
    optional = tuple(name for name, attack in ATTACKS.items() if attack.kind == MORE)
    assert judged(QUIET, optional)[0].outcome == "not measured"


def test_one_telling_test_is_enough_whatever_was_left_out() -> None:
    asked = attacked(made(0.1, seed=3, told=0.6), 0.3, other=1)
    assert judged(asked, ON_WEIGHTS)[0].outcome == "hidden"
    pruned = attacked(made(0.1, seed=3), 0.3, prune20=0.7)
    assert judged(pruned, ON_WEIGHTS)[0].outcome == "not measured"
    assert judged(pruned, tuple(chain.from_iterable(LOOKS[1:])))[0].outcome == "hidden"


@pytest.mark.parametrize("upto", range(len(LOOKS) + 1))
def test_what_told_at_one_look_tells_at_every_later_one(upto: int) -> None:
    """The intervals of a look do not change when later ones are taken."""
    pruned = attacked(made(0.1, seed=3, told=0.24), 0.3, prune20=0.45)
    left = tuple(chain.from_iterable(LOOKS[upto:]))
    before = {e.test: e for e in judged(pruned, left)[1] if e.test not in left}
    after = {e.test: e for e in judged(pruned)[1]}
    assert all(after[test] == one for test, one in before.items())


def test_intervals_of_a_look_are_wider_than_those_of_its_tests_alone() -> None:
    draws = np.random.default_rng(0).normal(size=(4, 2001))
    (alone, *_), (shared, *_) = simultaneous(draws), simultaneous(draws, level_of_part(4, 20))
    assert shared.low < alone.low < alone.value < alone.high < shared.high
    shares = [1 - level_of_part(part, 20) for part in (4, 5, 1, 10)]
    assert sum(shares) == pytest.approx(0.05)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    hiding = attacked(made(0.1, seed=3, told=0.6), 0.3, other=1)
    sheets = {"target": T, "retrain": R, "hiding": hiding, "quiet": QUIET}
    return {n: written(tmp_path / n, without_tests(s)) for n, s in sheets.items()}


def without_tests(sheet: Sheet) -> Sheet:
    """What is measured of a model: nothing behind a change of its weights."""
    asked = {c: v for c, v in sheet.values.items() if not next(iter(v)).startswith("forget-")}
    return sheet._replace(values=asked)


def found_by(folders: dict[str, Path], out: Path, names: tuple[str, ...]) -> tuple[Node, Path]:
    members = {name: Variant(model=name) for name in names}
    spec = AuditSpec(rule=STOP, members=members, not_run=ON_WEIGHTS)
    out.mkdir()
    audit.run(spec, folders, out, silent)
    return Node("audit", spec), out


def said(out: Path, model: str) -> set[tuple[str, str]]:
    rows = json.loads((out / "evidence.json").read_text())
    own = [r for r in rows if r["model"] == model and r["test"] in ATTACKS]
    return {(r["says"], r["said"]) for r in own}


def test_what_was_left_out_is_told_as_not_run_and_never_as_passed(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    node, out = found_by(folders, tmp_path / "a", ("target", "retrain", "hiding"))
    assert said(out, "hiding") == {("not run", "the verdict was decided without it")}
    assert is_settled(node, out)
    node, out = found_by(folders, tmp_path / "b", ("target", "retrain", "hiding", "quiet"))
    assert said(out, "hiding") == {("not run", "the verdict was decided without it")}
    assert said(out, "quiet") == {("not measured", NOT_YET)}
    assert not is_settled(node, out)


def pieces_of(one: Node) -> set[str]:
    return {n.name for n in one.inputs.values() if isinstance(n, Node)}


def test_every_look_goes_on_from_the_one_before(inputs: dict[str, Path], corpus: Path) -> None:
    nodes = measured(corpus, *dict.fromkeys(("target", "m", "retrain"), inputs["model"]).items())
    found = list(looks(STOP, nodes))
    assert len(found) == len(LOOKS) + 1
    assert all(pieces_of(before) < pieces_of(after) for before, after in pairwise(found))
    assert isinstance(found[0].spec, AuditSpec)
    assert found[0].spec.not_run == ON_WEIGHTS
    assert dict(found[0].inputs) == nodes
    # Where nothing is stopped, all is one piece with the name that it had.
    assert [n.name for n in looks(ALL, nodes)] == [audit_node(ALL, nodes).name]
    assert Rule(access="weights", stop=False) == Rule(access="weights")
    lone = dict([*nodes.items()][:2])
    assert [n.name for n in looks(STOP, lone)] == [audit_node(STOP, lone).name]


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return {"model": folder}


@pytest.mark.parametrize("settled_at", [0, 2, len(LOOKS)])
def test_an_audit_makes_no_test_after_it_is_settled(
    inputs: dict[str, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    settled_at: int,
) -> None:  # fmt: skip
    made_: list[AuditSpec] = []

    def done(store: Store, nodes: list[Node], progress: bool) -> None:
        spec = nodes[-1].spec
        assert isinstance(spec, AuditSpec)
        made_.append(spec)

    def settled(node: Node, folder: Path) -> bool:
        return len(made_) > settled_at

    monkeypatch.setattr(api, "done", done)
    monkeypatch.setattr(planning, "is_settled", settled)
    store = Store(tmp_path / "store").open()
    models = {n: Outside(str(inputs["model"])) for n in ("target", "unlearned", "retrain")}
    api.audited(store, models, (Outside(str(corpus)), "c"), (), STOP, progress=False)
    assert [spec.not_run for spec in made_] == [
        tuple(chain.from_iterable(LOOKS[upto:])) for upto in range(settled_at + 1)
    ]


def test_it_is_refused_where_there_is_nothing_to_stop(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave it out, or set access to weights"):
        parse(Rule, {"stop": True}, "audit")
    sweep: dict[str, Any] = {
        "name": "s", "corpus": [{"lab": "news"}], "unlearn": [{"method": "ga"}],
        "rule": {"access": "weights", "stop": True},
    }  # fmt: skip
    with pytest.raises(UserError, match="A sweep plans all tests before the first is made"):
        plan(parse(SweepSpec, sweep, "sweep"))
    store = str(tmp_path / "store")
    told = CliRunner().invoke(
        main, ["audit", "a", "b", "--data", "c", "--stop", "--store", store]
    )  # fmt: skip
    assert told.exit_code == 2


def misses(found: Iterable[Interval]) -> bool:
    return any(i.low > 0 or i.high < 0 for i in found)


def test_looks_share_the_error_that_all_tests_have_together() -> None:
    """Skewed scores of models that differ in nothing, test alike to test: any interval that leaves
    zero out, at any look, is wrong."""
    rng = np.random.default_rng(1)
    asked, items, resamples, sets = 10, 60, 300, 300
    sizes = [asked, *map(len, LOOKS)]
    bounds = np.cumsum([0, *sizes])
    wrong = {"shared": 0, "each look by itself": 0, "all at the end": 0}
    for _ in range(sets):
        own = rng.random((sum(sizes), items)) < 0.3
        scores = np.where(own, rng.beta(1, 3, own.shape), 0.5 * rng.beta(1, 5, items))
        apart = scores - np.where(rng.random(own.shape) < 0.3, rng.beta(1, 3, own.shape), 0.08)
        apart -= EXPECTED
        index = rng.integers(0, items, (resamples, items))
        draws = np.concatenate([apart.mean(-1, keepdims=True), apart[:, index].mean(-1)], axis=1)
        parts = [draws[a:b] for a, b in pairwise(bounds)]
        for name, levels in (
            ("shared", [level_of_part(size, sum(sizes)) for size in sizes]),
            ("each look by itself", [0.95] * len(sizes)),
        ):
            found = [simultaneous(*pair) for pair in zip(parts, levels, strict=True)]
            wrong[name] += misses(chain.from_iterable(found))
        wrong["all at the end"] += misses(simultaneous(draws))
    # Five in a hundred, and three deviations of a count of so many.
    most = 0.05 * sets + 3 * (0.05 * 0.95 * sets) ** 0.5
    assert max(wrong["shared"], wrong["all at the end"]) <= most
    assert wrong["each look by itself"] > 2 * most


# The mean of what is drawn above: 0.3 of a quarter and 0.7 of half a sixth, less 0.3 of a quarter
# and 0.7 of 0.08.
EXPECTED = 0.7 * 0.5 / 6 - 0.7 * 0.08
