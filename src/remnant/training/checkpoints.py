"""How far a run is, on the disk: two generations, so that it goes on from what is whole, written so
seldom that it costs little of the run's time.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from remnant.durable import digest_of, rename, tell
from remnant.model import kept
from remnant.ranks import first, local, told, totals
from remnant.records import OptimSpec
from remnant.trainable.trainable import Trainable
from remnant.training.stepper import Stepper

# The newest checkpoint, and the one before it.
GENERATIONS = ("resume.pt", "resume-before.pt")
# Checkpoints take at most this share of a run's time, and are so many seconds apart at least.
SHARE = 0.05
LEAST_SECONDS = 30.0
# What is expected of the disk and the checksum before the first one was timed: bytes a second.
SPEED = 200e6
# Bytes of a weight that are summed at a time.
PIECE = 1 << 24


class Done(NamedTuple):
    """How far a run is: steps, what ``after_step`` remembers, and whether it stopped."""

    step: int
    memory: dict[str, Any]
    stopped: bool


class Pace:
    """When the next checkpoint is due.

    Args:
        size: of a checkpoint, in bytes, about.
        clock: seconds; real time.
    """

    def __init__(self, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = self._last = clock()
        self._spent, self._cost = 0.0, size / SPEED

    def due(self) -> bool:
        """Whether one more keeps all of them together within their share of the time."""
        now = self._clock()
        affordable = self._spent + self._cost <= SHARE * (now - self._begun)
        return affordable and now - self._last > LEAST_SECONDS

    def timed(self, save: Callable[[], None]) -> None:
        """Save, and remember what it took."""
        started = self._clock()
        save()
        self._last = self._clock()
        self._cost = self._last - started
        self._spent += self._cost


class Checkpoints:
    """The two generations of a run's folder.

    Args:
        folder: where they lie.
        log: the log of the steps, which is cut back to what a checkpoint knows.
        own: the ``fingerprint`` of the run; what another run left is thrown away.
    """

    def __init__(self, folder: Path, log: Path, own: str) -> None:
        self.newest, self._before = (folder / name for name in GENERATIONS)
        self._log, self._own = log, own

    def save(self, moving: Trainable, stepper: Stepper | None, done: Done) -> None:
        """Write everything that the next step depends on; without a stepper it starts afresh.

        All ranks' shards are gathered one after the other and written whole by the first rank, so
        that any number of ranks goes on from them.
        The newest becomes the one before first, so no more than two lie on the disk at any time.
        """
        log = hashlib.sha256(_lines(self._log, done.step)).hexdigest()
        state = {"weights": dict(moving.state()), "log": log, "of": self._own, **done._asdict()}
        state |= stepper.state() if stepper else {}
        if not first():
            return
        if self.newest.exists():
            rename(self.newest, self._before)
        kept.save(state, self.newest)

    def load(self, moving: Trainable, stepper: Stepper) -> Done:
        """What was saved last and is whole, the log cut back to it.

        The beginning where nothing was, or what is there is damaged or another run's. Every rank
        has a log of its own; all go on from what the first one finds.
        """
        state, lines = self._found() if first() else ({}, b"")
        lines = told(lines)
        named = ("step", "memory", "stopped")
        done = told(Done(*(state[n] for n in named)) if state else Done(0, {}, False))
        if told(bool(state)):
            moving.restore(state.get("weights", {}))
        if told("optimizer" in state):
            stepper.restore(state)
        self._log.write_bytes(lines)
        return done

    def _found(self) -> tuple[dict[str, Any], bytes]:
        """The state that was saved last and is whole, and the lines of the log up to it."""
        for path in (self.newest, self._before):
            state = kept.load(path)
            if not state or state["of"] != self._own:
                continue
            lines = _lines(self._log, state["step"])
            if hashlib.sha256(lines).hexdigest() != state["log"]:
                tell(f"{self._log} is damaged; the steps are done again.")
                continue
            return state, lines
        for path in (self.newest, self._before, self._log):
            path.unlink(missing_ok=True)
        return {}, b""


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
