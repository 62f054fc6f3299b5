"""What a run looks like while it goes on: a bar with the time left, and what every worker is
doing.
"""

import functools
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from remnant.context import Progress
from remnant.flow.hands import Hands
from remnant.flow.plan import Node
from remnant.flow.run import POLL_SECONDS, missing
from remnant.flow.store import PROGRESS, Store
from remnant.records import Piece

# Seconds of one piece of work on the lab's default model, until the store holds measured times of
# this run.
GUESS = {
    "prepare": 3.0,
    "train": 180.0,
    "unlearn": 60.0,
    "merge": 3.0,
    "dequantize": 3.0,
    "transform": 6.0,
    "elicit": 8.0,
    "measure": 8.0,
    "explain": 0.5,
    "attack": 60.0,
    "audit": 3.0,
    "deploy": 20.0,
}
STALE_SECONDS = 60.0
# Seconds that a piece still takes at the pace that it has, by name, done and total; None where that
# cannot be said yet.
Left = Callable[[str, int, int], float | None]
# After a look so many times as long as it took is slept: watching takes at most 2 % of a core from
# the workers.
REST = 50
# Where nobody sees a moving bar (a log), a line this often.
LINE_SECONDS = 15.0


def _counted(done: int, total: int, note: str) -> str:
    """How many of how many, where that can be said, and a note."""
    return f"{done}/{total} {note}".rstrip() if total else note


class Pace:
    """How long something will still take, from what was done since this call began.

    What an earlier call did does not count as quick.

    Args:
        clock: seconds, as time.monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start: tuple[float, int, int] | None = None

    def left(self, done: int, total: int) -> float | None:
        """Seconds.

        None until something was done since the first call, which also is where a new total or an
        earlier place begins.
        """
        now = self._clock()
        if self._start is None or total != self._start[2] or done < self._start[1]:
            self._start = (now, done, total)
        since, before, _ = self._start
        return (now - since) / (done - before) * (total - done) if done > before else None


class Paces:
    """The paces of the pieces that somebody watches, by their names."""

    def __init__(self) -> None:
        self._of: dict[str, Pace] = {}

    def left(self, name: str, done: int, total: int) -> float | None:
        """Seconds, as ``Pace.left``; None of what does not say how much it is."""
        return self._of.setdefault(name, Pace()).left(done, total) if total else None


class Spent(NamedTuple):
    """What a piece of work belongs to: a whole that may take ``whole`` seconds, of which ``before``
    were spent when this call began.
    """

    before: float
    whole: float

    def said(self, since: float) -> str:
        """How much of the whole is spent some seconds after the call began.

        >>> Spent(60, 1800).said(5)
        '1:05 of 30:00 spent'
        """
        return f"{clock(self.before + since)} of {clock(self.whole)} spent"


class Teller:
    """Says every fifteen seconds how far something is, where nobody sees a moving bar.

    Also while it reports nothing.

    Args:
        console: where to.
        what: what is being done.
        now: seconds, as time.monotonic.
        spent: of the whole that it belongs to.
    """

    def __init__(
        self,
        console: Console,
        what: str,
        now: Callable[[], float] = time.monotonic,
        spent: Spent | None = None,
    ) -> None:
        self._console, self._now, self._pace = console, now, Pace(now)
        self._lock = threading.Lock()
        self._first = self._begun = self._last = now()
        self._what, self._state, self._spent = what, "", spent

    def begin(self, what: str) -> None:
        """The next piece."""
        with self._lock:
            self._what, self._state, self._pace, self._begun = (
                what,
                "",
                Pace(self._now),
                self._now(),
            )

    def report(self, done: int, total: int, note: str) -> str:
        """What there is to say: how many of how many, a note, the time left.

        And say it if it is time.
        """
        left = self._pace.left(done, total)
        self._state = _counted(done, total, note) + (
            f", about {clock(left)} left" if left is not None else ""
        )
        self.tick()
        return self._state

    def tick(self) -> None:
        """Say it if it is time."""
        with self._lock:
            now = self._now()
            if self._console.is_terminal or now - self._last < LINE_SECONDS:
                return
            self._last = now
            took = f"{clock(now - self._begun)} so far" + (f"; {s}" if (s := self.whole()) else "")
            said = f"{escape(self._state) or 'working'} [dim]({took})[/]"
            self._console.print(f"     {escape(self._what)} {said}", highlight=False)

    @property
    def since(self) -> float:
        """Seconds since the call began."""
        return self._now() - self._first

    def whole(self) -> str:
        """How much of the whole is spent; empty where there is none."""
        return self._spent.said(self.since) if self._spent else ""


@contextmanager
def telling(console: Console, what: str, spent: Spent | None = None) -> Iterator[Teller]:
    """A Teller that also speaks while nothing is reported.

    For work that cannot say how far it is.
    """
    teller, ended = Teller(console, what, spent=spent), threading.Event()

    def watch_the_clock() -> None:
        while not ended.wait(1.0):
            teller.tick()

    thread = threading.Thread(target=watch_the_clock, daemon=True)
    thread.start()
    try:
        yield teller
    finally:
        ended.set()
        thread.join()


def describe(node: Node | Piece) -> str:
    """A piece of work in a few words."""
    return f"{node.stage} {node.label.words}".rstrip()


def clock(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes."""
    whole = max(0, round(seconds))
    return (
        f"{whole // 3600}h{whole % 3600 // 60:02d}m"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d}"
    )


