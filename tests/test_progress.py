"""What is said while something goes on: a line every fifteen seconds where there is no terminal,
and times from this call only."""

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from remnant.flow.plan import prepare_node
from remnant.flow.progress import (
    LINE_SECONDS,
    Pace,
    Paces,
    Spent,
    Teller,
    _state,
    one_by_one,
    seconds_left,
)
from remnant.flow.store import Store
from remnant.records import PrepareSpec


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def written(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return [line.strip() for line in console.file.getvalue().splitlines()]


def test_time_left_counts_from_this_call_and_not_from_resumed_steps() -> None:
    clock = Clock()
    pace = Pace(clock)
    clock.time += 50  # opening the model
    assert pace.left(901, 1000) is None
    clock.time += 2
    assert pace.left(902, 1000) == pytest.approx(98 * 2)
    clock.time += 2
    assert pace.left(903, 1000) == pytest.approx(97 * 2)


def test_a_new_phase_begins_anew() -> None:
    clock = Clock()
    pace = Pace(clock)
    for done, total, left in ((0, 10, None), (5, 10, 5.0), (0, 4, None), (1, 4, 15.0)):
        assert pace.left(done, total) == left
        clock.time += 5


@pytest.mark.parametrize(("terminal", "lines"), [(False, 4), (True, 0)])
def test_a_line_every_fifteen_seconds_where_there_is_no_terminal(
    terminal: bool, lines: int
) -> None:
    clock, console = Clock(), Console(file=io.StringIO(), force_terminal=terminal, width=160)
    teller = Teller(console, "train news target", clock)
    for second in range(61):  # one step a second
        teller.report(second, 600, "loss 1.0")
        clock.time += 1
    assert len(written(console)) == lines
    if lines:
        assert (
            written(console)[0]
            == "train news target 15/600 loss 1.0, about 9:45 left (0:15 so far)"
        )
        assert LINE_SECONDS == 15


def test_a_line_comes_also_while_nothing_is_reported() -> None:
    clock, console = Clock(), Console(file=io.StringIO(), width=160)
    teller = Teller(console, "scoring [/x]", clock)
    for _ in range(32):
        clock.time += 1
        teller.tick()
    assert written(console) == [
        "scoring [/x] working (0:15 so far)",
        "scoring [/x] working (0:30 so far)",
    ]


def test_the_time_of_the_whole_goes_on_while_a_piece_is_made() -> None:
    clock, console = Clock(), Console(file=io.StringIO(), width=160)
    teller = Teller(console, "measure", clock, Spent(60.0, 1800.0))
    for second in range(32):
        teller.report(second, 64, "")
        clock.time += 1
        if second == 20:
            teller.begin("transform")  # the next piece of the same call
    assert [line.partition("(")[2] for line in written(console)] == [
        "0:15 so far; 1:15 of 30:00 spent)", "0:09 so far; 1:30 of 30:00 spent)",
    ]  # fmt: skip


def test_notes_with_marks_of_the_terminals_language_end_nothing() -> None:
    console = Console(file=io.StringIO(), width=160)
    with one_by_one(console) as report_for:
        report_for(prepare_node(PrepareSpec(lab="news")))(1, 2, "[/red] [bold")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "[]",
        "{}",
        '{"done": 1}',
        '{"done": "x", "total": 1, "note": "", "time": 0}',
        "\ufffd",
        "nul",
    ],
)
def test_progress_that_makes_no_sense_is_no_progress(text: str, tmp_path: Path) -> None:
    store = Store(tmp_path).open()
    node = prepare_node(PrepareSpec(lab="news"))
    store.scratch(node.name).mkdir()
    (store.scratch(node.name) / "progress.json").write_text(text)
    assert _state(store.scratch(node.name)) is None
    whole = seconds_left(store, [node], [node], 1, Paces().left)
    (store.scratch(node.name) / "progress.json").write_text(
        json.dumps({"done": 1, "total": 2, "note": "", "time": 0.0})
    )
    assert seconds_left(store, [node], [node], 1, Paces().left) == whole / 2


def test_time_left_of_a_run_is_told_by_the_piece_that_is_made_where_none_of_its_kind_is(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path).open()
    first, second = (prepare_node(PrepareSpec(lab="news", seed=seed)) for seed in (0, 1))
    store.scratch(first.name).mkdir()
    said = {"done": 1, "total": 4, "note": "", "time": time.time()}
    (store.scratch(first.name) / "progress.json").write_text(json.dumps(said))

    def paced(name: str, done: int, total: int) -> float:
        return 100.0 * (total - done)

    # Three quarters of the first take 300 seconds, so the second takes 400.
    assert seconds_left(store, [first, second], [first, second], 1, paced) == 700
    # What nobody has heard of for long has no pace.
    said["time"] = 0.0
    (store.scratch(first.name) / "progress.json").write_text(json.dumps(said))
    assert seconds_left(store, [first, second], [first, second], 1, paced) < 10
