"""Keys, plans, workers: what is made once, what goes on after a kill, what two runs at once do."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from remnant.catalog import LOSSES
from remnant.cli import main
from remnant.corpus import METRICS
from remnant.errors import UserError
from remnant.flow import run as running
from remnant.flow.failures import failures
from remnant.flow.plan import Node, plan, prepare_node, train_node
from remnant.flow.store import Store
from remnant.flow.sweepfile import expanded, read_sweep
from remnant.formats.table import FORMATS
from remnant.methods import LOSS_READS, METRIC_READS, TRANSFORM_READS, shown
from remnant.parsing import parse
from remnant.records import (
    AuditSpec,
    Manifest,
    MeasureSpec,
    PrepareSpec,
    Record,
    Rule,
    SweepSpec,
    TrainSpec,
    TransformSpec,
    UnlearnSpec,
)
from remnant.resolve import resolve
from remnant.verbs import sweep_path
from tests.conftest import unheard

SWEEP = """
name = "small"
quantizers = ["int4"]
[[corpus]]
lab = "news"
forget_docs = 6
retain_docs = 6
holdout_docs = 6
prompt_tokens = 40
answer_tokens = 20
vocab_size = 400
max_items = 4
[train]
steps = 30
hidden = 64
heads = 2
kv_heads = 2
intermediate = 64
layers = 1
block_tokens = 128
context = 640
[[unlearn]]
method = "ga_gdr"
steps = 6
[measure]
metrics = ["muse"]
[rule]
resamples = 50
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SWEEP)
    return path


def start(sweep: Path, store: Path, *more: str) -> "subprocess.Popen[str]":
    command = [
        sys.executable,
        "-m",
        "remnant.cli",
        "run",
        str(sweep),
        "--store",
        str(store),
        "--workers",
        "1",
        *more,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # Behind a shell in the background Ctrl-C is ignored, and a child inherits that.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        preexec_fn=listen,
    )


def hashes(made: Manifest) -> dict[str, str]:
    return {file: record.sha256 for file, record in made.files.items()}


def content(store: Path) -> dict[str, Any]:
    """What was made, by artefact and file, without the circumstances in the manifests."""
    found = Store(store).manifests()
    return {name: hashes(m) for name, m in found.items()}


def test_a_killed_run_and_two_that_share_the_rest_make_the_same_files(
    sweep: Path, tmp_path: Path
) -> None:
    nodes = plan(read_sweep(sweep))
    whole, cut = Store(tmp_path / "whole").open(), Store(tmp_path / "cut")
    assert running.work(whole, nodes, lambda _: unheard) == []
    assert set(whole.manifests()) == {n.name for n in nodes}
    killed(start(sweep, cut.root), cut.root)
    assert len(content(cut.root)) < len(content(whole.root))
    other = start(sweep, cut.root)
    assert running.work(cut.open(), nodes, lambda _: unheard) == []
    said, _ = other.communicate(timeout=200)
    assert other.returncode == 0, said
    assert content(cut.root) == content(whole.root)
    assert all(cut.faults(name) == [] for name in cut.manifests())
    assert [p.name for p in (cut.root / "partial").iterdir() if p.is_dir()] == []
    summaries = [reported(sweep, store.root) for store in (whole, cut)]
    assert summaries[0] == summaries[1]
    page = (cut.root / "reports" / "small" / "report.html").read_text()
    assert "Left out" not in page


