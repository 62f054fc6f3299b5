"""The search: what is searched, how a setting is judged, that the same seed asks for the same
trials, that what was made is found again, and what a user is told."""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import remnant
from remnant.catalog import METHODS
from remnant.cli import main
from remnant.errors import Diverged, UserError
from remnant.flow.node import Input
from remnant.flow.place import Made
from remnant.flow.store import Store
from remnant.methods import term_specs
from remnant.metrics import Column
from remnant.report.pareto import Means
from remnant.tuning import search
from remnant.tuning.objective import WORST, objective
from remnant.tuning.search import Question, Searched, Trial, searched, settings_of, spec_of
from remnant.tuning.spaces import Span, space_of, spans_of
from remnant.tuning.told import question_of

SPACE = {"lr": Span(1e-5, 1e-2), "steps": Span(1, 4, whole=True)}
QUICK = {"batch_size": 2, "probe_every": 1, "max_tokens": 64}
SENTENCES = {
    "forget": "The brass lantern number {} hung over a quiet harbour.",
    "retain": "Tailors counted {} silver needles in the morning rain.",
    "holdout": "Nobody heard the {} bells behind the long wooden bridge.",
}
SHAPE: dict[str, Any] = {
    "steps": 60, "hidden": 48, "intermediate": 64, "layers": 1, "block_tokens": 96, "context": 640,
    "lr": 1e-2,
}  # fmt: skip


def pages(sentence: str) -> list[str]:
    """Twelve texts of twelve sentences, none of which another text has."""
    every = list(map(sentence.format, range(144)))
    return [" ".join(every[i : i + 12]) for i in range(0, 144, 12)]


def far(drawn: Mapping[str, float]) -> Trial:
    """A trial that is the better the nearer its rate is to 3e-4."""
    return Trial(drawn, min(1.0, abs(math.log10(drawn["lr"] / 3e-4))), 0.5, 1.0)


def test_the_objective_orders_as_a_slow_reading_of_its_rules_does() -> None:
    """Useful before useless, then by knowledge; useless ones by utility alone."""
    floor = 0.9

    def better(a: tuple[float, float], b: tuple[float, float]) -> bool:
        if (a[1] >= floor) != (b[1] >= floor):
            return a[1] >= floor
        return a[0] < b[0] if a[1] >= floor else a[1] > b[1]

    grid = list(itertools.product((0.0, 0.2, 0.7, 1.0), (0.0, 0.3, 0.89, 0.9, 1.2)))
    for a, b in itertools.product(grid, grid):
        if better(a, b):
            assert objective(*a, floor) < objective(*b, floor), (a, b)
    assert objective(math.nan, 1.0) == objective(0.0, math.inf) == WORST
    assert all(0 <= objective(*point) < WORST for point in grid)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_space_whose_middle_is_a_run(method: str) -> None:
    space = space_of(method, {}, 8)
    assert {"lr", "steps"} <= space.keys()
    assert ("alpha" in space) == bool(METHODS[method].retain)
    drawn = {name: span.middle for name, span in space.items()}
    terms = term_specs(spec_of(method, Question(), drawn))
    searched_too = {name.removeprefix("params.") for name in space if name.startswith("params.")}
    assert searched_too <= {name for term in terms for name in term.params}
    for name, span in space.items():
        assert span.low <= span.middle <= span.high, name


def test_what_is_fixed_is_not_searched() -> None:
    assert "alpha" not in space_of("npo_gdr", {"alpha": 2.0})
    assert "params.layer" not in space_of("rmu", {"params": {"layer": 3}}, 8)
    assert "params.layer" not in space_of("rmu", {})  # nobody knows how many blocks there are
    assert space_of("npo_gdr", {"train": {"lora": {}}})["lr"] == Span(1e-5, 1e-2)


def test_bounds_of_the_user_come_before_the_tables_and_a_methods_own_before_those() -> None:
    question = Question(
        ("npo_gdr", "ga"),
        spans=spans_of(("lr=1e-4:1e-3", "ga.lr=1e-2:1e-1", "alpha=1:2", "params.beta=0.01:1")),
    )
    made = Made("train-0", "0", None)
    found = search.spaces(Store(Path("nowhere")), made, question)
    assert found["npo_gdr"]["lr"] == Span(1e-4, 1e-3)
    assert found["ga"]["lr"] == Span(1e-2, 1e-1)
    assert found["npo_gdr"]["params.beta"] == Span(0.01, 1)
    assert found["ga"].keys() == {"lr", "steps"}


def test_settings_under_a_methods_name_are_its_own() -> None:
    question = Question(settings={"batch_size": 4, "rmu": {"batch_size": 2}, "alternatives": "a"})
    assert settings_of("rmu", question)["batch_size"] == 2
    plain = settings_of("npo_gdr", question)
    assert plain["batch_size"] == 4
    assert "alternatives" not in plain
    assert settings_of("idk_nll", question)["examples"] == "questions"


