"""The table of planted failures: a quick part on a smaller lab by default, all of it among the slow
tests; and its own parts."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
# What may go wrong: a model or its tokens, the texts and training; what a verdict is made of, and
# who answers.
KINDS = (
    "weights", "not finite", "special tokens", "end tokens", "prompt", "layers", "packed",
    "cut texts", "probe", "endings",
    "missing numbers", "one name", "hidden", "means", "server", "script",
)  # fmt: skip
# The smallest lab whose target still knows its text word for word: reports to forget, to keep,
# never read; steps of training.
SMALL = ((16, 14, 20), 110)


@pytest.fixture(scope="module")
def table() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("instrument_check")
    sys.path.remove(str(ROOT / "benchmarks"))


def part(table: Any, name: str) -> Any:
    return importlib.import_module(f"instrument.{name}")


def quick(table: Any) -> list[Any]:
    return [p for p in table.PLANTS if p.quick]


def not_passed(table: Any, plants: list[Any], work: Path) -> dict[str, Any]:
    """Those of the plants that read as forgotten or end in a fault, on the small lab."""
    lab = part(table, "lab").Lab(work, *SMALL)
    bench = part(table, "bench").Bench(lab, ROOT / "src", work / "tries")
    try:
        assert bench.right()["verbmem"] > 80
        assert bench.right()["auc"] < 5
        found = {table.key(p): table.acted(bench, p) for p in plants}
    finally:
        bench.close()
    return {name: (o.said, o.fault) for name, o in found.items() if not o.passed}


@pytest.mark.timeout(900)
def test_of_every_kind_one_plant_does_not_read_as_forgotten(table: Any, tmp_path: Path) -> None:
    first = list({p.kind: p for p in reversed(quick(table))}.values())
    assert len(first) >= 10
    assert not_passed(table, first, tmp_path) == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_quick_plant_reads_as_forgotten(table: Any, tmp_path: Path) -> None:
    assert len(quick(table)) >= 40
    assert not_passed(table, quick(table), tmp_path) == {}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_table_passes(
    table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["instrument_check", "--work", str(tmp_path)])
    assert table.main() == 0
    assert re.fullmatch(r"\d+ passed, 0 failed", capsys.readouterr().out.strip().splitlines()[-1])


def test_the_table_holds_every_kind_and_what_it_did_before(table: Any) -> None:
    kinds = [p.kind for p in table.PLANTS]
    assert len({table.key(p) for p in table.PLANTS}) == len(table.PLANTS)
    for kind in KINDS:
        assert kinds.count(kind) >= 1, kind
    assert kinds.count("honest") >= 12
    assert len(kinds) - kinds.count("honest") >= 40
    before = table.json.loads(table.BEFORE.read_text(encoding="utf-8"))
    assert set(before) == {table.key(p) for p in table.PLANTS}


def test_a_low_number_of_a_model_that_knows_reads_as_forgotten(table: Any) -> None:
    bench = part(table, "bench")
    right = {"verbmem": 90.0, "auc": 1.0}

    def read(*rows: str, code: int = 0, err: str = "") -> Any:
        return bench.read_measure(bench.Done(code, "\n".join(rows), err), right)

    near = read("│ verbmem │ 89.0 [80.0, 99.0] │ 48 │ ok │", "│ auc │ 2.0 [0.0, 3.0] │ 48 │ ok │")
    assert near.passed
    assert read("│ verbmem │ 0.0 [0.0, 0.0] │ 48 │ ok │").forgotten
    assert read(
        "│ verbmem │ 90.0 [0.0, 0.0] │ 48 │ ok │", "│ auc │ 50.0 [40.0, 60.0] │ 48 │ ok │"
    ).forgotten
    assert read("│ verbmem │ - │ 0 │ not measured: the weights are not finite │").passed
    assert read(code=2, err="remnant: The weights are not finite.").passed
    assert not read(code=1, err="Traceback (most recent call last):\nKeyError: 1").passed
    assert not read(code=1, err="").passed


def test_a_verdict_reads_as_forgotten_by_its_word_or_its_exit_code(table: Any) -> None:
    bench = part(table, "bench")

    def read(code: int | None, only: str = "", **words: str) -> Any:
        return bench.read_verdicts(
            [
                {"steps": [] if q == "full" else [q], "outcome": w, "reason": "so"}
                for q, w in words.items()
            ],
            code,
            only,
        )

    assert read(0, full="gone", int4="gone").forgotten
    assert read(4, full="gone", int4="unclear").forgotten
    assert read(0, full="unclear").forgotten
    assert not read(3, "int4", full="gone", int4="came back").forgotten
    assert read(3, full="known", int4="unclear").passed
    assert not read(4).passed


def test_the_slow_overlap_is_rouge(table: Any) -> None:
    from rouge_score import rouge_scorer

    slow, scorer = part(table, "slow"), rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    for truth, written in (
        ("seven brass lanterns", "Seven lanterns of brass"),
        ("a b c d", "b d a c"),
        ("no", "yes"),
        ("4821 needles", ""),
    ):
        assert slow.overlap(truth, written) == pytest.approx(
            scorer.score(truth, written)["rougeL"].fmeasure
        )


def test_the_bins_of_int4_give_the_target_back(table: Any, tmp_path: Path) -> None:
    """What the growing model rests on: clamped to the bins, other weights round to the same
    codes."""
    import torch

    from remnant.functional.quantizers import rtn

    torch.manual_seed(0)
    weight = torch.randn(16, 32)
    low, high = part(table, "lab").bins(weight)
    moved = torch.clamp(weight + torch.randn(16, 32), low, high)
    assert not torch.equal(moved, weight)
    assert torch.equal(rtn(moved).codes, rtn(weight).codes)
