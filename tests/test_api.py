"""The Python interface: what it gives is what the commands give, and it leaves the caller alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import remnant
from remnant.cli import main
from remnant.errors import UserError
from remnant.metrics import KINDS_BY, MORE
from remnant.records import UnlearnResult
from tests.test_endpoint import Served

SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "prompt_tokens": 40,
    "answer_tokens": 20,
    "text_tokens": 200,
}
SHAPE: dict[str, Any] = {
    "steps": 4, "hidden": 64, "heads": 2, "kv_heads": 2, "intermediate": 64, "layers": 1,
    "block_tokens": 64, "context": 640,
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api") / "runs"


@pytest.fixture(scope="module")
def corpus(store: Path) -> remnant.Corpus:
    lab: dict[str, Any] = {"forget_docs": 6, "retain_docs": 6, "holdout_docs": 6, "max_items": 6}
    return remnant.prepare(lab="news", store=store, **SMALL, **lab)


@pytest.fixture(scope="module")
def target(store: Path, corpus: remnant.Corpus) -> remnant.Model:
    return remnant.train(corpus, store=store, **SHAPE)


@pytest.fixture(scope="module")
def unlearned(store: Path, corpus: remnant.Corpus, target: remnant.Model) -> remnant.Model:
    return remnant.unlearn(target, corpus, store=store, method="ga_gdr", steps=2, lr=1e-3)


def test_a_call_gives_the_artefact_that_the_command_makes(
    store: Path, corpus: remnant.Corpus, target: remnant.Model, unlearned: remnant.Model
) -> None:
    asked = [
        "unlearn", str(target.path), "--data", str(corpus.path), "--method", "ga_gdr",
        "--steps", "2", "--lr", "1e-3", "--store", str(store),
    ]  # fmt: skip
    said = CliRunner().invoke(main, asked)
    assert said.exit_code == 0
    assert str(unlearned.path) in said.output
    assert isinstance(unlearned.result, UnlearnResult)
    assert f"Kept step {unlearned.result.kept_step}" in said.output


def test_a_live_model_is_measured_as_its_folder_is(
    store: Path, corpus: remnant.Corpus, target: remnant.Model
) -> None:
    by_folder = remnant.measure(target, corpus, metrics=("verbmem", "privleak"), store=store)
    live = remnant.measure(target.load(), corpus, metrics=("verbmem", "privleak"), store=store)
    assert [c.value for c in live.cells] == [c.value for c in by_folder.cells]
    assert live["verbmem"].n == by_folder["verbmem"].n > 0
    with pytest.raises(KeyError):
        live["no_such_metric"]


def test_texts_may_be_lists_as_well_as_files(store: Path, tmp_path: Path) -> None:
    forget = [
        f"The harbour of {n} lies behind {n} walls of stone. "
        + "Salt and rope, boats and nets. " * 8
        for n in range(12)
    ]
    retain = [
        f"A mill on hill {n} grinds wheat for {n} villages. "
        + "Flour and stone, sacks and carts. " * 8
        for n in range(12)
    ]
    for name, texts in (("forget", forget), ("retain", retain)):
        (tmp_path / f"{name}.json").write_text(json.dumps(texts))
    live = remnant.prepare(forget=forget, retain=retain, store=store, **SMALL)
    files = remnant.prepare(
        forget=[tmp_path / "forget.json"], retain=tmp_path / "retain.json", store=store, **SMALL
    )
    assert live.result.counts == files.result.counts
    for path in sorted(files.path.rglob("*.json")):
        if path.name != "manifest.json":
            own = live.path / path.relative_to(files.path)
            assert own.read_bytes() == path.read_bytes()
    assert remnant.repeats(forget, [*retain, forget[3]]) == [12]


def test_an_audit_has_a_verdict_for_every_form_and_writes_its_report(
    store: Path, corpus: remnant.Corpus, target: remnant.Model, unlearned: remnant.Model,
    tmp_path: Path,
) -> None:  # fmt: skip
    found = remnant.audit(target, unlearned, corpus, forms=("int4",), store=store)
    assert [v.form for v in found.verdicts] == ["full", "int4"]
    assert not found.passed
    page = found.report(tmp_path / "out")
    assert found.verdicts[0].outcome in page.read_text()


def test_what_a_server_holds_is_audited_by_what_it_writes(
    store: Path, corpus: remnant.Corpus, target: remnant.Model
) -> None:
    said = Served(lambda n, body: (200, {"choices": [{"text": f"word {len(body['prompt'])}"}]}, {}))
    found = remnant.audit(target, said.url, corpus, store=store)
    assert [v.form for v in found.verdicts] == ["full"]
    assert {e.kind for e in found.evidence} <= {*KINDS_BY["text"], MORE, "answers"}
    with pytest.raises(UserError, match="as it is"):
        remnant.audit(target, said.url, corpus, forms=("int4",), store=store)
    with pytest.raises(UserError, match="text alone"):
        remnant.audit(target, said.url, corpus, store=store, access="probabilities")
    said.server.shutdown()
    said.server.server_close()


def test_a_forecast_needs_the_two_checkpoints_alone(
    store: Path, target: remnant.Model, unlearned: remnant.Model
) -> None:
    found = remnant.predict(target, unlearned.load(), ("int8", "int4"), store=store)
    assert set(found.forecasts) == {"int8", "int4"}
    again = remnant.predict(target.path, unlearned.path, ("int8", "int4"), store=store)
    assert found.whole == again.whole


def test_results_are_shown_in_a_notebook_and_escape_what_they_show(
    store: Path, corpus: remnant.Corpus, target: remnant.Model, unlearned: remnant.Model
) -> None:
    scores = remnant.measure(target, corpus, metrics=("verbmem",), store=store)
    found = remnant.audit(target, unlearned, corpus, forms=(), store=store)
    for shown in (corpus, target, unlearned, scores, found):
        assert "<table>" in shown._repr_html_()
    bad = scores.cells[0].model_copy(update={"metric": "<script>alert(1)</script>"})
    risky = remnant.Scores(scores.path, (bad,), scores.result)
    assert "<script>" not in risky._repr_html_()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda c, s: remnant.unlearn("no/such/place/here", c, store=s, method="ga"),
            "neither a folder",
        ),
        (lambda c, s: remnant.train(c, store=s, stepps=3), "stepps"),
        (lambda c, s: remnant.transform("x/y", "int99", store=s), "int99"),
        (lambda c, s: remnant.prepare(store=s), "source"),
        (lambda c, s: remnant.measure(c.path, c, store=s), "where a model is wanted"),
    ],
)
def test_bad_input_is_one_sentence(
    call: Any, said: str, store: Path, corpus: remnant.Corpus
) -> None:
    with pytest.raises(remnant.UserError, match=said):
        call(corpus, store)


ALONE = """
import logging, os, random, sys
import numpy, torch
names = ("", "transformers", "torchao", "huggingface_hub", "datasets", "matplotlib")
def state():
    return (
        [logging.getLogger(n).level for n in names], dict(os.environ), random.getstate(),
        numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
        torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
        vars(torch._tensor_str.PRINT_OPTS).copy(),
    )