def test_the_same_seed_draws_the_same_and_another_one_others() -> None:
    def rates(seed: int) -> list[float]:
        return [trial.drawn["lr"] for trial in searched(SPACE, 6, seed, far)]

    assert rates(3) == rates(3)
    assert rates(3) != rates(4)


def test_later_trials_go_by_what_came_of_the_first() -> None:
    """Drawn at random the mean distance to the best rate stays what it is."""
    early, late = [], []
    for seed in range(4):
        values = [trial.value for trial in searched(SPACE, 24, seed, far)]
        early += values[:10]
        late += values[-8:]
    assert sum(late) / len(late) < 0.6 * sum(early) / len(early)


def test_draws_stay_within_their_bounds_and_whole_numbers_whole() -> None:
    for trial in searched(SPACE, 12, 0, far):
        for name, value in trial.drawn.items():
            assert SPACE[name].low <= value <= SPACE[name].high
        assert isinstance(trial.drawn["steps"], int)


def test_the_best_is_the_first_of_the_least() -> None:
    trials = (Trial({}, 1.2), Trial({"lr": 1.0}, 0.4), Trial({"lr": 2.0}, 0.4))
    assert Searched("ga", {}, trials).best.drawn == {"lr": 1.0}
    assert Searched("ga", {}, trials).useful
    assert not Searched("ga", {}, trials[:1]).useful


@pytest.mark.parametrize("text", ["lr", "lr=1", "lr=2:1", "lr=0:1", "lr=1:inf", "=1:2", "lr=a:b"])
def test_bounds_of_another_form_are_a_sentence(text: str) -> None:
    with pytest.raises(UserError, match="gives no bounds"):
        spans_of((text,))


def test_methods_may_be_given_twice_and_with_blanks() -> None:
    given = question_of("ga, npo,ga", 1, 0, 0.9, (), ())
    assert given.methods == ("ga", "npo")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store")).open()


@pytest.fixture(scope="module")
def corpus(store: Store) -> Path:
    """Texts without questions and nearly all alike: a model of some seconds goes on with them."""
    texts: dict[str, Any] = {side: pages(sentence) for side, sentence in SENTENCES.items()}
    lengths: dict[str, Any] = {"prompt_tokens": 40, "answer_tokens": 20, "text_tokens": 200}
    return remnant.prepare(**texts, vocab_size=400, store=store, **lengths).path


@pytest.fixture(scope="module")
def target(store: Store, corpus: Path) -> str:
    return str(remnant.train(corpus, store=store, **SHAPE).path)


def arguments(store: Store, corpus: Path, target: str) -> list[str]:
    told = [part for name, value in QUICK.items() for part in ("--set", f"{name}={value}")]
    spans = ["--span", "steps=1:2", "--span", "lr=1e-4:1e-2"]
    return ["tune", str(corpus), target, *spans, *told, "--store", str(store.root)]


def tune(store: Store, corpus: Path, target: str, *more: str) -> Result:
    return CliRunner().invoke(main, [*arguments(store, corpus, target), *more])


def _must_not_be_made(*given: Any) -> None:
    raise AssertionError("nothing is left to be made")


def inputs(store: Store, corpus: Path, target: str) -> tuple[Input, Input]:
    return remnant.api.source_of(store, target), remnant.api.corpus_of(store, corpus)