def seconds_left(
    store: Store, nodes: Sequence[Node], todo: Sequence[Node], workers: int, paced: Left
) -> float:
    """Expected time for the rest, as ``left_of_each``.

    Never less than the longest remaining chain needs.
    """
    left = left_of_each(store, nodes, todo, paced)
    longest: dict[str, float] = {}
    for node in nodes:
        before = [longest.get(s.name, 0.0) for s in node.inputs.values() if isinstance(s, Node)]
        longest[node.name] = left.get(node.name, 0.0) + max(before, default=0.0)
    return max(sum(left.values()) / max(1, workers), max(longest.values(), default=0.0))


def left_of_each(
    store: Store, pieces: Sequence[Node | Piece], todo: Sequence[Node | Piece], paced: Left
) -> dict[str, float]:
    """Seconds that each piece of the rest will still take, by name: at the pace that it has; of one
    that has not begun the mean of the finished ones of its stage, or else of those in hand.
    """
    times: dict[str, list[float]] = {}
    for piece in pieces:
        if store.has(piece.name):
            times.setdefault(piece.stage, []).append(_seconds(store, piece.name))
    said = _said(store, (piece.name for piece in todo))
    shares = {name: min(1.0, s.done / s.total) for name, s in said.items() if s.total}
    going = {
        name: rest
        for name, state in _fresh(said).items()
        if (rest := paced(name, state.done, state.total)) is not None
    }
    wholes: dict[str, list[float]] = {}
    for piece in todo:
        share = shares.get(piece.name, 0.0)
        if piece.name in going and share < 1:
            wholes.setdefault(piece.stage, []).append(going[piece.name] / (1 - share))
    left = {}
    for piece in todo:
        known = times.get(piece.stage) or wholes.get(piece.stage) or [GUESS[piece.stage]]
        rest = sum(known) / len(known) * (1 - shares.get(piece.name, 0.0))
        left[piece.name] = going.get(piece.name, rest)
    return left


@functools.lru_cache(maxsize=1 << 16)
def _seconds(store: Store, name: str) -> float:
    """How long a finished piece took; read once, since it never changes."""
    return store.manifest(name).seconds


class State(NamedTuple):
    """What a worker says of the piece that it makes."""

    done: int
    total: int
    note: str
    time: float


