"""What costs nothing: planning, listing, finding that work is done, knowing a model again."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata

from remnant.durable import digest_file, read_json, write_json
from remnant.flow import digests
from remnant.flow import plan as planning
from remnant.flow.place import Outside
from remnant.flow.plan import asking, measure_node, plan
from remnant.flow.sweepfile import read_sweep
from remnant.functional.stats import auc
from remnant.records import MeasureSpec, MetricSpec
from remnant.report.terminal import columns
from tests.test_examples import PLACE

SWEEPS = Path(__file__).parent.parent / "sweeps"
# Libraries that take a tenth of a second or more to import.
HEAVY = ("torch", "transformers", "scipy", "pandas", "matplotlib", "numba", "jinja2", "datasets")


def test_commands_that_make_nothing_import_nothing_heavy() -> None:
    listed = ", ".join(map(repr, HEAVY))
    code = f"import sys, remnant.verbs; print([m for m in ({listed}) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def looked_up(monkeypatch: pytest.MonkeyPatch, *settings: str) -> tuple[int, Counter[str]]:
    """The pieces of the sweep of rates, and how often each metric and loss was looked up."""
    calls: Counter[str] = Counter()
    for name in ("metric", "_losses"):
        function = getattr(planning, name)

        def counted(spec: Any, of: Callable[[Any], object] = function) -> object:
            calls[str(spec)] += 1
            return of(spec)

        monkeypatch.setattr(planning, name, counted)
    nodes = plan(read_sweep(SWEEPS / "rates.toml", settings))
    monkeypatch.undo()
    return len(nodes), calls


def test_a_sweep_of_many_pieces_looks_up_no_more_than_one_of_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, calls = looked_up(monkeypatch, "seeds=[0]")
    many, again = looked_up(monkeypatch, "seeds=[0, 1, 2, 3]")
    assert many > 2 * few
    assert again == calls


@pytest.mark.parametrize("spec", [MeasureSpec(), MeasureSpec(metrics=("verbmem",), form="plain")])
def test_what_was_looked_up_before_gives_the_same_piece(spec: MeasureSpec) -> None:
    known = measure_node(asking(spec), PLACE, PLACE, reference=PLACE)
    assert known == measure_node(spec, PLACE, PLACE, reference=PLACE)


def test_the_users_own_metric_is_among_what_is_looked_up(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def shout(generated):\n    return 1.0\n")
    spec = MeasureSpec(metrics=("verbmem",), extra=(MetricSpec(use=f"{file}:shout"),))
    assert f"{file}:shout" in asking(spec).methods
    before = measure_node(spec, PLACE, PLACE).name
    file.write_text("def shout(generated):\n    return 0.0\n")
    assert measure_node(spec, PLACE, PLACE).name != before


@pytest.mark.parametrize("seed", range(20))
def test_auc_is_that_of_ranks_to_the_last_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    forget, holdout = rng.integers(0, 6, rng.integers(1, 30)) / 3, rng.integers(0, 6, 17) / 3
    ranks = rankdata(np.concatenate([forget, holdout]))
    wins = ranks[: len(forget)].sum() - len(forget) * (len(forget) + 1) / 2
    assert auc(forget, holdout) == float(wins / (len(forget) * len(holdout)))


def test_auc_of_what_is_not_a_number_is_none() -> None:
    one, lost = np.array([1.0]), np.array([0.5, np.nan])
    assert np.isnan(auc(one, lost))
    assert np.isnan(auc(lost, one))


def test_columns_stand_below_each_other() -> None:
    found = columns([("artefact", "size"), ("a", "1 MB"), ("measure-12", "")])
    assert found.splitlines() == ["artefact    size", "a           1 MB", "measure-12"]


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A large file that may be kept at once, in a folder, with nothing kept of it yet."""
    monkeypatch.setenv("REMNANT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    file = folder / "model.safetensors"
    file.write_bytes(b"a" * digests.LARGE)
    monkeypatch.setattr(digests, "SETTLED", -1.0)
    return file


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read to the end, in order."""
    found: list[Path] = []

    def read(path: Path) -> str:
        found.append(path)
        return digest_file(path)

    monkeypatch.setattr(digests, "digest_file", read)
    return found


def in_another_process(folder: Path) -> str:
    """The digest of a folder as a process finds it that has read nothing yet."""
    digests._kept.cache_clear()
    digests._digest_of.cache_clear()
    return Outside(str(folder)).digest


def test_a_large_file_from_outside_is_read_once_for_all(large: Path, reads: list[Path]) -> None:
    first = in_another_process(large.parent)
    assert in_another_process(large.parent) == first
    assert reads == [large]


def test_a_file_that_changes_is_read_again(large: Path, reads: list[Path]) -> None:
    first, times = in_another_process(large.parent), large.stat()
    large.write_bytes(b"b" * digests.LARGE)
    os.utime(large, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert in_another_process(large.parent) != first
    assert reads == [large, large]


def test_a_file_in_the_place_of_another_is_read(large: Path, reads: list[Path]) -> None:
    first = in_another_process(large.parent)
    other = large.with_name("other")
    other.write_bytes(b"b" * digests.LARGE)
    other.replace(large)
    assert in_another_process(large.parent) != first
    assert len(reads) == 2


def test_small_files_and_those_just_written_are_not_kept(
    large: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(digests, "SETTLED", 3600.0)
    (large.parent / "config.json").write_text("{}")
    in_another_process(large.parent)
    in_another_process(large.parent)
    assert len(reads) == 4
    assert not list((tmp_path / "cache").rglob("*"))


def test_on_request_a_model_is_read_whatever_is_kept(
    large: Path, reads: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = in_another_process(large.parent)
    (kept,) = (tmp_path / "cache").rglob("*.json")
    data = read_json(kept)
    assert isinstance(data, dict)
    write_json(kept, {**data, "sha256": "0" * 64})
    assert in_another_process(large.parent) != first
    with digests.verifying_models():
        assert in_another_process(large.parent) == first
    assert "is not what it was" in capsys.readouterr().err
    assert in_another_process(large.parent) == first
    assert reads == [large, large]


def test_a_damaged_or_unwritable_memory_costs_a_reading_and_nothing_else(
    large: Path, reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = in_another_process(large.parent)
    (kept,) = (tmp_path / "cache").rglob("*.json")
    kept.write_bytes(kept.read_bytes()[:-1])
    assert in_another_process(large.parent) == first
    monkeypatch.setenv("REMNANT_CACHE", "/proc/none")
    assert in_another_process(large.parent) == first
    assert len(reads) == 3
