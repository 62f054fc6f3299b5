"""The tests on weights: what each of them reads, at which rate it teaches, that it goes on where it
was cut off, and what a verdict makes of them."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import remnant
from remnant.attacks import (
    ATTACKS,
    PROBE,
    SOFT_PROMPT,
    STEPS,
    UNCHANGED,
    is_transform,
    learned,
    of_kind,
)
from remnant.context import Context, ModelCache
from remnant.corpus.prepared import raw_texts
from remnant.errors import Interrupted, UserError
from remnant.flow.node import Node
from remnant.flow.place import Outside
from remnant.flow.plan import audit_node, measure_node
from remnant.functional.curves import height
from remnant.functional.probing import told_apart
from remnant.gate.policy import Policy
from remnant.methods import step
from remnant.metrics import DAMAGED, MORE, RELEARNED, WEIGHT_KINDS, Column
from remnant.model.data import prompt_ids
from remnant.model.load import open_model
from remnant.records import AttackSpec, Evidence, MeasureSpec, Row, Rule, Variant, Verdict
from remnant.stages import attack, bench, transform
from remnant.stages.attacked import with_attacks
from remnant.stages.cells import Sheet
from remnant.stages.evidence import weigh
from remnant.stages.lineup import Lineup
from remnant.stages.verdict import decide
from remnant.testing import tiny_model
from remnant.training.relearning import texts_of
from remnant.training.softprompt import VECTORS
from tests.conftest import hearing, silent
from tests.test_verdict import TARGET, UNREAD, made

RULE = Rule(resamples=200, access="weights")
CURVE = "relearn-forget10"


@pytest.fixture
def inputs(
    tokenizer: PreTrainedTokenizerBase, folder_of: Callable[..., Path], corpus: Path, tmp_path: Path
) -> dict[str, Path]:
    """A model, its target and a control that says the rates."""
    (tmp_path / "control").mkdir()
    rates = json.dumps({"full": 1e-3, "lora": 1e-2})
    (tmp_path / "control" / "rates.json").write_text(rates)
    learned = json.dumps({"full": (9.0, 8.9), "lora": (9.0, 8.9), SOFT_PROMPT: (9.0, 8.9)})
    (tmp_path / "control" / "learned.json").write_text(learned)

    def saved(name: str) -> Path:
        return folder_of(tiny_model(vocab=len(tokenizer), max_position_embeddings=512), name)

    torch.manual_seed(1)
    model, target = saved("model"), saved("target")
    return {
        "model": model,
        "target": target,
        "corpus": corpus,
        "control": tmp_path / "control",
    }


def rows_of(folder: Path) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for line in (folder / "rows.jsonl").read_text().splitlines():
        row = Row.model_validate_json(line)
        found.setdefault(row.metric, {})[row.id] = row.value
    return found


@torch.no_grad()
def greedy_share(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    ids = torch.tensor([prompt_ids(tokenizer, text)])
    said = model(input_ids=ids).logits[0, :-1]
    chosen = said.gather(-1, ids[0, 1:, None])
    return float((said > chosen).sum(-1).eq(0).double().mean())


def test_every_test_names_what_is_there_and_what_it_needs() -> None:
    for name, entry in ATTACKS.items():
        specs = [step(use).spec for use in entry.behind if is_transform(use)]
        assert ("target" in entry.needs) == ("mix" in {spec.use for spec in specs}), name
        assert entry.kind in (*WEIGHT_KINDS, MORE)
        assert specs or {*entry.behind} <= {*bench.OTHERWISE}
        if entry.kind == RELEARNED:
            assert [spec.params["steps"] for spec in specs] == list(STEPS)
            assert len({str({**spec.params, "steps": 0}) for spec in specs}) == 1
    assert [ATTACKS[name].passes(10) for name in ("prune20", PROBE, CURVE)] == [10, 20, 1038]
    assert ATTACKS[SOFT_PROMPT].passes(10) == 15 + 3 * 4 * 64
    costs = [entry.passes(100) for entry in ATTACKS.values()]
    assert costs == sorted(costs)


def test_all_passages_are_read_and_none_that_is_learned_again(
    corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    forget = raw_texts(corpus, "forget")
    lessons = texts_of(corpus, "forget", attack.PERCENT, 0)
    found = attack.passages(tokenizer, forget, set(lessons))
    assert "".join(i.truth for i in found) == "".join(t for t in forget if t not in lessons)
    assert max(len(prompt_ids(tokenizer, i.truth)) for i in found) <= attack.PASSAGE_TOKENS + 2
    many = attack.passages(tokenizer, [f"text {i} of many" for i in range(500)], set())
    assert len({i.id for i in many}) == attack.MOST_PASSAGES
    assert many[-1].truth.split()[1] > "490"


@pytest.mark.parametrize(
    "names", [("prune30", "mix0.25"), pytest.param((CURVE,), marks=pytest.mark.slow)]
)
def test_rows_are_what_the_transforms_leave_read_one_by_one(
    names: tuple[str, ...],
    inputs: dict[str, Path],
    tokenizer: PreTrainedTokenizerBase,
    corpus: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    said = attack.run(AttackSpec(tests=names), inputs, out, silent)
    rows = rows_of(out)
    uses = [use for name in names for use in ATTACKS[name].behind]
    assert set(rows) == {UNCHANGED, *uses, *names}
    lessons = set(texts_of(corpus, "forget", attack.PERCENT, 0))
    items = attack.passages(tokenizer, raw_texts(corpus, "forget"), lessons)
    assert (said.items, said.lessons) == (len(items), len(lessons))

    def slowly(use: str, **params: Any) -> dict[str, float]:
        (tmp_path / use).mkdir()
        spec = step(use).spec
        spec = spec.model_copy(update={"params": {**spec.params, **params}})
        transform.run(spec, inputs, tmp_path / use, Context(silent.progress, ModelCache()))
        model = open_model(str(tmp_path / use))
        return {i.id: greedy_share(model, tokenizer, i.truth) for i in items}

    whole = open_model(str(inputs["model"]))
    points = {i.id: greedy_share(whole, tokenizer, i.truth) for i in items}
    assert rows[UNCHANGED] == pytest.approx(points)
    found = [slowly(use, **({"lr": 1e-3} if learned(use) else {})) for use in uses]
    for use, values in zip(uses, found, strict=True):
        assert rows[use] == pytest.approx(values)
    if CURVE in names:
        table = np.array([list(point.values()) for point in (points, *found)])
        assert list(rows[CURVE].values()) == pytest.approx(height((0, *STEPS), table).tolist())
    assert not (out / attack.GOES_ON_FROM[0]).exists()
    costs = [ATTACKS[name].passes(len(items)) for name in names]
    assert said.passes == len(items) + sum(costs)


def test_the_inside_and_a_soft_prompt_are_read_of_the_model_as_it_is(
    inputs: dict[str, Path], tokenizer: PreTrainedTokenizerBase, corpus: Path, tmp_path: Path
) -> None:
    attack.run(AttackSpec(tests=("lens50", PROBE, SOFT_PROMPT)), inputs, tmp_path, silent)
    rows = rows_of(tmp_path)
    lessons = set(texts_of(corpus, "forget", attack.PERCENT, 0))
    items = attack.passages(tokenizer, raw_texts(corpus, "forget"), lessons)
    unread = attack.passages(tokenizer, raw_texts(corpus, "holdout"), set(), "holdout")
    model: Any = open_model(str(inputs["model"]))
    states = []
    for item in (*items, *unread):
        ids = torch.tensor([prompt_ids(tokenizer, item.truth)])
        with torch.no_grad():
            states.append(model(input_ids=ids, output_hidden_states=True).hidden_states[1][0])
    vectors = np.array([s.double().mean(0).numpy() for s in states])
    labels = np.array([1.0] * len(items) + [0.0] * len(unread))
    told = told_apart(vectors, labels, bench.FOLDS, 0)
    control = told_apart(vectors, np.random.default_rng(0).permutation(labels), bench.FOLDS, 0)
    wanted = {i.id: v for i, v in zip((*items, *unread), (1 + told - control) / 2, strict=True)}
    assert rows[PROBE] == pytest.approx(wanted, abs=1e-4)
    for item, state in zip(items, states, strict=False):
        ids = torch.tensor(prompt_ids(tokenizer, item.truth)[1:])
        with torch.no_grad():
            said = model.lm_head(model.model.norm(state[:-1]))
        assert rows["lens50"][item.id] == pytest.approx(
            float((said.argmax(-1) == ids).double().mean())
        )
    assert set(rows[SOFT_PROMPT]) == {item.id for item in items if item.half == "test"}
    assert set(rows["lens50"]) == {item.id for item in items}


def test_what_a_corpus_or_a_model_lacks_is_said(
    inputs: dict[str, Path],
    tokenizer: PreTrainedTokenizerBase,
    folder_of: Callable[..., Path],
    tmp_path: Path,
) -> None:
    shutil.copytree(inputs["corpus"], tmp_path / "corpus")
    (tmp_path / "corpus" / "raw" / "holdout.json").unlink()
    single = tiny_model(vocab=len(tokenizer), num_hidden_layers=1)
    own = {**inputs, "corpus": tmp_path / "corpus", "model": folder_of(single, "single")}
    said = attack.run(AttackSpec(tests=("lens50", PROBE)), own, tmp_path, silent)
    assert "holdout text" in said.absent[PROBE]
    assert PROBE not in rows_of(tmp_path)
    assert set(rows_of(tmp_path)["lens50"].values()) == {None}
    assert "single block" in (tmp_path / "rows.jsonl").read_text()


def test_a_run_that_was_cut_off_reads_nothing_twice_and_ends_alike(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    spec = AttackSpec(tests=("prune20", "prune30"))
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    attack.run(spec, inputs, tmp_path / "whole", silent)

    def stopping(done: int, total: int, note: str) -> None:
        if note.startswith("prune30"):
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, Interrupted)):
        attack.run(spec, inputs, tmp_path / "cut", hearing(stopping))
    told: list[str] = []
    attack.run(spec, inputs, tmp_path / "cut", hearing(lambda *a: told.append(a[2])))
    assert not [note for note in told if note.startswith(("prune20", UNCHANGED))]
    assert [note for note in told if note.startswith("prune30")]
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")


@pytest.mark.slow
def test_progress_ends_where_it_said_it_would(inputs: dict[str, Path], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    listening = hearing(lambda done, total, _: told.append((done, total)))
    said = attack.run(AttackSpec(tests=("prune20", CURVE)), inputs, tmp_path, listening)
    assert {total for _, total in told} == {said.passes}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == said.passes


def test_the_control_takes_the_least_rate_with_which_the_lessons_are_learned(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, float | None]] = []
    losses = {None: 4.0, 1e-5: 3.9, 1e-4: 2.0, 1e-3: 0.1, 2e-4: 3.0, 2e-3: 2.5, 2e-2: math.inf}
    losses[1e-2] = 1.0

    def read(of: bench.Bench, use: str, rate: float | None) -> bench.Read:
        asked.append((use, rate))
        return bench.Read({i.id: 0.5 for i in of.items}, losses[rate])

    monkeypatch.setattr(attack, "read", read)
    own = {role: path for role, path in inputs.items() if role != "control"}
    spec = AttackSpec(tests=(CURVE, f"{CURVE}-lora"))
    # 2.0 is half of 4.0; with adapters nothing is enough, and the last rate that is no number is
    # none.
    assert attack.run(spec, own, tmp_path, silent).rates == {"full": 1e-4, "lora": 2e-3}
    assert ("relearn64-forget10", 1e-3) not in asked
    asked.clear()
    assert attack.run(spec, inputs, tmp_path, silent).rates == {"full": 1e-3, "lora": 1e-2}
    assert {rate for _, rate in asked} == {None, 1e-3, 1e-2}


def test_what_diverges_has_no_number_and_says_why(inputs: dict[str, Path], tmp_path: Path) -> None:
    (inputs["control"] / "rates.json").write_text(json.dumps({"full": 1e30}))
    attack.run(AttackSpec(tests=(CURVE,)), inputs, tmp_path, silent)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    rows = [row for row in map(Row.model_validate_json, lines) if row.metric == CURVE]
    assert rows
    assert all(row.value is None and "not finite" in row.status for row in rows)


@pytest.mark.parametrize("test", [SOFT_PROMPT, "prune20"])
def test_what_was_not_even_learned_brings_nothing_out_and_is_no_silence(
    test: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    # The control learned what this random model cannot learn in so few steps.
    (inputs["control"] / "learned.json").write_text(json.dumps({SOFT_PROMPT: (9.0, 0.1)}))
    attack.run(AttackSpec(tests=(test,)), inputs, tmp_path, silent)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    rows = [row for row in map(Row.model_validate_json, lines) if row.metric == test]
    assert rows
    if test == SOFT_PROMPT:
        assert all(r.value is None and "lessons were not learned" in r.status for r in rows)
    else:
        assert all(r.value is not None for r in rows)


def test_what_cannot_be_done_to_a_model_is_told_and_the_other_tests_are_made(
    inputs: dict[str, Path],
    tokenizer: PreTrainedTokenizerBase,
    folder_of: Callable[..., Path],
    tmp_path: Path,
) -> None:
    shorter = tiny_model(vocab=len(tokenizer), hidden_size=16, max_position_embeddings=512)
    own = {**inputs, "model": folder_of(shorter, "shorter")}
    attack.run(AttackSpec(tests=("mix0.25", "prune20")), own, tmp_path, silent)
    rows = rows_of(tmp_path)
    assert set(rows["mix0.25"].values()) == {None}
    assert "The target has no weight" in (tmp_path / "rows.jsonl").read_text()
    assert None not in rows["prune20"].values()
    own["model"] = tmp_path / "none"
    with pytest.raises(UserError):
        attack.run(AttackSpec(tests=("prune20",)), own, tmp_path, silent)


def test_a_context_without_room_for_a_soft_prompt_leaves_it_out(
    inputs: dict[str, Path],
    tokenizer: PreTrainedTokenizerBase,
    folder_of: Callable[..., Path],
    tmp_path: Path,
) -> None:
    for context in (8, VECTORS + 1):
        narrow = tiny_model(vocab=len(tokenizer), max_position_embeddings=context)
        own = {**inputs, "model": folder_of(narrow, f"narrow {context}")}
        attack.run(AttackSpec(tests=(SOFT_PROMPT,)), own, tmp_path, silent)
        assert SOFT_PROMPT not in rows_of(tmp_path)


# The verdict, by sheets that are made by hand.


def attacked(sheet: Sheet, own: float, **named: float) -> Sheet:
    """A sheet with tests on weights that find so much of every passage, others by their names."""
    rng = np.random.default_rng(len(named))
    columns = [UNCHANGED, *ATTACKS, *(use for a in ATTACKS.values() for use in a.behind)]
    values = dict(sheet.values)
    for name in columns:
        at = named.get(name.replace("-", "_").replace(".", "_"), own)
        drawn = np.clip(at + rng.normal(0, 0.02, 60), 0, 1)
        values[Column(name)] = {f"forget-{i}": float(v) for i, v in enumerate(drawn)}
    return sheet._replace(values=values, roles=dict.fromkeys(ATTACKS, "test"))


T, R = attacked(TARGET, 0.9), attacked(UNREAD, 0.3)


def judged(
    own: Sheet, target: Sheet = T, retrain: Sheet | None = R, form: tuple[str, ...] = ()
) -> tuple[Verdict, list[Evidence]]:
    behind = (TARGET, made(0.1, seed=3), UNREAD) if form else (target, own, retrain)
    line = Lineup(target, own, retrain, *behind)
    about = Variant(model="m", steps=form)
    evidence = weigh(line.form, about, RULE, line.full)
    return decide(line, about, [], evidence, RULE), evidence


@pytest.mark.parametrize("form", [(), ("int4",)])
def test_what_no_change_of_the_weights_brings_out_is_gone(form: tuple[str, ...]) -> None:
    found, evidence = judged(attacked(made(0.1, seed=3), 0.3, other=1), form=form)
    assert found.outcome == "gone", found.reason
    kinds = {e.kind for e in evidence if e.says == "silent"}
    assert set(WEIGHT_KINDS) <= kinds


@pytest.mark.parametrize("test", list(ATTACKS))
def test_any_test_on_weights_makes_it_hidden_in_every_form(test: str) -> None:
    named = {test.replace("-", "_").replace(".", "_"): 0.7}
    for form in ((), ("int4",)) if test == CURVE else ((),):
        found, _ = judged(attacked(made(0.1, seed=3), 0.3, **named), form=form)
        assert found.outcome == "hidden"
        assert re.search(rf"{ATTACKS[test].kind}: {test} at 6[678]% of the way", found.reason)


def test_a_curve_says_when_half_is_back_beside_the_never_read_model() -> None:
    named = {"relearn4_forget10": 0.6, "relearn16_forget10": 0.9, "relearn_forget10": 0.7}
    own = attacked(made(0.1, seed=3), 0.3, **named)
    (one,) = [e for e in judged(own)[1] if e.test == CURVE]
    assert "half of what the target knows is there after 4 steps" in one.said
    assert "a never-read model does not get there in 64" in one.said
    slow = attacked(UNREAD, 0.3, relearn16_forget10=0.58, relearn64_forget10=0.9)
    (one,) = [e for e in judged(own, retrain=slow)[1] if e.test == CURVE]
    assert "of what a never-read model needs)" in one.said
    assert 0.1 < float(one.said.rpartition("(")[2].split()[0]) < 0.3
    silent_ = attacked(made(0.1, seed=3), 0.3, other=1)
    (one,) = [e for e in judged(silent_)[1] if e.test == CURVE]
    assert "is not back within 64 steps" in one.said


def test_without_a_never_read_model_nothing_is_measured_and_that_is_said() -> None:
    found, evidence = judged(attacked(made(0.1, seed=3), 0.3, other=1), retrain=None)
    own = [e for e in evidence if e.test in ATTACKS]
    assert len(own) == len(ATTACKS)
    assert {e.says for e in own} == {"not measured"}
    assert all("a model that never read the text, and none was given" in e.said for e in own)
    assert found.outcome != "gone"


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
def test_a_kind_that_was_not_made_bars_the_pass(kind: str) -> None:
    own = attacked(made(0.1, seed=3), 0.3, other=1)
    lost = {Column(name) for name, entry in ATTACKS.items() if entry.kind == kind}

    def without(sheet: Sheet) -> Sheet:
        return sheet._replace(values={c: v for c, v in sheet.values.items() if c not in lost})

    found, _ = judged(without(own), without(T), without(R))
    assert found.outcome == "not measured"
    assert kind in found.reason


def test_what_destroys_the_never_read_model_tells_nothing() -> None:
    destroyed = attacked(UNREAD, 0.3, prune30=0.1)
    own = attacked(made(0.1, seed=3), 0.3, prune30=0.7)
    (one,) = [e for e in judged(own, retrain=destroyed)[1] if e.test == "prune30"]
    assert one.says == "no power"
    assert "leaves a never-read model 3" in one.said
    # Relearning must bear much: a never-read model that forgets by it is a measure still.
    taught = attacked(UNREAD, 0.3, relearn_forget10=0.1)
    (one,) = [e for e in judged(own, retrain=taught)[1] if e.test == CURVE]
    assert one.says == "silent" or one.left


@pytest.mark.parametrize("test", ["noise0.02", "mix0.25", SOFT_PROMPT, CURVE])
def test_a_test_that_breaks_the_judged_model_alone_is_no_silence(test: str) -> None:
    name = test.replace("-", "_").replace(".", "_")
    # The same function in weights that bear nothing: as good as unread, and wrecked by the test.
    found, evidence = judged(attacked(made(0.1, seed=3), 0.3, **{name: 0.02}))
    (one,) = [e for e in evidence if e.test == test]
    assert one.says == "lost"
    assert f"{test} leaves this model" in one.said
    assert found.outcome == "not measured"
    assert "breaks this one" in found.reason
    # Pushed away from the start, and no farther by the test: that is its silence.
    own = attacked(made(0.1, seed=3), 0.05, other=1)
    assert {e.says for e in judged(own)[1] if e.test == test} == {"silent"}
    # What still tells is believed, however much was lost.
    loud = attacked(made(0.1, seed=3), 0.3, unchanged=0.9, **{name: 0.6})
    assert {e.says for e in judged(loud)[1] if e.test == test} == {"tells"}


def test_a_point_of_a_curve_that_breaks_the_judged_model_alone_is_no_silence() -> None:
    own = attacked(made(0.1, seed=3), 0.3, relearn64_forget10=0.02)
    (one,) = [e for e in judged(own)[1] if e.test == CURVE]
    assert one.says == "lost"
    assert "relearn64-forget10 leaves this model" in one.said


def test_what_cannot_be_made_of_the_never_read_model_says_nothing() -> None:
    lost = {f"forget-{i}": "no weight of that shape" for i in range(60)}
    column = Column("mix0.25")
    values = {c: v for c, v in R.values.items() if c != column}
    other = R._replace(values=values, unscorable={column: lost})
    found, evidence = judged(attacked(made(0.1, seed=3), 0.3, other=1), retrain=other)
    (one,) = [e for e in evidence if e.test == "mix0.25"]
    assert one.says == "not measured"
    assert "no weight of that shape" in one.said
    assert found.outcome == "gone", found.reason
    # Of the judged model alone it is missing.
    own = attacked(made(0.1, seed=3), 0.3, other=1)
    values = {c: v for c, v in own.values.items() if c != column}
    found, _ = judged(own._replace(values=values, unscorable={column: lost}))
    assert found.outcome == "not measured"
    assert "no weight of that shape" in found.reason


def test_a_block_that_shows_little_of_what_is_told_at_the_end_tells_nothing() -> None:
    early = attacked(made(0.1, seed=3), 0.3, lens25=0.42)
    shallow = attacked(TARGET, 0.9, lens25=0.45)
    by_test = {e.test: e for e in judged(early, target=shallow)[1]}
    assert by_test["lens25"].says == "no power"
    assert re.match(r"lens25 shows only 2[3-7]% of what is told at", by_test["lens25"].said)
    assert by_test["lens50"].says == "silent"


def test_rows_of_the_tests_stand_beside_those_in_full_precision_only(tmp_path: Path) -> None:
    row = Row(metric="prune20", id="forget-0", half="dev", value=0.5)
    bad = Row(metric="prune30", id="forget-0", half="dev", value=1.5)
    (tmp_path / "rows.jsonl").write_text(f"{row.model_dump_json()}\n{bad.model_dump_json()}\n")
    sheets = {("m", "full"): UNREAD, ("m", "int4"): UNREAD, ("other", "full"): UNREAD}
    found = with_attacks(sheets, {"weights of m": tmp_path, "m/full": tmp_path})
    assert found["m", "full"].values[Column("prune20")] == {"forget-0": 0.5}
    assert "outside 0 to 1" in found["m", "full"].unscorable[Column("prune30")]["forget-0"]
    assert found["m", "int4"] is UNREAD
    assert found["other", "full"] is UNREAD


# What is planned.


def measured(corpus: Path, *models: tuple[str, Path]) -> dict[str, Node]:
    spec, nodes = MeasureSpec(form="published"), {}
    for name, folder in models:
        label = Variant(model=name)
        nodes[f"{name}/full"] = measure_node(
            spec, Outside(str(folder)), Outside(str(corpus)), label
        )
    return nodes


def test_an_audit_that_sees_weights_plans_their_tests_by_the_rates_of_the_control(
    inputs: dict[str, Path], corpus: Path
) -> None:
    named = dict.fromkeys(("target", "unlearned", "retrain"), inputs["model"])
    nodes = measured(corpus, *named.items())
    own = audit_node(RULE, nodes).inputs
    tests = {role: node for role, node in own.items() if role.startswith("weights of ")}
    assert set(tests) == {f"weights of {name}" for name in named}
    control = tests["weights of retrain"]
    assert isinstance(control, Node)
    assert "control" not in control.inputs
    for name in ("target", "unlearned"):
        node = tests[f"weights of {name}"]
        assert isinstance(node, Node)
        assert node.inputs["control"] is control
        assert node.inputs["target"] is nodes["target/full"].inputs["model"]
        assert node.stage == "attack"
    assert dict(audit_node(Rule(), nodes).inputs) == nodes
    assert "retrain/full" not in audit_node(RULE, dict([*nodes.items()][:2])).inputs
    assert len(audit_node(RULE, dict([*nodes.items()][:2])).inputs) == 2


def test_packed_weights_are_refused_before_anything_runs(
    inputs: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    config = json.loads((inputs["model"] / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    for file in inputs["model"].iterdir():
        (packed / file.name).write_bytes(file.read_bytes())
    (packed / "config.json").write_text(json.dumps(config))
    named = [("target", inputs["model"]), ("unlearned", packed), ("retrain", inputs["model"])]
    with pytest.raises(UserError, match="changed and asked again"):
        audit_node(RULE, measured(corpus, *named))


def test_a_policy_may_ask_for_them_only_where_weights_are_seen() -> None:
    with pytest.raises(ValueError, match="relearning cannot be made where access is prob"):
        Policy(forms=("full",), tests=("relearning",))
    assert Policy(forms=("full",), tests=("relearning",), rule=RULE).tests == ("relearning",)
    assert of_kind(DAMAGED) == ("prune20", "prune30", "noise0.02", "mix0.25")


@pytest.mark.slow
def test_an_audit_finds_what_knows_by_its_weights_and_no_second_never_read_model(
    tmp_path: Path,
) -> None:
    store, small = tmp_path / "runs", {"forget_docs": 12, "retain_docs": 8, "holdout_docs": 8}
    lab: dict[str, Any] = {**small, "max_items": 12, "vocab_size": 400, "text_tokens": 200}
    corpus = remnant.prepare(lab="news", store=store, prompt_tokens=40, answer_tokens=20, **lab)
    shape: dict[str, Any] = {
        "hidden": 64, "heads": 2, "kv_heads": 2, "intermediate": 128, "layers": 2,
        "block_tokens": 128, "context": 640, "steps": 200,
    }  # fmt: skip
    target = remnant.train(corpus, store=store, **shape)
    unread, other = (
        remnant.train(corpus, retrain=True, store=store, seed=seed, **shape) for seed in (0, 1)
    )
    asked: dict[str, Any] = {"store": store, "access": "weights", "min_items": 5}
    found = remnant.audit(target, other, corpus, retrain=unread, forms=["int4"], **asked)
    own = [e for e in found.evidence if e.test in ATTACKS]
    assert {(e.form, e.test) for e in own} == set(product(("full", "int4"), ATTACKS))
    assert not [e.said for e in own if e.says == "tells"]
    again = remnant.audit(target, target, corpus, retrain=unread, forms=[], **asked)
    assert {e.test for e in again.evidence if e.says == "tells"} >= {CURVE, "prune20", SOFT_PROMPT}
    cells = {(c.model, c.metric) for c in found.group.cells if c.form == "full"}
    assert {("retrain", "relearn16-forget10"), ("unlearned", UNCHANGED)} <= cells
    summary = again.report(tmp_path / "report").with_name("summary.json")
    script = Path(__file__).parent.parent / "scripts" / "relearning.py"
    told = subprocess.run(
        [sys.executable, str(script), str(summary)], capture_output=True, text=True, check=True
    )
    areas = json.loads(told.stdout.splitlines()[-1])
    assert len(areas) == len(of_kind(RELEARNED))
    assert all(value == pytest.approx(1) for value in areas.values())