def killed(process: "subprocess.Popen[str]", store: Path) -> None:
    """Kill a run that is training, and wait for its worker to see it."""
    deadline = time.monotonic() + 100
    while not list(store.glob("partial/train-*/steps.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait(20)
    alive = ["pgrep", "-f", f"remnant.flow.run {store}"]
    deadline = time.monotonic() + 60
    while subprocess.run(alive, capture_output=True).returncode == 0:
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.1)


def reported(sweep: Path, store: Path) -> Any:
    """The numbers of a run that finds nothing to do, and of the report that is asked for then."""
    where = ["--store", str(store)]
    again = CliRunner().invoke(main, ["run", str(sweep), *where])
    assert again.exit_code == 0, again.output
    assert "0 to be made" in again.output
    file = store / "reports" / "small" / "summary.json"
    found = json.loads(file.read_text())
    shown = CliRunner().invoke(main, ["report", "small", *where, "--examples"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(file.read_text()) == found
    return found


def test_ctrl_c_saves_and_says_so(sweep: Path, tmp_path: Path) -> None:
    process = start(sweep, tmp_path / "s", "--set", "train.steps=5000")
    deadline = time.monotonic() + 100
    while (
        not list((tmp_path / "s").glob("partial/train-*/steps.jsonl"))
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stdout is not None
    output = process.stdout.read()
    assert "The same command goes on." in output
    assert "Traceback" not in output
    assert list((tmp_path / "s").glob("partial/train-*/resume.pt"))


def test_a_piece_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    store = Store(tmp_path).open()
    good = prepare_node(
        PrepareSpec(
            lab="news",
            forget_docs=4,
            retain_docs=4,
            holdout_docs=4,
            prompt_tokens=30,
            answer_tokens=20,
            vocab_size=400,
        )
    )
    bad = train_node(TrainSpec(architecture="nothing", steps=1), good)
    other = train_node(
        TrainSpec(steps=1, hidden=32, heads=2, kv_heads=2, intermediate=32, layers=1), good
    )
    failed = running.work(store, [good, bad, other], lambda node: unheard)
    assert [n.name for n in failed] == [bad.name]
    assert store.has(other.name)
    assert "No model of architecture 'nothing'" in failures(store, [bad])[bad.name]["message"]


def test_a_crash_leaves_nothing_under_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path).open()
    node = prepare_node(
        PrepareSpec(
            lab="news",
            forget_docs=4,
            retain_docs=4,
            holdout_docs=4,
            prompt_tokens=30,
            answer_tokens=20,
            vocab_size=400,
        )
    )
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda a, b: (_ for _ in ()).throw(RuntimeError("power cut")))
        with pytest.raises(RuntimeError, match="power cut"):
            running.make(store, node, unheard)
    assert not store.has(node.name)
    assert list((tmp_path / "objects").iterdir()) == []
    assert running.make(store, node, unheard) == store.path(node.name)


def test_damage_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path).open()
    node = prepare_node(
        PrepareSpec(
            lab="news",
            forget_docs=4,
            retain_docs=4,
            holdout_docs=4,
            prompt_tokens=30,
            answer_tokens=20,
            vocab_size=400,
        )
    )
    path = running.make(store, node, unheard)
    assert path is not None
    (path / "raw" / "forget.json").write_text("[]")
    assert store.faults(node.name) == ["raw/forget.json"]


SPECS: list[Record] = [
    PrepareSpec(lab="news"),
    TrainSpec(),
    UnlearnSpec(method="ga"),
    TransformSpec(use="rtn"),
    MeasureSpec(),
    Rule(),
    AuditSpec(members={}),
]


def other_value(spec: BaseModel, name: str) -> Any:
    """A value of the field's type that differs from the present one."""
    value, field = getattr(spec, name), type(spec).model_fields[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str) or value is None:
        choices = [
            c
            for a in (field.annotation, *get_args(field.annotation))
            for c in get_args(a)
            if isinstance(c, str) and c != value
        ]
        return (
            choices[0]
            if choices
            else (f"{value}x" if isinstance(value, str) or "str" in str(field.annotation) else 7.0)
        )
    return (
        {**value, "x": 1}
        if isinstance(value, dict)
        else "changed"
        if isinstance(value, BaseModel)
        else (*value, "x")
    )


@pytest.mark.filterwarnings(
    "ignore:Pydantic serializer warnings"
)  # the changed values need not be valid
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: type(s).__name__)
def test_every_field_of_every_spec_changes_the_key_or_is_marked(spec: Record) -> None:
    for name, field in type(spec).model_fields.items():
        changed = spec.model_copy(update={name: other_value(spec, name)})
        marked = bool(field.json_schema_extra)
        assert (changed.identity() != spec.identity()) != marked, name


def test_the_key_follows_inputs_methods_and_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = prepare_node(PrepareSpec(lab="news"))
    train = train_node(TrainSpec(), corpus)
    assert train_node(TrainSpec(), corpus).name == train.name
    assert train_node(TrainSpec(), prepare_node(PrepareSpec(lab="books"))).name != train.name
    assert Node("train", TrainSpec(), {"corpus": corpus}, {"m": "1"}).name != train.name
    monkeypatch.setattr("remnant.flow.node.STAGE_VERSIONS", {"prepare": 1, "train": 2})
    assert train_node(TrainSpec(), prepare_node(PrepareSpec(lab="news"))).name != train.name


def test_a_users_function_is_known_by_its_source(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def soft(forget, *, temperature: float = 2.0):\n    return forget.mean_logp() / "
        "temperature\n"
    )
    first = resolve("loss", f"{mine}:soft", LOSSES, ("forget",), {"temperature": 3})
    assert first.reads == ("forget",)
    assert dict(first.params) == {"temperature": 3.0}
    mine.write_text(mine.read_text() + "# changed\n")
    assert resolve("loss", f"{mine}:soft", LOSSES, ("forget",), {}).identity != first.identity