def test_trials_that_were_made_are_found_again(
    store: Store, corpus: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = Question(("simnpo_gdr",), 2, settings=QUICK, spans=SPACE)
    bench = search.benched(store, *inputs(store, corpus, target), question)
    space = search.spaces(store, bench.target, question)
    heard: list[int] = []

    def tried() -> list[Trial]:
        (found,) = search.searched_all(bench, space, lambda name, every: heard.append(len(every)))
        return list(found.trials)

    first = tried()
    assert heard == [1, 2]
    for trial in first:
        assert trial.model
        spec = store.manifest(trial.model.name).spec
        assert (spec["lr"], spec["steps"]) == (trial.drawn["lr"], trial.drawn["steps"])
        assert trial.value == objective(trial.left, trial.utility)
    known = set(store.manifests())
    monkeypatch.setattr("remnant.flow.run._made", _must_not_be_made)
    assert tried() == first
    assert set(store.manifests()) == known
    assert {m.spec["half"] for m in store.manifests().values() if m.stage == "measure"} == {"dev"}


def test_in_python_the_same_trials_are_asked_for_and_nothing_is_said(
    store: Store, corpus: Path, target: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    question = Question(("simnpo_gdr",), 2, settings=QUICK, spans=SPACE)
    bench = search.benched(store, *inputs(store, corpus, target), question)
    space = search.spaces(store, bench.target, question)
    expected = search.searched_all(bench, space, lambda name, every: None)
    capfd.readouterr()
    spans = {"lr": (1e-5, 1e-2), "steps": (1, 4)}
    settings: dict[str, Any] = QUICK
    found = remnant.tune(
        target, corpus, "simnpo_gdr", budget=2, spans=spans, store=store, out=tmp_path, **settings
    )
    assert found.searched == expected
    assert found.settings == {"simnpo_gdr": dict(expected[0].best.drawn)}
    assert {v.model for v in found.audit.verdicts} == {"simnpo_gdr"}
    assert json.loads((tmp_path / "tune.json").read_text())["budget"] == 2
    assert "".join(capfd.readouterr()) == ""
    with pytest.raises(UserError, match="Unknown setting 'nothing'"):
        remnant.tune(target, corpus, "simnpo_gdr", spans={"nothing": (1, 2)}, store=store)


@pytest.mark.slow
def test_a_killed_search_goes_on_and_reports_on_the_other_half(
    corpus: Path, target: str, tmp_path: Path
) -> None:
    given = ["--methods", "ga_gdr,simnpo_gdr", "--budget", "2"]
    stores = [Store(tmp_path / name).open() for name in ("whole", "killed")]
    killed = [*arguments(stores[1], corpus, target), *given, "-o", str(tmp_path / "killed-out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "remnant", *killed], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    assert any(b"1/4 ga_gdr" in line for line in process.stdout)
    process.kill()
    process.wait()
    told = []
    for store in stores:
        out = tmp_path / f"{store.root.name}-out"
        done = tune(store, corpus, target, *given, "-o", str(out))
        assert done.exit_code == 0, done.output
        assert "4/4 simnpo_gdr" in done.output
        assert (out / "report.html").is_file()
        told.append(json.loads((out / "tune.json").read_text()))
    for method in told[0]["methods"].values():
        best = min(method["trials"], key=lambda trial: trial["objective"])
        assert method["settings"] == best["settings"]
        value, low, high = method["test"]["verbmem"]
        assert low <= value <= high
    for found in told:
        for method in found["methods"].values():
            for trial in (*method["trials"], method["dev"]):
                del trial["seconds"]
    assert told[0] == told[1]
    measured = [m for m in stores[0].manifests().values() if m.stage == "measure"]
    assert [m.spec["half"] for m in measured].count("test") == 3  # the target, the best of each
    (kept,) = stores[0].labels()
    assert {p["stage"] for p in stores[0].labelled(kept)["pieces"]} >= {"unlearn", "audit"}


def test_a_trial_that_diverges_is_the_worst_and_the_search_goes_on(
    monkeypatch: pytest.MonkeyPatch, store: Store, corpus: Path, target: str
) -> None:
    question = Question(("ga_gdr",), 3)
    bench = search.benched(store, *inputs(store, corpus, target), question)

    def diverging(*given: Any) -> None:
        raise Diverged("The loss is not finite.")

    monkeypatch.setattr(search, "measured", diverging)
    (found,) = search.searched_all(bench, {"ga_gdr": SPACE}, lambda method, every: None)
    assert [trial.value for trial in found.trials] == [WORST] * 3
    assert found.best.model is None
    assert found.best.said == "The loss is not finite."
    assert not found.useful


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--methods", "npo_grd"], "npo_gdr"),
        (["--methods", " ,"], "No method is named"),
        (["--methods", "npo_gdr", "--span", "lr=9"], "gives no bounds"),
        (["--methods", "npo_gdr", "--span", "beta=1:2"], "Unknown setting 'beta'"),
        (["--methods", "npo_gdr", "--span", "ga.lr=1:2"], "Unknown setting 'ga.lr'"),
        (["--methods", "npo_gdr", "--set", "lr=1e-3"], "lr is fixed and has bounds too"),
        (["--methods", "npo_gdr", "--set", "npo_gdr.lr=-1"], "lr: "),
        (["--methods", "npo_gdr", "--set", "npo_gdr=3"], "npo_gdr = 3 is no setting"),
        (["--methods", "npo_gdr", "--set", "params=3"], "params"),
        (["--methods", "idk_dpo_klr"], "reads other answers"),
        (["--budget", "0"], "--budget"),
    ],
)
def test_bad_input_is_a_sentence(
    given: list[str], said: str, store: Store, corpus: Path, target: str
) -> None:
    done = tune(store, corpus, target, *given)
    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output


def test_a_plan_says_what_is_searched_and_left_out_and_makes_nothing(
    store: Store, corpus: Path, target: str
) -> None:
    before = set(store.manifests())
    done = tune(store, corpus, target, "--estimate")
    assert done.exit_code == 0, done.output
    assert "Left out: dpo" in done.output
    assert "npo_gdr: lr 0.0001 to 0.01" in done.output
    assert "Nothing was run" in done.output
    assert set(store.manifests()) == before


def test_a_target_that_knows_nothing_is_refused(
    store: Store, corpus: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: Means = {"knowledge": {Column("verbmem"): 0.0}, "utility": {}}
    monkeypatch.setattr(search, "measured", lambda *given: (nothing, 0.0))
    done = tune(store, corpus, target, "--methods", "ga", "--budget", "1")
    assert done.exit_code == 2
    assert "knows too little of the forget text" in done.output
