"""Two checkpoints in, sums per weight and grid out: read, widened and rounded in pieces that stay in the cache."""

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from remnant.errors import UserError
from remnant.functional.survival import Sums
from remnant.predict.checkpoint import BYTES, Checkpoint, round_to
from remnant.predict.grids import Grid, add, extremes, joined, least_common_block, look

Floats = NDArray[np.float32]
PIECE = 1 << 18


class Piece(NamedTuple):
    """A run of whole rows of one weight."""

    name: str
    first: int
    size: int


class Scratch(threading.local):
    """The buffers of one thread, made once."""

    def __init__(self) -> None:
        self.floats: dict[str, Floats] = {}
        self.raw = np.empty(0, np.uint8)

    def take(self, role: str, size: int, width: int) -> tuple[Floats, NDArray[np.uint8]]:
        """A float32 buffer of so many entries, and bytes to read into."""
        if self.floats.get(role, np.empty(0)).size < size:
            self.floats[role] = np.empty(size, np.float32)
        if self.raw.size < size * width:
            self.raw = np.empty(size * width, np.uint8)
        return self.floats[role][:size], self.raw


def survey(
    target: Checkpoint,
    unlearned: Checkpoint,
    grids: Sequence[Grid],
    report: Callable[[int, int, str], None] = lambda done, total, note: None,
    threads: int | None = None,
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
            pieces = list(_pieces(target, name, columns, usable))
            whole = _whole(pool, scratch, target, unlearned, pieces) if any(g.block < 0 for g in usable) else None
            tasks = [pool.submit(_piece, scratch, target, unlearned, p, columns, usable, whole) for p in pieces]
            parts = [task.result() for task in tasks]
            done += target.entries[name].size
            report(done, total, name)
            found[name] = {g.name: _total(name, [part[i] for part in parts]) for i, g in enumerate(usable)}
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
    blocks = least_common_block(list(grids))
    rows = max(1, PIECE // columns)
    if (columns % blocks) != 0:
        rows = max(blocks, rows // blocks * blocks)
    for first in range(0, size, rows * columns):
        yield Piece(name, first, min(rows * columns, size - first))


def _load(scratch: Scratch, model: Checkpoint, role: str, piece: Piece, like: Checkpoint) -> Floats:
    """The weights of a piece, rounded to the dtype that the model they are compared with is stored in: a cast is not an update."""
    stored, wanted = model.entries[piece.name].dtype, like.entries[piece.name].dtype
    if model.turned(piece.name):
        return model.read(piece.name, wanted).reshape(-1)
    out, raw = scratch.take(role, piece.size, BYTES[stored])
    model.read_into(piece.name, piece.first, out, raw)
    round_to(out, stored, wanted)
    return out


def _whole(
    pool: ThreadPoolExecutor, scratch: Scratch, target: Checkpoint, unlearned: Checkpoint, pieces: list[Piece]
) -> tuple[np.float32, ...]:
    """Smallest and largest of a whole weight in both models: a pass of its own."""

    def ends(model: Checkpoint) -> tuple[np.float32, np.float32]:
        found = list(pool.map(lambda p: extremes(_load(scratch, model, "ends", p, unlearned)), pieces))
        return min(low for low, _ in found), max(high for _, high in found)

    return *ends(target), *ends(unlearned)


def _piece(
    scratch: Scratch,
    target: Checkpoint,
    unlearned: Checkpoint,
    piece: Piece,
    columns: int,
    grids: Sequence[Grid],
    whole: tuple[np.float32, ...] | None,
) -> NDArray[np.float64]:
    """[grids, 8] the sums of one piece, in the order of ``Sums``."""
    t, u = _load(scratch, target, "t", piece, unlearned), _load(scratch, unlearned, "u", piece, unlearned)
    lengths = [grid.length(columns, piece.size) for grid in grids]
    short = math.gcd(*(n for n in lengths if piece.size % n == 0), columns)
    update = np.zeros(3)
    known = {short: look(t, u, short, update)}
    sums = np.zeros((len(grids), 8))
    for row, grid, length in zip(sums, grids, lengths, strict=True):
        x, y = _filled(t, length), _filled(u, length)
        if length not in known:
            known[length] = joined(known[short], length // short) if x is t else look(x, y, length, np.zeros(3))
        seen = known[length]
        if grid.block < 0 and whole is not None:
            seen = seen.copy()
            seen[:4, 0] = whole
        out = np.zeros(5)
        add(grid, x, y, seen, out)
        row[:] = update[0], out[0], out[1], out[4], piece.size, update[2], out[2] - (x.size - t.size), out[3]
    return sums


def _filled(weights: Floats, block: int) -> Floats:
    """Zeros behind the last entries where they do not fill a block; equal in both models, they add equal codes only."""
    return weights if weights.size % block == 0 else np.pad(weights, (0, -weights.size % block))


def _total(name: str, parts: list[NDArray[np.float64]]) -> Sums:
    update, restored, together, over_scale, weights, changed, same, erased = np.sum(parts, axis=0)
    if not np.isfinite(update + restored):
        raise UserError(f"{name} holds a value that is not finite.", "The checkpoint is broken; unlearn or copy it again.")
    return Sums(float(update), float(restored), float(together), float(over_scale), int(weights), int(changed), int(same), int(erased))
