"""One deletion request, from raw text to files and a verdict."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import remnant
from remnant import api
from remnant.cli import main
from remnant.control import control_of
from remnant.deletion import Request, _corpus, _scratch, _tells_nothing, context_of, forget
from remnant.errors import UserError
from remnant.flow.node import Node
from remnant.flow.place import Outside
from remnant.flow.store import Store, disk_errors
from remnant.lab.corpus import generate
from remnant.metrics import Column
from remnant.records import PrepareSpec
from remnant.stages.cells import Sheet
from tests.test_api import SHAPE

QUICK: dict[str, Any] = {"steps": 2, "probe_every": 1, "batch_size": 2, "method": "ga_gdr"}
LENGTHS: dict[str, Any] = {"prompt_tokens": 40, "answer_tokens": 20, "text_tokens": 200}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store")).open()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """Raw text of three sides, as users have it."""
    folder = tmp_path_factory.mktemp("texts")
    lab = generate("news", forget=12, retain1=12, retain2=0, holdout=12, seed=0)
    found: dict[str, tuple[str, ...]] = {}
    for side, documents in (("forget", lab.forget), ("retain", lab.retain1),
                            ("holdout", lab.holdout)):  # fmt: skip
        path = folder / f"{side}.json"
        path.write_text(json.dumps([document.text for document in documents]))
        found[side] = (str(path),)
    return found


@pytest.fixture(scope="module")
def corpus(store: Store, texts: dict[str, tuple[str, ...]]) -> remnant.Corpus:
    files: dict[str, Any] = {side: list(map(Path, given)) for side, given in texts.items()}
    return remnant.prepare(**files, vocab_size=400, store=store, **LENGTHS)


@pytest.fixture(scope="module")
def target(store: Store, corpus: remnant.Corpus) -> str:
    return str(remnant.train(corpus, store=store, **SHAPE).path)


def test_a_request_ends_with_a_model_files_a_report_and_a_verdict(
    store: Store,
    target: str,
    texts: dict[str, tuple[str, ...]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    request, settings = Request(target, texts), {**QUICK, **LENGTHS, "lr": 1e-3}
    done = forget(request, tmp_path / "out", store, 1000.0, settings)
    assert {p.name for p in done.out.iterdir()} >= {"model", "report.html", "summary.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    never_read = done.control.model
    assert isinstance(never_read, Node)
    assert store.manifest(never_read.name).spec["splits"] == ["retain1", "retain2"]
    assert sum(done.took.values()) > 0
    assert [v.form for v in done.audit.verdicts] == ["full", "int8", "int4", "nf4"]
    assert not done.audit.passed  # two steps forget nothing
    told = capsys.readouterr().err
    assert "The target itself tells nothing of the forget text" in told  # four steps teach nothing
    assert re.search(r"\d:\d\d of 16:40 spent; trying rate 0.001, 2 steps", told)
    again = api.source_of(store, done.out / "model")
    assert again == api.source_of(store, done.best.model)
    with pytest.raises(UserError, match="exists already"):
        forget(request, tmp_path / "out", store, 0.0, {})
    _a_summary_that_is_not_its_audits_is_refused(store, done.out / "summary.json")


def _a_summary_that_is_not_its_audits_is_refused(store: Store, summary: Path) -> None:
    policy = summary.with_name("policy.toml")
    policy.write_text('forms = ["full", "int4"]')

    def gate(where: Path) -> Result:
        asked = ["gate", str(summary), "--policy", str(policy), "--store", str(where)]
        return CliRunner().invoke(main, asked)

    assert "not its audit's" not in gate(store.root).output
    said = json.loads(summary.read_text())
    for verdict in said["verdicts"]:
        verdict["outcome"] = "gone"
    for test in said["evidence"]:
        test["says"] = "silent"
    summary.write_text(json.dumps(said))
    forged = gate(store.root)
    assert forged.exit_code == 3
    assert "The verdicts and evidence of the summary are not its audit's" in forged.output
    # Elsewhere nobody can know, so that a store that was named has to hold the audit.
    elsewhere = gate(summary.parent / "elsewhere")
    assert elsewhere.exit_code == 3
    assert "The audit of the summary is not in" in elsewhere.output


def test_what_does_not_fit_into_the_time_is_left_out_and_said(
    store: Store, target: str, texts: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    settings = {**QUICK, **LENGTHS, "lr": 1e-4}
    done = forget(Request(target, texts), tmp_path / "out", store, 0.0, settings)
    assert [v.form for v in done.audit.verdicts] == ["full", "int4"]
    assert len(done.trials) == 1


def test_two_requests_do_not_write_one_folder(
    store: Store, target: str, texts: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    place = tmp_path / "out"
    with _scratch(place, place), pytest.raises(UserError, match="Another request"):
        forget(Request(target, texts), place, store, 0.0, {**QUICK, **LENGTHS})
    with _scratch(place, place) as (scratch, since):
        (scratch / "begun").write_text("2000-01-01T00:00:00+00:00")
        assert since > "2026"
    with _scratch(place, place) as (_, since):  # a request that goes on keeps its beginning
        assert since == "2000-01-01T00:00:00+00:00"


def test_a_never_read_model_is_one_that_was_trained_alike_on_the_same_files(
    store: Store, target: str, corpus: remnant.Corpus, texts: dict[str, tuple[str, ...]]
) -> None:
    source, name = api.source_of(store, target), corpus.path.name
    assert isinstance(control_of(store, source, name, 1e6).model, Node)
    others: dict[str, Any] = {side: Path(given[0]) for side, given in texts.items()}
    swapped = others | {"forget": others["holdout"], "holdout": ()}
    other = remnant.prepare(**swapped, vocab_size=400, store=store, **LENGTHS)
    assert "other files" in control_of(store, source, other.path.name, 1e6).said
    outside = Outside(target)
    assert "not trained in this store" in control_of(store, outside, name, 1e6).said


def test_pieces_fit_the_context_and_are_enough_for_a_verdict(
    store: Store, target: str, tmp_path: Path
) -> None:
    words = " ".join(f"word{i} of {i * 7}" for i in range(600))
    (tmp_path / "a.txt").write_text(words)
    (tmp_path / "b.txt").write_text(words.replace("word", "other"))
    texts = {"forget": (str(tmp_path / "a.txt"),), "retain": (str(tmp_path / "b.txt"),)}
    found = _corpus(Request(target, texts), store, {})
    assert found.result.counts["verbmem/forget"] >= 10
    assert context_of(target, store) == SHAPE["context"]
    spec = PrepareSpec.model_validate(store.manifest(found.path.name).spec)
    assert spec.prompt_tokens + spec.answer_tokens < spec.text_tokens < SHAPE["context"]


def test_a_target_that_tells_nothing_is_named_with_its_numbers() -> None:
    def sheet(value: float) -> Sheet:
        return Sheet({Column("verbmem"): {str(item): value for item in range(20)}}, {})

    assert _tells_nothing(sheet(0.5)) == ""
    assert "(verbmem 1.0 of 100)" in _tells_nothing(sheet(0.01))
    assert "(no number of 100)" not in _tells_nothing(Sheet({}, {}))
    assert "no number" in _tells_nothing(Sheet({}, {}))


def test_without_text_to_keep_nothing_begins(target: str, tmp_path: Path, store: Store) -> None:
    with pytest.raises(UserError, match="Without text that the model must keep"):
        forget(Request(target, {"forget": ("a.txt",)}), tmp_path / "out", store, 1.0, {})
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_done_is_refused_before_anything_is_trained(
    store: Store,
    target: str,
    texts: dict[str, tuple[str, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError, match="No runtime opens"):
        forget(Request(target, texts, deploy=("int4",)), tmp_path / "out", store, 1.0, LENGTHS)
    monkeypatch.setattr("remnant.deletion._there", lambda name: False)
    monkeypatch.setattr("remnant.api.make", lambda *_, **__: pytest.fail("something was made"))
    fresh = Store(store.root.with_name("fresh")).open()
    for given, said in (
        ({"deploy": ("bnb-nf4",)}, "need bitsandbytes"),
        ({"retrain": target}, "is the target itself"),
        ({"retrain": "nowhere"}, "nowhere"),
        ({"texts": texts | {"holdout": ("nowhere.txt",)}}, "nowhere.txt"),
    ):
        asked = Request(target, texts)._replace(**given)
        with pytest.raises(UserError, match=said):
            forget(asked, tmp_path / "out", fresh, 1.0, LENGTHS)
    with pytest.raises(UserError, match="need bitsandbytes, which is not installed"):
        forget(Request(target, texts, deploy=("bnb-nf4",)), tmp_path / "out", store, 1.0, LENGTHS)
    with pytest.raises(UserError, match="quatsch"):
        forget(Request(target, texts), tmp_path / "out", store, 1.0, {"method": "quatsch"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "said"),
    [(["--budget", "soon"], "30m or 2h"), ([], "Without text that the model must keep")],
)
def test_bad_requests_are_a_sentence(given: list[str], said: str, tmp_path: Path) -> None:
    asked = ["forget", "m", "--forget", "a.txt", "-o", str(tmp_path / "out"), *given]
    done = CliRunner().invoke(main, [*asked, "--store", str(tmp_path / "store")])
    assert done.exit_code == 2
    assert said in done.output


def test_a_disk_that_is_full_while_a_folder_is_copied_is_a_sentence(tmp_path: Path) -> None:
    said = "[Errno 28] No space left on device: 'model.safetensors'"
    with pytest.raises(UserError, match="The disk is full"), disk_errors(tmp_path):
        raise shutil.Error([("model.safetensors", "out/model.safetensors", said)])
