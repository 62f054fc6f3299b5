"""Damaged files are never believed and kills cost nothing but time: every kind of file of a store,
and random moments of a run."""

import random
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from remnant.flow.store import Store
from tests.wrecks import (
    call,
    child,
    content,
    ended,
    files_of,
    in_this_process,
    killed_at,
    kind_of,
    leave_unfinished,
    nodes_of,
    readers,
    small_disk,
    spread,
    survives,
    sweep_file,
    work_in,
)  # fmt: skip


class Whole(NamedTuple):
    """A finished store, one that was interrupted, what both come to, and how long it takes to
    make."""

    sweep: Path
    finished: Path
    unfinished: Path
    expected: dict[str, Any]
    seconds: float


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    sweep = sweep_file(folder)
    with in_this_process(sweep):
        assert call("run", sweep, "--store", folder / "finished").exit_code == 0
    started = time.monotonic()
    assert ended(child(lambda: work_in(folder / "again", sweep))) == 0
    seconds = time.monotonic() - started
    assert content(folder / "again") == content(folder / "finished")
    shutil.copytree(folder / "finished", folder / "unfinished")
    leave_unfinished(folder / "unfinished", sweep)
    expected = {
        "content": content(folder / "finished"),
        "summary": (folder / "finished/reports/tiny/summary.json").read_bytes(),
    }
    return Whole(sweep, folder / "finished", folder / "unfinished", expected, seconds)


def try_all(whole: Whole, count: int, folder: Path, seed: int) -> str:
    rng = random.Random(seed)
    found = {"made again": 0, "refused": 0}
    kinds = set()
    for root, share in ((whole.finished, count - count // 4), (whole.unfinished, count // 4)):
        places = [p for p in files_of(root) if root == whole.finished or p.parts[0] == "partial"]
        for damage in spread(places, share, rng):
            found[survives(root, whole.expected, whole.sweep, damage, folder, rng)] += 1
            kinds.add(kind_of(damage[0]))
    return f"{count} files of {len(kinds)} kinds damaged: 0 believed, 0 tracebacks; " + ", ".join(
        f"{n} {k}" for k, n in found.items()
    )


def test_damaged_files_are_never_believed(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = try_all(whole, 12, tmp_path, 0)
    with capsys.disabled():
        print(f"\n{said}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_damaged_files_are_never_believed(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = try_all(whole, 200, tmp_path, 1)
    with capsys.disabled():
        print(f"\n{said}")


def kill(whole: Whole, times: int, root: Path, seed: int) -> str:
    rng = random.Random(seed)
    seconds, hit, early = whole.seconds, 0, 0
    while hit < times:
        i = hit + early
        place = root / str(i)
        if killed_at(rng.uniform(0.0, seconds), place, whole.sweep):
            hit += 1
        else:  # it was ready before: the machine is less busy than it was
            early += 1
            seconds *= 0.9
        assert ended(child(partial(work_in, place, whole.sweep))) == 0
        assert content(place) == whole.expected["content"], f"kill {i}"
        assert all(Store(place).sound(n.name) for n in nodes_of(whole.sweep))
        assert not list((place / "partial").glob("*/*"))
        shutil.rmtree(place)
    return f"{times} kills at random moments of a run: the same bytes every time"


def test_a_kill_at_any_moment_costs_no_byte(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = kill(whole, 2, tmp_path, 0)
    with capsys.disabled():
        print(f"\n{said}")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_kills_cost_no_byte(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = kill(whole, 100, tmp_path, 1)
    with capsys.disabled():
        print(f"\n{said}")


def fill(whole: Whole, kilobytes: int, place: Path) -> str:
    """Run on a disk that becomes full, then on a larger one; what was said of the full one."""
    with small_disk(place, f"{kilobytes}k") as remount, in_this_process(whole.sweep):
        result = call("run", whole.sweep, "--store", place / "s")
        assert result.exit_code == 2, result.output
        assert "The disk is full" in result.output, result.output
        remount("size=64m")
        assert call("run", whole.sweep, "--store", place / "s").exit_code == 0
        assert content(place / "s") == whole.expected["content"]
        assert not list((place / "s/partial").iterdir())
    return result.output


@pytest.mark.parametrize("kilobytes", [600])
def test_a_disk_that_is_full_in_the_middle_costs_no_byte(
    kilobytes: int, whole: Whole, tmp_path: Path
) -> None:
    fill(whole, kilobytes, tmp_path / "disk")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kilobytes", [40, 100, 150, 200, 300, 400, 500, 700, 800, 1000, 1200, 1500]
)
def test_a_disk_that_is_full_at_any_place_costs_no_byte(
    kilobytes: int, whole: Whole, tmp_path: Path
) -> None:
    fill(whole, kilobytes, tmp_path / "disk")


def test_a_finished_run_on_a_read_only_disk_is_reported_elsewhere(
    whole: Whole, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "64m") as remount, in_this_process(whole.sweep):
        shutil.copytree(whole.finished, tmp_path / "disk/s")
        remount("ro")
        said = call(
            "run", whole.sweep, "--store", tmp_path / "disk/s", "--out", tmp_path / "report"
        )
        assert said.exit_code == 0, said.output
        assert (tmp_path / "report/summary.json").read_bytes() == whole.expected["summary"]
        assert (
            call(
                "report", "tiny", "--store", tmp_path / "disk/s", "--out", tmp_path / "report"
            ).exit_code
            == 0
        )
        refused = call("run", whole.sweep, "--store", tmp_path / "disk/s")
        assert refused.exit_code == 2
        assert "read-only" in refused.output
        assert "--out" in refused.output


def test_the_damages_reach_every_kind_of_file(whole: Whole) -> None:
    kinds = {kind_of(p) for root in (whole.finished, whole.unfinished) for p in files_of(root)}
    stages = {n.stage for n in nodes_of(whole.sweep)}
    assert {f"objects/{stage}/manifest.json" for stage in stages} <= kinds
    assert {
        "partial/train/resume.pt",
        "partial/unlearn/best.pt",
        "partial/measure/answers.jsonl",
        "names",
    } <= kinds
    first = next(n for n in nodes_of(whole.sweep) if n.stage == "prepare")
    assert len(readers(first.name, nodes_of(whole.sweep))) == 2