def _state(scratch: Path) -> State | None:
    """What was said last; None where nothing was, or nothing that makes sense."""
    try:
        found = json.loads((scratch / PROGRESS).read_bytes())
        return State(
            int(found["done"]), int(found["total"]), str(found["note"]), float(found["time"])
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def in_hand(store: Store, names: Iterable[str]) -> dict[str, State]:
    """What is being made at this moment of some artefacts, by what was said of them not long
    ago.
    """
    return _fresh(_said(store, names))


def _said(store: Store, names: Iterable[str]) -> dict[str, State]:
    """What was said last of the artefacts of which something was."""
    found = {name: _state(store.scratch(name)) for name in names}
    return {name: state for name, state in found.items() if state}


def _fresh(said: Mapping[str, State]) -> dict[str, State]:
    """What was said not long ago."""
    since = time.time() - STALE_SECONDS
    return {name: state for name, state in said.items() if state.time > since}


def watch(
    store: Store,
    nodes: Sequence[Node],
    hands: Hands,
    console: Console,
) -> None:
    """Show the progress until nothing is made any more."""
    total, seen = len(nodes), {n.name for n in nodes if store.has(n.name)}
    paces = Paces()
    last_line = time.monotonic()
    with _bars(console) as bars:
        overall = bars.add_task("all", total=total, completed=len(seen), left="")
        running: dict[str, TaskID] = {}
        while hands.busy():
            begun = time.thread_time()
            todo = missing(store, nodes)
            left = clock(seconds_left(store, nodes, todo, hands.places, paces.left))
            bars.update(
                overall,
                completed=total - len(todo),
                left=f"{total - len(todo)}/{total} done, about {left} left",
            )
            _announce(store, nodes, seen, left, bars.console)
            _show_running(store, todo, running, bars)
            if not bars.console.is_terminal and time.monotonic() - last_line > LINE_SECONDS:
                last_line = time.monotonic()
                _line(
                    store,
                    todo,
                    f"{total - len(todo)}/{total} done, about {left} left",
                    bars.console,
                )
            time.sleep(max(POLL_SECONDS, REST * (time.thread_time() - begun)))
        _announce(store, nodes, seen, "0:00", bars.console)


def _line(store: Store, todo: Sequence[Node], overall: str, console: Console) -> None:
    """What is being done, in one line, for a log."""
    nodes = {node.name: node for node in todo}
    parts = [
        escape(
            f"{describe(nodes[name])} "
            f"{_counted(state.done, state.total, state.note if not state.total else '')}"
        )
        for name, state in in_hand(store, nodes).items()
    ]
    console.print(f"     {'; '.join(parts) or 'starting'} [dim]({overall})[/]", highlight=False)


def _announce(
    store: Store, nodes: Sequence[Node], seen: set[str], left: str, console: Console
) -> None:
    for node in nodes:
        if node.name not in seen and store.has(node.name):
            seen.add(node.name)
            took = clock(store.manifest(node.name).seconds)
            console.print(
                (
                    f"[green]done[/] {escape(describe(node))} [dim]({took}; "
                    f"{len(seen)}/{len(nodes)}, about {left} left)[/]"
                ),
                highlight=False,
            )


def _show_running(
    store: Store, todo: Sequence[Node], running: dict[str, TaskID], bars: Bars
) -> None:
    nodes = {node.name: node for node in todo}
    active = in_hand(store, nodes)
    for name in list(running):
        if name not in active:
            bars.remove_task(running.pop(name))
    for name, state in active.items():
        if name not in running:
            running[name] = bars.add_task(escape(describe(nodes[name])), total=state.total, left="")
        bars.update(
            running[name],
            completed=state.done,
            total=state.total,
            left=escape(_counted(state.done, state.total, state.note)),
        )


@contextmanager
def _bars(console: Console) -> Iterator[Bars]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[left]}", markup=False),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        yield bars


@contextmanager
def one_by_one(
    console: Console, spent: Spent | None = None
) -> Iterator[Callable[[Node], Progress]]:
    """Progress of pieces that are made in this process, one after the other, with the time left for
    each, and what is ``spent`` of the whole that they belong to.
    """
    with _bars(console) as bars, telling(bars.console, "starting", spent) as teller:
        whole = bars.add_task("all", total=spent.whole, left="") if spent else None

        def report_for(node: Node) -> Progress:
            task = bars.add_task(escape(describe(node)), total=None, left="")
            teller.begin(describe(node))

            def report(done: int, total: int, note: str) -> None:
                bars.update(
                    task, completed=done, total=total, left=escape(teller.report(done, total, note))
                )
                if whole is not None and spent:
                    bars.update(whole, completed=spent.before + teller.since, left=teller.whole())

            return report

        yield report_for


@contextmanager
def counting(console: Console, what: str) -> Iterator[Progress]:
    """Progress of one long pass with the time left."""
    with _bars(console) as bars, telling(bars.console, what) as teller:
        task = bars.add_task(what, total=None, left="")

        def report(done: int, total: int, note: str) -> None:
            bars.update(
                task, completed=done, total=total, left=escape(teller.report(done, total, note))
            )

        yield report
