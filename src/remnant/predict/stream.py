"""Two checkpoints in, sums per weight and grid out: read, widened and rounded in pieces that stay in the cache."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from remnant.errors import UserError
from remnant.functional.survival import Sums, untouched
from remnant.predict import kernels
from remnant.predict.checkpoint import BYTES, Checkpoint, as_float32, round_to
from remnant.predict.grids import Grid, Table, least_common_block, table

Floats = NDArray[np.float32]
Raw = NDArray[np.uint16] | Floats
# Weights that are read at a time, and that are widened at a time and stay in the cache.
PIECE, RUN = 1 << 20, 1 << 14


class Piece(NamedTuple):
    """A run of whole rows of one weight."""

    name: str
    first: int
    size: int


class Scratch(threading.local):
    """The buffers of one thread, made once."""

    def __init__(self) -> None:
        self.buffers: dict[str, NDArray[np.uint8]] = {}

    def take(self, role: str, size: int) -> NDArray[np.uint8]:
        """So many bytes; those of one role are used again."""
        if self.buffers.get(role, np.empty(0)).size < size:
            self.buffers[role] = np.empty(size, np.uint8)
        return self.buffers[role][:size]


def survey(
    target: Checkpoint,
    unlearned: Checkpoint,
    grids: Sequence[Grid],
    report: Callable[[int, int, str], None] = lambda done, total, note: None,
    threads: int | None = None,
    keep: Sequence[str] = (),
) -> dict[str, dict[str, Sums]]:
    """For every quantizable weight and every grid the sums of `functional/survival.py`.

    A target that is stored wider than the unlearned model is rounded to its dtype first. Never holds more than a few pieces of 256k
    entries per thread. A grid whose group does not divide a weight's rows is left out for it.

    Args:
        target: the model before.
        unlearned: the model after; same names and shapes.
        grids: what to round to.
        report: called with (entries done, entries in all, name).
        threads: by default one per core.
        keep: a weight whose name contains one of these words stays as it is, as in mixed precision.

    Raises:
        UserError: other names or shapes, a dtype that is not float32, bfloat16 or float16, or weights that are not finite.
    """
    names = shared(target, unlearned)
    scratch = Scratch()
    total = sum(target.entries[n].size for n in names)
    done = 0
    found: dict[str, dict[str, Sums]] = {}
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        for name in names:
            columns, usable = _usable(target, name, grids)
            kept = any(word in name for word in keep)
            taken = usable[:1] if kept else usable  # of what is kept only the update counts, which is the same for every grid
            pieces = list(_pieces(target, name, columns, taken))
            pair = partial(_load, scratch, target, unlearned)
            whole = _whole(pool, pair, pieces) if any(g.block < 0 for g in taken) else np.zeros((4, 1), np.float32)
            rounds = partial(_round, pair, table(taken, columns), _run(columns, taken), whole)
            sums = sum(pool.map(rounds, pieces), np.zeros((len(taken), 7)))
            size = target.entries[name].size
            done += size
            report(done, total, name)
            rows = np.broadcast_to(sums, (len(usable), 7))
            found[name] = {g.name: _sums(name, size, row, kept) for g, row in zip(usable, rows, strict=True)}
    return found


def shared(target: Checkpoint, unlearned: Checkpoint) -> list[str]:
    """The quantizable weights of two checkpoints of one model.

    Raises:
        UserError: they are not of one model.
    """
    names = target.matrices()
    if not names:
        raise UserError(f"{target.folder} holds no weight that a quantizer would touch.", "Give a checkpoint of a language model.")
    for name in names:
        if name not in unlearned.entries:
            raise UserError(f"{unlearned.folder} has no weight {name}.", "Give two checkpoints of one model; merge adapters first.")
        one, other = target.entries[name], unlearned.entries[name]
        if one.shape != other.shape:
            raise UserError(f"{name} has shape {one.shape} in one checkpoint and {other.shape} in the other.", "Give two of one model.")
        for entry in (one, other):
            if entry.dtype not in BYTES:
                raise UserError(
                    f"{name} in {entry.file} is stored as {entry.dtype}, already quantized.",
                    "Give both checkpoints before quantization (float32, bfloat16 or float16).",
                )
    return names


def _usable(target: Checkpoint, name: str, grids: Sequence[Grid]) -> tuple[int, list[Grid]]:
    """Columns of a weight as [out, in], and the grids whose groups divide them."""
    shape = target.entries[name].shape
    columns = shape[0] if target.turned(name) else shape[-1]
    return columns, [g for g in grids if g.family in ("nf4", "fp4") or g.block <= 0 or columns % g.block == 0]


def _pieces(target: Checkpoint, name: str, columns: int, grids: Sequence[Grid]) -> Iterator[Piece]:
    """Runs of rows in which every block is whole; a transposed weight is one piece."""
    size = target.entries[name].size
    if target.turned(name):
        yield Piece(name, 0, size)
        return
    rows = max(1, PIECE // columns)
    blocks = least_common_block(list(grids))
    if columns % blocks:
        rows = max(blocks, rows // blocks * blocks)
    for first in range(0, size, rows * columns):
        yield Piece(name, first, min(rows * columns, size - first))


def _load(scratch: Scratch, target: Checkpoint, unlearned: Checkpoint, piece: Piece) -> tuple[Raw, Raw]:
    """A piece of both models: bits of bfloat16 where both are stored so, else float32.

    The target is rounded to the dtype that the unlearned model is stored in: a cast is not an update.
    """
    stored = target.entries[piece.name].dtype, unlearned.entries[piece.name].dtype
    if target.turned(piece.name):
        t, u = target.read(piece.name, stored[1]), unlearned.read(piece.name, stored[0])
        return t.reshape(-1), u.reshape(-1)
    plain = stored == ("BF16", "BF16")
    found: list[Raw] = []
    for model, role, dtype, other in ((target, "t", stored[0], stored[1]), (unlearned, "u", stored[1], stored[0])):
        raw = model.read_into(piece.name, piece.first, scratch.take(role, piece.size * BYTES[dtype]))
        if plain:
            found.append(raw.view(np.uint16))
            continue
        wide = as_float32(raw, dtype, scratch.take(f"wide {role}", 4 * piece.size).view(np.float32))
        round_to(wide, dtype, other)
        found.append(wide)
    return found[0], found[1]


def _whole(pool: ThreadPoolExecutor, pair: Callable[[Piece], tuple[Raw, Raw]], pieces: list[Piece]) -> Floats:
    """[4, 1] smallest and largest of a whole weight, in the target and in the unlearned model: a pass of its own."""

    def ends(piece: Piece) -> list[float]:
        return [float(value) for side in pair(piece) for value in kernels.ends(side)]

    found = np.array(list(pool.map(ends, pieces)), np.float32)
    return np.array([found[:, 0].min(), found[:, 1].max(), found[:, 2].min(), found[:, 3].max()], np.float32)[:, None]


def _run(columns: int, grids: Sequence[Grid]) -> int:
    """How many weights stay in the cache at a time, whole rows; 0 for the whole piece, where blocks go on over the ends of rows."""
    run = max(1, RUN // columns) * columns
    return run if all(run % g.block == 0 for g in grids if g.block > 0) else 0


def _round(pair: Callable[[Piece], tuple[Raw, Raw]], grids: Table, run: int, whole: Floats, piece: Piece) -> NDArray[np.float64]:
    """[grids, 7] the sums of one piece, in the order of ``kernels.survey``."""
    t, u = pair(piece)
    sums = np.zeros((len(grids.kinds), 7))
    kernels.survey(t, u, run or piece.size, *grids, whole, sums)
    return sums


def _sums(name: str, weights: int, row: NDArray[np.float64], kept: bool) -> Sums:
    update, changed, restored, together, same, erased, over_scale = row
    if not np.isfinite(update + restored):
        raise UserError(f"{name} holds a value that is not finite.", "The checkpoint is broken; unlearn or copy it again.")
    if kept:
        return untouched(float(update), weights, int(changed))
    return Sums(float(update), float(restored), float(together), float(over_scale), weights, int(changed), int(same), int(erased))