@pytest.mark.parametrize(
    ("use", "params", "message"),
    [
        ("gd", {}, "Unknown loss 'gd'"),
        ("npo", {"bta": 1}, "Unknown parameter of loss 'npo' 'bta'. Did you mean beta"),
        ("npo", {"beta": "x"}, "Parameter 'beta' of loss 'npo'"),
        ("MINE:sof", {}, "Did you mean soft"),
        ("MINE:greedy", {}, "reads 'elephant', which is not on offer"),
        ("nowhere.py:f", {}, "does not exist"),
        ("no.such.module:f", {}, "not installed"),
    ],
)
def test_what_cannot_be_resolved_is_said(
    use: str, params: dict[str, Any], message: str, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def soft(forget):\n    return forget\n\ndef greedy(elephant):\n    return elephant\n"
    )
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        resolve(
            "loss", use.replace("MINE", str(mine)), LOSSES, ("forget", "ref_forget_logp"), params
        )


def test_every_table_line_leads_to_a_function() -> None:
    for table, reads in (
        (LOSSES, LOSS_READS),
        (FORMATS, TRANSFORM_READS),
        (METRICS, METRIC_READS),
    ):
        for name in table:
            assert callable(resolve("method", name, table, reads, {}).load())


def test_a_sweep_has_no_piece_twice_and_each_after_its_inputs(sweep: Path) -> None:
    nodes = plan(read_sweep(sweep))
    names = [n.name for n in nodes]
    assert len(names) == len(set(names)) == 1 + 2 + 1 + 3 + 6 + 1 + 1 + 1
    for i, node in enumerate(nodes):
        assert all(s.name in names[:i] for s in node.inputs.values() if isinstance(s, Node))


def test_two_runs_of_one_name_are_refused(sweep: Path) -> None:
    sweep.write_text(SWEEP + '[[unlearn]]\nmethod = "ga_gdr"\nlr = 1.0\n')
    with pytest.raises(UserError, match="Two unlearning runs are named 'ga_gdr'"):
        plan(read_sweep(sweep))


def test_packaged_sweeps_are_valid() -> None:
    for name in ("demo", "demo-full", "thresholds"):
        assert plan(read_sweep(sweep_path(name)))


def test_parse_finds_all_faults_at_once() -> None:
    with pytest.raises(UserError) as caught:
        parse(
            SweepSpec,
            {
                "name": 3,
                "corpus": [{"lab": "news", "sed": 1}],
                "unlearn": [{"method": "ga", "terms": [{"use": "ga"}]}],
            },
            "it",
        )
    assert "3 faults" in str(caught.value)
    assert "Did you mean seed" in str(caught.value)
    assert "either a method or a list of terms" in str(caught.value)


def test_a_grid_of_settings_becomes_one_run_per_combination() -> None:
    table = {
        "name": "{method} p {train.sure.percentile}",
        "lr": 1e-3,
        "grid": {"method": ["ga", "npo"], "train.sure.percentile": [50, 90], "steps": 7},
    }
    runs = expanded(table)
    assert [r["name"] for r in runs] == [
        f"{m} p {p} steps 7" for m in ("ga", "npo") for p in (50, 90)
    ]
    assert runs[1] == {
        "name": "ga p 90 steps 7",
        "lr": 1e-3,
        "method": "ga",
        "train": {"sure": {"percentile": 90}},
        "steps": 7,
    }
    assert expanded({"method": "ga"}) == [{"method": "ga"}]


def test_every_quantized_unlearned_model_is_explained_once(sweep: Path) -> None:
    nodes = plan(read_sweep(sweep))
    found = [(n.label.model, n.label.form, n.label.seed) for n in nodes if n.stage == "explain"]
    expected = {
        (n.label.model, n.label.form, n.label.seed) for n in nodes if n.stage == "transform"
    }
    assert set(found) == {place for place in expected if place[0] not in ("target", "retrain")}
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("use", "told"),
    [
        ("int4-g64-asym", "int4-g64-asym"),
        ({"use": "rtn", "params": {"bits": 3}}, "int3"),
        (
            {"use": "rtn", "params": {"granularity": "tensor"}, "skip": ["lm_head", "layers.0."]},
            "int4-tensor without layers.0",
        ),
        (
            {"use": "rtn", "params": {"granularity": "group", "group_size": 32, "scheme": "asym"}},
            "int4-g32-asym",
        ),
        (
            {"use": "gptq", "params": {"bits": 4}, "calibration_samples": 128},
            "gptq4 calibration_samples=128",
        ),
    ],
)
def test_quantizers_show_what_is_set_on_them(use: Any, told: str) -> None:
    assert shown(use if isinstance(use, str) else TransformSpec(**use)) == told