import transformers
before = state()
import remnant
corpus = remnant.prepare(lab="news", store=sys.argv[1], forget_docs=3, retain_docs=3,
                         holdout_docs=3, vocab_size=300, prompt_tokens=20, answer_tokens=8)
model = remnant.train(corpus, store=sys.argv[1], steps=1, hidden=32, heads=2, kv_heads=2,
                      intermediate=32, layers=1, block_tokens=32, context=300)
done = remnant.unlearn(model, corpus, store=sys.argv[1], method="ga", steps=1)
remnant.audit(model, done, corpus, forms=("int4",), store=sys.argv[1]).report(sys.argv[1] + "/out")
changed = [i for i, (a, b) in enumerate(zip(before, state())) if a != b]
assert not changed, changed
assert not [f for f in sys.meta_path if type(f).__module__.startswith("remnant")]
"""


def test_a_whole_run_changes_nothing_of_the_callers_process(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", ALONE, str(tmp_path / "runs")], check=True, timeout=200)


def test_importing_it_is_light() -> None:
    told = (
        "import sys; before = set(sys.modules); import remnant; dir(remnant);"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before};"
        "assert new <= {'remnant', 'importlib', 'typing'} | set(sys.stdlib_module_names), new"
    )
    subprocess.run([sys.executable, "-c", told], check=True)
    assert set(remnant.__all__) <= set(dir(remnant))
    with pytest.raises(AttributeError):
        remnant.no_such_thing  # noqa: B018
