"""Two checkpoints in, sums per weight and grid out: read, widened and rounded in pieces that stay in the cache.

All of both checkpoints is read, for the update and for the extremes that set a scale. Grids are tried on all of a weight too, or, where
it is large, on a sample of its rows that is spread evenly: rounding costs far more than reading, and two million entries tell enough.
"""

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
from remnant.predict.glance import look
from remnant.predict.grids import Grid, Table, least_common_block, table

Floats = NDArray[np.float32]
Raw = NDArray[np.uint16] | Floats
# Entries that are read at a time, and that are widened at a time and stay in the cache.
PIECE, RUN = 1 << 20, 1 << 14
# A weight of more than twice so many entries is sampled, in slices of about so many.
SAMPLE, SLICE = 1 << 21, 1 << 16
# A sample speaks for its weight if it holds the update in proportion, within this factor; else all of the weight is rounded.
FAIR = 1.5


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
    sample: int = SAMPLE,
) -> dict[str, dict[str, Sums]]:
    """For every quantizable weight and every grid the sums of `functional/survival.py`.

    A target that is stored wider than the unlearned model is rounded to its dtype first. Never holds more than a few pieces of a million
    entries per thread. A grid whose group does not divide a weight's rows is left out for it.

    The update and the number of changed weights are exact. What a grid does to a weight of more than ``2 * sample`` entries is measured on
    about ``sample`` of them and scaled up to the whole update; the standard error of a gain is then about sqrt(D / (``sample`` |d|)), D the
    grid's step and |d| a typical update of an entry.

    Args:
        target: the model before.
        unlearned: the model after; same names and shapes.
        grids: what to round to.
        report: called with (entries done, entries in all, name).
        threads: by default one per core.
        keep: a weight whose name contains one of these words stays as it is, as in mixed precision.
        sample: entries of a weight that grids are tried on; 0 for all.

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
            size = target.entries[name].size
            pair = partial(_load, scratch, target, unlearned)
            pieces = list(_pieces(target, name, columns, usable, PIECE))
            glance = _glance(pool, pair, pieces)
            if not np.isfinite(glance.update):
                raise UserError(f"{name} holds a value that is not finite.", "The checkpoint is broken; unlearn or copy it again.")
            if any(word in name for word in keep):
                kept = untouched(glance.update, size, glance.changed)
                found[name] = {g.name: kept for g in usable}
            else:
                rounds = partial(_round, pair, table(usable, columns), _run(columns, usable), glance.ends)
                for taken in (_sampled(target, name, columns, usable, sample) or pieces, pieces):
                    sums = sum(pool.map(rounds, taken), np.zeros((len(usable), 7)))
                    looked = sum(piece.size for piece in taken)
                    if _fair(sums, glance, looked / size):
                        break
                found[name] = {g.name: _sums(row, glance, size, looked) for g, row in zip(usable, sums, strict=True)}
            done += size
            report(done, total, name)
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


def _pieces(target: Checkpoint, name: str, columns: int, grids: Sequence[Grid], entries: int) -> Iterator[Piece]:
    """Runs of about so many entries in whole rows, in which every block is whole; a transposed weight is one piece."""
    size = target.entries[name].size
    if target.turned(name):
        yield Piece(name, 0, size)
        return
    rows = max(1, entries // columns)
    blocks = least_common_block(list(grids))
    if columns % blocks:
        rows = max(blocks, rows // blocks * blocks)
    for first in range(0, size, rows * columns):
        yield Piece(name, first, min(rows * columns, size - first))


def _sampled(target: Checkpoint, name: str, columns: int, grids: Sequence[Grid], sample: int) -> list[Piece]:
    """Slices of a large weight, one at random from each of many equal parts; none of one that is to be rounded whole."""
    size = target.entries[name].size
    if not sample or size <= 2 * sample or target.turned(name):
        return []
    slices = list(_pieces(target, name, columns, grids, SLICE))
    count = -(-sample * len(slices) // size)
    places = (np.arange(count) + np.random.default_rng(0).random(count)) * len(slices) / count
    return [slices[int(place)] for place in places]


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


class Glance(NamedTuple):
    """What one look at a whole weight tells: <d, d>, changed entries, [4, 1] smallest and largest of target and unlearned model."""

    update: float
    changed: int
    ends: Floats


def _glance(pool: ThreadPoolExecutor, pair: Callable[[Piece], tuple[Raw, Raw]], pieces: list[Piece]) -> Glance:
    def one(piece: Piece) -> NDArray[np.float64]:
        out = np.zeros(6)
        look(*pair(piece), out)
        return out

    found = np.array(list(pool.map(one, pieces)))
    ends = [found[:, 2].min(), found[:, 3].max(), found[:, 4].min(), found[:, 5].max()]
    return Glance(float(found[:, 0].sum()), int(found[:, 1].sum()), np.array(ends, np.float32)[:, None])


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


def _fair(sums: NDArray[np.float64], glance: Glance, share: float) -> bool:
    """Whether what was rounded, a share of the weight, holds its part of the update, so that it can stand for all."""
    if not glance.update or not len(sums):
        return True
    return bool(1 / FAIR <= sums[0, 0] / glance.update / share <= FAIR)


def _sums(row: NDArray[np.float64], glance: Glance, size: int, looked: int) -> Sums:
    """The sums of a whole weight from those of what was rounded of it, ``looked`` entries."""
    update, changed, restored, together, same, erased, over_scale = row
    energy = glance.update / update if update else 1.0
    count = glance.changed / changed if changed else 1.0
    return Sums(
        glance.update,
        float(restored * energy),
        float(together * energy),
        float(over_scale * count),
        size,
        glance.changed,
        round(same * size / looked),
        round(erased * count),
    )
