"""One deletion request, from raw text to files and a verdict."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import remnant
from remnant.cli import main
from remnant.deletion import Request, Trial, forget, tried
from remnant.errors import UserError
from remnant.flow.store import Store
from remnant.lab.corpus import generate
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
    store: Store, target: str, texts: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    request = Request(target, texts)
    done = forget(request, tmp_path / "out", store, 0.0, {**QUICK, **LENGTHS, "lr": 1e-3})
    assert {p.name for p in done.out.iterdir()} >= {"model", "report.html", "summary.json"}
    assert [v.form for v in done.audit.verdicts] == ["full", "int8", "int4", "nf4"]
    assert not done.audit.passed  # two steps forget nothing
    with pytest.raises(UserError, match="exists already"):
        forget(request, tmp_path / "out", store, 0.0, {})


def test_without_text_to_keep_nothing_begins(target: str, tmp_path: Path, store: Store) -> None:
    with pytest.raises(UserError, match="Without text that the model must keep"):
        forget(Request(target, {"forget": ("a.txt",)}), tmp_path / "out", store, 1.0, {})
    assert not (tmp_path / "out").exists()


def test_what_no_runtime_opens_is_refused_before_anything_is_trained(
    store: Store, target: str, texts: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="No runtime opens"):
        forget(Request(target, texts, deploy=("int4",)), tmp_path / "out", store, 1.0, LENGTHS)
    assert not (tmp_path / "out").exists()


def test_rates_are_tried_from_the_mildest_on_as_long_as_the_time_lasts(
    store: Store, target: str, corpus: remnant.Corpus
) -> None:
    def rates(found: tuple[Trial, ...]) -> list[float]:
        return [trial.rate for trial in found]

    one = tried(target, corpus, store, 0.0, QUICK)
    assert rates(one) == [1e-5]
    several = tried(target, corpus, store, 1e6, QUICK)
    assert rates(several) == [1e-5, 3e-5, 1e-4, 3e-4][: len(several)]
    assert len(several) > 1
    assert several[0].model.path == one[0].model.path
    # What is decided is read from what was recorded: going on decides alike, and makes nothing.
    limit = several[0].seconds + several[0].seconds / 2
    assert rates(tried(target, corpus, store, limit, QUICK)) == rates(one)


@pytest.mark.parametrize(
    ("given", "said"),
    [(["--budget", "soon"], "30m or 2h"), ([], "Without text that the model must keep")],
)
def test_bad_requests_are_a_sentence(given: list[str], said: str, tmp_path: Path) -> None:
    asked = ["forget", "m", "--forget", "a.txt", "-o", str(tmp_path / "out"), *given]
    done = CliRunner().invoke(main, [*asked, "--store", str(tmp_path / "store")])
    assert done.exit_code == 2
    assert said in done.output
