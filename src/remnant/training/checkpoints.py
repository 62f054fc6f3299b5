"""How far a run is, on the disk: two generations, so that it goes on from what is whole, written so
seldom that it costs little of the run's time.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from remnant.durable import digest_of, rename, tell
from remnant.model import kept
from remnant.ranks import first, in_shards, local, second_group, span, told, totals
from remnant.records import OptimSpec
from remnant.trainable.trainable import Trainable
from remnant.training import shards
from remnant.training.stepper import Stepper, moment

# The newest checkpoint, and the one before it.
GENERATIONS = ("resume.pt", "resume-before.pt")
BEST = "best.pt"
# What ranks keep beside the file of a name: two folders, written in turn.
FOLDERS = ("{}-0.shards", "{}-1.shards")
# The names of what a run goes on from, but for its log.
LEFT = (*GENERATIONS, "*.shards*")
# Checkpoints take at most this share of a run's time, and are so many seconds apart at least.
SHARE = 0.05
LEAST_SECONDS = 30.0
# They write at most this share of the model a minute, which spares the disk, unless more than so
# many seconds of work were at stake: with two moments that is all ten minutes.
WRITTEN = 0.05
AT_STAKE = 600.0
# What is expected of the disk and the checksum before the first one was timed: bytes a second.
SPEED = 200e6
# Bytes of a weight that are summed at a time.
PIECE = 1 << 24


class Done(NamedTuple):
    """How far a run is: steps, what ``after_step`` remembers, and whether it stopped; where it did
    not come to an end behind the last step, ``due`` holds what that step gave it.
    """

    step: int
    memory: dict[str, Any]
    stopped: bool
    due: dict[str, float] | None = None


class Pace:
    """When the next checkpoint is due.

    Args:
        size: of a checkpoint, in bytes, about.
        model: bytes of the model.
        clock: seconds; real time.
    """

    def __init__(self, size: int, model: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._apart = clock, apart(size, model)
        self._begun = self._last = clock()
        self._spent, self._cost = 0.0, size / SPEED

    def due(self) -> bool:
        """Whether one more keeps all of them together within their share of the time."""
        now = self._clock()
        affordable = self._spent + self._cost <= SHARE * (now - self._begun)
        return affordable and now - self._last > self._apart

    def timed(self, save: Callable[[], None]) -> None:
        """Save, and remember what it took."""
        started = self._clock()
        save()
        self._last = self._clock()
        self._cost = self._last - started
        self._spent += self._cost


class Checkpoints:
    """The two generations of a run's folder.

    A file holds the whole state. Where weights lie in shards it holds what is the same on all
    ranks, and every rank's rows lie in a folder beside it (``training.shards``), so that none ever
    has the whole; any number of ranks goes on from either.

    Args:
        folder: where they lie.
        log: the log of the steps, which is cut back to what a checkpoint knows.
        own: the ``fingerprint`` of the run; what another run left is thrown away.
    """

    def __init__(self, folder: Path, log: Path, own: str) -> None:
        self.newest, self._before = (folder / name for name in GENERATIONS)
        self._log, self._own = log, own
        # What is being written beside the run: its folder, and the file that will name it.
        self._pending: tuple[shards.Writing, dict[str, Any]] | None = None
        # The folder that the newest file names, on the first rank.
        self._folder = ""
        self._beside = second_group()

    def save(self, moving: Trainable, stepper: Stepper | None, done: Done) -> None:
        """Write everything that the next step depends on; without a stepper it starts afresh.

        The newest becomes the one before first, so no more than two lie on the disk at any time.
        What is large is written while the run goes on; ``settle`` ends that.
        """
        self.settle()
        log = hashlib.sha256(_lines(self._log, done.step)).hexdigest()
        state: dict[str, Any] = {"log": log, "of": self._own, **done._asdict()}
        state |= stepper.state() if stepper else {}
        if first() and self.newest.exists():
            rename(self.newest, self._before)
        if not in_shards(moving.state().values()):
            self._keep({"weights": dict(moving.state())} | state)
            return
        folder = _other(self.newest, self._folder)
        writing = shards.begin(_taken_out(moving, state), folder, self._beside)
        self._pending = writing, state
        if writing.done is None:
            self.settle()

    def settle(self) -> None:
        """Wait for what is being written, and name it the newest."""
        if self._pending is not None:
            writing, state = self._pending
            self._pending = None
            self._keep(state | {"shards": writing.end()._asdict()})

    def settle_if_done(self) -> None:
        """``settle`` where there is nothing to wait for."""
        if self._pending is not None and self._pending[0].is_done():
            self.settle()

    def _keep(self, state: dict[str, Any]) -> None:
        """Write the newest file, and remove the folder that neither it nor the one before names."""
        if not first():
            return
        kept.save(state, self.newest)
        before, self._folder = self._folder, state.get("shards", {}).get("folder", "")
        for path in _folders(self.newest):
            if path.name not in (before, self._folder):
                shutil.rmtree(path, ignore_errors=True)

    def load(self, moving: Trainable, stepper: Stepper) -> Done:
        """What was saved last and is whole, the log cut back to it.

        The beginning where nothing was, or what is there is damaged or another run's. Every rank
        has a log of its own; all go on from what the first one finds.
        """
        state, lines = self._found()
        lines = told(lines)
        known = {name: state[name] for name in Done._fields if name in state}
        done = told(Done(**known) if state else Done(0, {}, False))
        if told("shards" in state):
            self._read(moving, stepper, told(state))
        elif told(bool(state)):
            moving.restore(state.get("weights", {}))
            if told("optimizer" in state):
                stepper.restore(state)
        self._log.write_bytes(lines)
        return done

    def _read(self, moving: Trainable, stepper: Stepper, state: dict[str, Any]) -> None:
        saved = shards.Saved(**state["shards"])
        self._folder = saved.folder
        read = shards.reader(saved, self.newest.parent)
        _read_weights(moving, read)
        if "optimizer" in state:
            stepper.take(state, read)

    def _found(self) -> tuple[dict[str, Any], bytes]:
        """The state that was saved last and is whole, and the lines of the log up to it; nothing on
        ranks other than the first.
        """
        for path in (self.newest, self._before):
            state, lines = self._sound(path) if first() else ({}, b"")
            saved = told(state.get("shards"))
            if saved and not shards.is_whole(shards.Saved(**saved), path.parent):
                if first():
                    # As of any damaged file, so that it never takes the place of a whole one.
                    tell(f"{saved['folder']} is damaged; {path} was thrown away.")
                    path.unlink()
                state = {}
            if told(bool(state)):
                return state, lines
        if first():
            for path in (self.newest, self._before, self._log):
                path.unlink(missing_ok=True)
        return {}, b""

    def _sound(self, path: Path) -> tuple[dict[str, Any], bytes]:
        """The state of a file that is whole and this run's, and the lines of the log up to it."""
        state = kept.load(path)
        if not state or state["of"] != self._own:
            return {}, b""
        lines = _lines(self._log, state["step"])
        if hashlib.sha256(lines).hexdigest() != state["log"]:
            tell(f"{self._log} is damaged; the steps are done again.")
            return {}, b""
        return state, lines


