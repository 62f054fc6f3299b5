"""What is asked before anything is made: that a never-read model is another one than the target,
that a server answers; and that a copy of an artefact is known as that artefact."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from remnant import api, cli
from remnant.errors import UserError
from remnant.evaluate import endpoint
from remnant.evaluate.ready import check_ready
from remnant.flow.neverread import check_unread, weights_of
from remnant.flow.place import Made, Outside, given
from remnant.flow.plan import measure_node, plan
from remnant.flow.store import MANIFEST, RECORD, Store, copied
from remnant.records import CorpusSpec, EndpointSpec, MeasureSpec, RunSpec, SweepSpec
from remnant.score import score_file
from tests.test_account import sealed

FILES = {"config.json": "{}", "model.safetensors": "weights", "tokenizer.json": "{}"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


@pytest.fixture
def target(store: Store) -> str:
    return sealed(store, "train", {}, FILES)


def folder(place: Path, **more: str) -> Path:
    """A model folder from outside, with the target's files or others."""
    place.mkdir()
    for name, text in {**FILES, **more}.items():
        (place / name).write_text(text)
    return place


def test_a_never_read_model_that_is_the_target_is_refused_by_its_weights(
    store: Store, target: str, tmp_path: Path
) -> None:
    known = given(store, target, "train")
    alike = Outside(str(folder(tmp_path / "alike", **{"README.md": "another one"})))
    other = Outside(str(folder(tmp_path / "other", **{"model.safetensors": "others"})))
    assert alike.digest != known.digest
    assert weights_of(store, alike) == weights_of(store, known) != weights_of(store, other)
    for same in (known, alike):
        with pytest.raises(UserError, match="is the target itself"):
            check_unread(store, {"target": known, "retrain": same})
    with pytest.raises(UserError, match="is the model that is judged"):
        check_unread(store, {"target": known, "unlearned": other, "retrain": other})
    check_unread(store, {"target": known, "unlearned": alike, "retrain": other})
    check_unread(store, {"target": known})


def test_audit_gate_and_sweep_refuse_it_before_they_measure(store: Store, tmp_path: Path) -> None:
    one, copy = folder(tmp_path / "one"), folder(tmp_path / "copy", note="x")
    third = folder(tmp_path / "third", **{"model.safetensors": "others"})
    corpus = sealed(store, "prepare", {}, {"corpus.json": "{}"})
    policy = tmp_path / "policy.toml"
    policy.write_text('forms = ["full"]')
    rest = [one, third, "--retrain", copy, "--data", corpus, "--store", store.root]
    for asked in (["audit", *rest], ["gate", *rest, "--policy", policy]):
        done = CliRunner().invoke(cli.main, list(map(str, asked)))
        assert done.exit_code == 2, done.output
        assert "is the target itself" in done.output
    sweep = SweepSpec(
        name="s", corpus=(CorpusSpec(lab="news"),), unlearn=(RunSpec(method="ga_gdr"),),
        target=str(one), retrain=str(copy),
    )  # fmt: skip
    with pytest.raises(UserError, match="is the target itself"):
        plan(sweep)
    assert not store.matching("", "measure")


def test_a_log_is_not_scored_against_itself(tmp_path: Path) -> None:
    def written(name: str, forget: float) -> Path:
        sides = (("forget", forget), ("holdout", 0.5))
        rows = [
            {"metric": "privleak", "split": side, "id": f"{side}{i}", "value": i + shift}
            for side, shift in sides
            for i in range(12)
        ]
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return tmp_path / name

    one, copy = written("one.jsonl", 0.0), written("copy.jsonl", 0.0)
    with pytest.raises(UserError, match="is the log that is scored"):
        score_file(one, retrain=copy)
    assert score_file(one, retrain=written("other.jsonl", 1.0))


def test_a_server_that_is_down_is_found_before_other_models_are_measured(
    store: Store, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.0)
    monkeypatch.setattr("remnant.api.make", lambda *_, **__: pytest.fail("something was made"))
    corpus = sealed(store, "prepare", {}, {"corpus.json": "{}"})
    down = "http://127.0.0.1:9/v1"  # the port that nobody listens at
    with pytest.raises(UserError, match="The server at http"):
        api.audit(target, down, corpus, store=store)


def test_a_server_that_is_asked_at_once_is_not_asked_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[EndpointSpec] = []
    monkeypatch.setattr(endpoint, "Endpoint", asked.append)
    corpus = Made(sealed(store, "prepare", {}, {"corpus.json": "{}"}), "ab")
    spec = MeasureSpec(endpoint=EndpointSpec(url="http://127.0.0.1:9/v1"))
    served, other = measure_node(spec, None, corpus), measure_node(MeasureSpec(), corpus, corpus)
    check_ready([served, other])
    assert asked == []
    check_ready([other, served])
    assert asked == [spec.endpoint]


@pytest.mark.parametrize("record", [RECORD, MANIFEST])
def test_a_copy_of_an_artefact_is_that_artefact(
    store: Store, target: str, tmp_path: Path, record: str
) -> None:
    copied(store.path(target), store.manifest(target), tmp_path / "out")
    (tmp_path / "out" / RECORD).rename(tmp_path / "out" / record)
    found = given(store, str(tmp_path / "out"), "train")
    assert isinstance(found, Made)
    assert (found.name, found.digest) == (target, store.manifest(target).digest)
    # Elsewhere nobody knows it.
    elsewhere = Store(tmp_path / "elsewhere").open()
    assert isinstance(given(elsewhere, str(tmp_path / "out"), "train"), Outside)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model.safetensors", "weighty"),  # as long as before
        ("model-2.safetensors", "more"),
        ("tokenizer.json", None),
        (RECORD, "{"),
        (RECORD, "[]"),
        (RECORD, '{"stage": "../..", "key": "x"}'),
    ],
)
def test_a_copy_that_was_changed_is_a_model_from_outside(
    store: Store, target: str, tmp_path: Path, name: str, text: str | None
) -> None:
    copied(store.path(target), store.manifest(target), tmp_path / "out")
    place = tmp_path / "out" / name
    place.unlink() if text is None else place.write_text(text)
    assert isinstance(given(store, str(tmp_path / "out"), "train"), Outside)


def test_a_measurement_of_a_copy_is_the_one_that_is_there(
    store: Store, target: str, tmp_path: Path
) -> None:
    shutil.copytree(store.path(target), tmp_path / "out")
    corpus = given(store, sealed(store, "prepare", {}, {"corpus.json": json.dumps({})}), "prepare")
    names = {
        measure_node(MeasureSpec(), given(store, str(place), "train"), corpus).name
        for place in (store.path(target), tmp_path / "out")
    }
    assert len(names) == 1
