"""What a run looks like while it goes on: a bar with the time left, and what every worker is doing."""

import functools
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from remnant.flow.plan import Node
from remnant.flow.run import POLL_SECONDS, missing
from remnant.flow.store import Store

# Seconds of one piece of work on the lab's default model, until the store holds measured times of this run.
GUESS = {"prepare": 3.0, "train": 180.0, "unlearn": 60.0, "perturb": 6.0, "measure": 8.0, "explain": 0.5, "judge": 3.0, "deploy": 20.0}
STALE_SECONDS = 60.0
# Looking at so many pieces takes about a tenth of a second; a larger run is looked at less often.
MANY = 2000
# Where nobody sees a moving bar (a log), a line this often.
LINE_SECONDS = 15.0


def describe(node: Node) -> str:
    """A piece of work in a few words."""
    about = node.label
    return " ".join([node.stage, *(str(about[k]) for k in ("corpus", "model", "quantizer") if about.get(k))])


def clock(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m" if whole >= 3600 else f"{whole // 60}:{whole % 60:02d}"


def seconds_left(store: Store, nodes: Sequence[Node], todo: Sequence[Node], workers: int) -> float:
    """Expected time for the rest, from the mean times of the finished pieces of each stage and how far the running ones are.

    Never less than the longest remaining chain needs.
    """
    times: dict[str, list[float]] = {}
    for node in nodes:
        if store.has(node.name):
            times.setdefault(node.stage, []).append(_seconds(store, node.name))
    left = {}
    for node in todo:
        known = times.get(node.stage)
        expected = sum(known) / len(known) if known else GUESS[node.stage]
        left[node.name] = expected * (1 - _share(store.scratch(node.name)))
    longest: dict[str, float] = {}
    for node in nodes:
        before = [longest.get(s.name, 0.0) for s in node.inputs.values() if isinstance(s, Node)]
        longest[node.name] = left.get(node.name, 0.0) + max(before, default=0.0)
    return max(sum(left.values()) / max(1, workers), max(longest.values(), default=0.0))


@functools.lru_cache(maxsize=1 << 16)
def _seconds(store: Store, name: str) -> float:
    """How long a finished piece took; read once, since it never changes."""
    return store.manifest(name).seconds


def _share(scratch: Path) -> float:
    state = _state(scratch)
    return state["done"] / state["total"] if state and state["total"] else 0.0


def _state(scratch: Path) -> dict[str, float] | None:
    try:
        return dict(json.loads((scratch / "progress.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def watch(store: Store, nodes: Sequence[Node], workers: Sequence["subprocess.Popen[bytes]"], console: Console) -> None:
    """Show the progress until all workers have ended."""
    total, seen = len(nodes), {n.name for n in nodes if store.has(n.name)}
    last_line = time.monotonic()
    with _bars(console) as bars:
        overall = bars.add_task("all", total=total, completed=len(seen), left="")
        running: dict[str, TaskID] = {}
        while any(w.poll() is None for w in workers):
            todo = missing(store, nodes)
            left = clock(seconds_left(store, nodes, todo, len(workers)))
            bars.update(overall, completed=total - len(todo), left=f"{total - len(todo)}/{total} done, about {left} left")
            _announce(store, nodes, seen, left, bars.console)
            _show_running(store, todo, running, bars)
            if not bars.console.is_terminal and time.monotonic() - last_line > LINE_SECONDS:
                last_line = time.monotonic()
                _line(store, todo, f"{total - len(todo)}/{total} done, about {left} left", bars.console)
            time.sleep(max(POLL_SECONDS, total / MANY))
        _announce(store, nodes, seen, "0:00", bars.console)


def _line(store: Store, todo: Sequence[Node], overall: str, console: Console) -> None:
    """What is being done, in one line, for a log."""
    active = [(node, state) for node in todo if (state := _state(store.scratch(node.name))) and time.time() - state["time"] < STALE_SECONDS]
    parts = [f"{escape(describe(node))} {state['done']}/{state['total']}" for node, state in active]
    console.print(f"     {'; '.join(parts) or 'starting'} [dim]({overall})[/]", highlight=False)


def _announce(store: Store, nodes: Sequence[Node], seen: set[str], left: str, console: Console) -> None:
    for node in nodes:
        if node.name not in seen and store.has(node.name):
            seen.add(node.name)
            took = clock(store.manifest(node.name).seconds)
            console.print(
                f"[green]done[/] {escape(describe(node))} [dim]({took}; {len(seen)}/{len(nodes)}, about {left} left)[/]", highlight=False
            )


def _show_running(store: Store, todo: Sequence[Node], running: dict[str, TaskID], bars: Progress) -> None:
    active = {}
    for node in todo:
        state = _state(store.scratch(node.name))
        if state and time.time() - state["time"] < STALE_SECONDS:
            active[node.name] = (node, state)
    for name in list(running):
        if name not in active:
            bars.remove_task(running.pop(name))
    for name, (node, state) in active.items():
        if name not in running:
            running[name] = bars.add_task(describe(node), total=state["total"], left="")
        bars.update(running[name], completed=state["done"], total=state["total"], left=f"{state['done']}/{state['total']} {state['note']}")


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[left]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield bars


@contextmanager
def one_by_one(console: Console) -> Iterator[Callable[[Node], Callable[[int, int, str], None]]]:
    """Progress of pieces that are made in this process, one after the other, with the time left for each."""
    with _bars(console) as bars:

        def report_for(node: Node) -> Callable[[int, int, str], None]:
            task = bars.add_task(describe(node), total=None, left="")
            started = time.monotonic()

            def report(done: int, total: int, note: str) -> None:
                left = clock((time.monotonic() - started) / done * (total - done)) if done else "?"
                bars.update(task, completed=done, total=total, left=f"{done}/{total} {note}, about {left} left")

            return report

        yield report_for


@contextmanager
def counting(console: Console, what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Progress of one long pass with the time left."""
    with _bars(console) as bars:
        task = bars.add_task(what, total=None, left="")
        started = time.monotonic()

        def report(done: int, total: int, note: str) -> None:
            left = clock((time.monotonic() - started) / done * (total - done)) if done else "?"
            bars.update(task, completed=done, total=total, left=f"{note}, about {left} left")

        yield report