def save_best(moving: Trainable, step: int, path: Path) -> None:
    """Keep what may move as it is now, as the best so far."""
    state: dict[str, Any] = {"step": step}
    if not in_shards(moving.state().values()):
        if first():
            kept.save(state | {"weights": dict(moving.state())}, path)
        return
    before = told(_named(kept.load(path)) if first() else "")
    saved = shards.begin(_weights(moving), _other(path, before)).end()
    if first():
        kept.save(state | {"shards": saved._asdict()}, path)
        if before:
            shutil.rmtree(path.with_name(before), ignore_errors=True)


def load_best(moving: Trainable, step: int, path: Path) -> bool:
    """Give the model what was kept at a step as the best; False where that is damaged or missing,
    or is of another step.
    """
    state = (kept.load(path) if first() else None) or {"step": None}
    if told(state["step"]) != step:
        return False
    saved = told(state.get("shards"))
    if not saved:
        moving.restore(state.get("weights", {}))
        return True
    folder = shards.Saved(**saved)
    if not shards.is_whole(folder, path.parent):
        return False
    _read_weights(moving, shards.reader(folder, path.parent))
    return True


def _named(state: dict[str, Any] | None) -> str:
    """The folder that a file names, or none."""
    found: str = (state or {}).get("shards", {}).get("folder", "")
    return found


def _folders(path: Path) -> list[Path]:
    """The folders that may lie beside the file of a name."""
    return [path.with_name(name.format(path.stem)) for name in FOLDERS]


def _other(path: Path, used: str) -> Path:
    """The folder beside a file that is not the one in use."""
    return next(folder for folder in _folders(path) if folder.name != used)


def _weights(moving: Trainable) -> dict[str, Tensor]:
    """This rank's rows of all that may move."""
    return {_weight(name): local(value) for name, value in moving.state().items()}


def _weight(name: str) -> str:
    return f"weights.{name}"


@torch.no_grad()
def _read_weights(moving: Trainable, read: shards.Read) -> None:
    for name, value in moving.state().items():
        local(value).copy_(read(_weight(name), span(value)))


def _taken_out(moving: Trainable, state: dict[str, Any]) -> Mapping[str, Tensor]:
    """This rank's rows of weights and moments; the latter are taken out of the state."""
    named = _weights(moving)
    for place, own in enumerate(state.get("optimizer", [])):
        values = own["state"].get(0, {})
        for name, value in values.items():
            if value.ndim:
                named[moment(place, name)] = value
        own["state"] = {0: {n: None if v.ndim else v for n, v in values.items()}} if values else {}
    return named


def apart(size: int, model: int) -> float:
    """Seconds from one checkpoint of so many bytes to the next, of a model of so many."""
    return max(LEAST_SECONDS, min(AT_STAKE, 60 * size / (WRITTEN * model)))


def size_of(moving: Trainable) -> int:
    """About the bytes of a checkpoint: what may move, and two moments of what moves now."""
    weights = sum(value.nbytes for value in moving.state().values())
    return weights + 2 * sum(part.read().nbytes for part in moving.parts)


def fingerprint(model: nn.Module, spec: OptimSpec) -> str:
    """What steps belong to: the settings and the weights before the first one (sums of their bytes,
    the same in any order and in any shards).
    """
    named = {name: p.detach() for name, p in model.named_parameters()}
    sums = {n: _sum_of_bytes(local(p)) for n, p in named.items()}
    spread = [name for name, p in named.items() if local(p) is not p]
    # Whole numbers up to 2^53 are exact in float64.
    sums |= zip(spread, map(int, totals([sums[n] for n in spread])), strict=True)
    return digest_of([spec.model_dump(mode="json"), [*sums.items()]])


def _sum_of_bytes(values: Tensor) -> int:
    """Piece by piece, since the processor makes an integer of eight bytes of every byte first."""
    pieces = values.reshape(-1).view(torch.uint8).split(PIECE)
    return sum(int(piece.sum(dtype=torch.int64)) for piece in pieces)


def _lines(log: Path, most: int) -> bytes:
    """The first lines of the step log."""
    return b"".join(log.read_bytes().splitlines(keepends=True)[:most]) if log.is_file() else b""
