"""The parts of the GPU check on the CPU, in small: they run, agree with themselves and name what
they measured."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from remnant.flow.store import Store

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu_check.py"
SMALL = (
    *(
        "corpus.0.forget_docs=3",
        "corpus.0.retain_docs=4",
        "corpus.0.holdout_docs=3",
        "corpus.0.answer_tokens=8",
        "quantizers=['int4']",
    ),
    *(
        "train.hidden=32",
        "train.layers=1",
        "train.heads=2",
        "train.kv_heads=2",
        "train.intermediate=64",
        "train.steps=2",
    ),
    *(f"unlearn.{i}.{setting}" for i in (0, 1) for setting in ("steps=2", "probe_every=2")),
)


@pytest.fixture(scope="module")
def check() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cpu_agrees_with_itself(check: Any) -> None:
    assert check.agreement("cpu") == {"max_weight_difference": 0.0, "equal_codes": 1.0}


def test_both_steps_are_timed(check: Any) -> None:
    found = check.step_seconds("cpu", hidden=64, layers=1)
    assert found["parameters"] > 100_000
    assert found["plain_step_seconds"] > 0 < found["sure_step_seconds"]


@pytest.mark.slow
def test_the_larger_lab_runs_to_its_recoveries(check: Any, tmp_path: Path) -> None:
    found = check.larger_lab(Store(tmp_path / "runs").open(), SMALL)
    assert {
        f"npo_gdr {weights} int4 {metric}"
        for weights in ("bf16", "fp32")
        for metric in ("verbmem", "knowmem_forget")
    } <= set(found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends_well(
    check: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    check.main()
    said = capsys.readouterr().out.splitlines()
    assert "There is no GPU here" in said[0]
    assert json.loads(said[-1]) == {"skipped": "no GPU"}
