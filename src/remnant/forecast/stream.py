"""Two checkpoints in, sums per weight and grid out: read, widened and rounded in pieces that stay
in the cache.

All of both checkpoints is read, for the update and for the extremes that set a scale. Grids are
tried on all of a weight too, or, where it is large, on a sample of its rows that is spread evenly:
rounding costs far more than reading, and two million entries tell enough.
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
from remnant.forecast import kernels
from remnant.forecast.casts import all_finite
from remnant.forecast.checkpoint import BYTES, Checkpoint, as_float32, round_to
from remnant.forecast.glance import look
from remnant.forecast.grids import Table, least_common_block, table
from remnant.formats.base import Grid
from remnant.functional.survival import Sums, untouched
from remnant.weightfiles import compare_names

Floats = NDArray[np.float32]
Raw = NDArray[np.uint16] | Floats
# Entries that are read at a time, and that are widened at a time and stay in the cache.
PIECE, RUN = 1 << 20, 1 << 14
# A weight of more than twice so many entries is sampled, in slices of about so many.
SAMPLE, SLICE = 1 << 21, 1 << 16
# A sample speaks for its weight if it holds the update in proportion, within this factor; else all
# of the weight is rounded.
FAIR = 1.5


class Part(NamedTuple):
    """A run of whole rows of one weight: ``size`` entries from ``first`` on."""

    name: str
    first: int
    size: int


Pair = Callable[[Part], tuple[Raw, Raw]]


class Reader(NamedTuple):
    """What reads two checkpoints side by side: a pool of threads, what gives a piece of both, and
    the target, whose files say how the weights lie.
    """

    pool: ThreadPoolExecutor
    pair: Pair
    target: Checkpoint


class Glance(NamedTuple):
    """What one look at some rows tells: <d, d>, changed entries, [4, 1] smallest and largest of
    target and unlearned model.
    """

    update: float
    changed: int
    ends: Floats


class Scratch(threading.local):
    """The buffers of one thread, made once."""

    def __init__(self) -> None:
        self.buffers: dict[str, NDArray[np.uint8]] = {}

    def take(self, role: str, size: int) -> NDArray[np.uint8]:
        """So many bytes; those of one role are used again."""
        if self.buffers.get(role, np.empty(0)).size < size:
            self.buffers[role] = np.empty(size, np.uint8)
        return self.buffers[role][:size]


def scan(
    target: Checkpoint,
    unlearned: Checkpoint,
    grids: Sequence[Grid],
    report: Callable[[int, int, str], None] = lambda done, total, note: None,
    keep: Sequence[str] = (),
    sample: int = SAMPLE,
) -> dict[str, dict[str, Sums]]:
    """For every quantizable weight and every grid the sums of `functional/survival.py`.

    A target that is stored wider than the unlearned model is rounded to its dtype first. Never
    holds more than a few pieces of a million entries per core. A grid whose group does not divide a
    weight's rows is left out for it.

    The update and the number of changed weights are exact. What a grid does to a weight of more
    than ``2 * sample`` entries is measured on about ``sample`` of them and scaled up to the whole
    update; the standard error of a gain is then about sqrt(D / (``sample`` |d|)), D the grid's step
    and |d| a typical update of an entry.

    Args:
        target: the model before.
        unlearned: the model after; same names and shapes.
        grids: what to round to.
        report: called with (entries done, entries in all, name).
        keep: a weight whose name contains one of these words stays as it is, as in mixed precision.
        sample: entries of a weight that grids are tried on; 0 for all.

    Raises:
        UserError: other names or shapes, a dtype that is not float32, bfloat16 or float16, or
            weights that are not finite.
    """
    names = shared(target, unlearned)
    total = sum(target.entries[n].size for n in names)
    if kernels.must_compile():
        report(0, total, "compiling (once)")
    done = 0
    found: dict[str, dict[str, Sums]] = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        reader = Reader(pool, partial(_load, Scratch(), target, unlearned), target)
        for model in (target, unlearned):
            _check_others(pool, model, set(names))
        for name in names:
            kept = any(word in name for word in keep)
            found[name] = _weight(reader, name, grids, sample, kept=kept)
            done += target.entries[name].size
            report(done, total, name)
    return found


def _weight(
    reader: Reader, name: str, grids: Sequence[Grid], sample: int, *, kept: bool
) -> dict[str, Sums]:
    """The sums of one weight by grid.

    Stacked experts have a scale each on a grid with one per weight, as in the quantizers.
    """
    target = reader.target
    columns, usable = _usable(target, name, grids)
    parts = _experts(target, name)
    alone = [g for g in usable if g.whole] if len(parts) > 1 else []
    together = [g for g in usable if g not in alone]
    glances = [
        _glance(reader, list(_pieces(target, part, columns, together, PIECE))) for part in parts
    ]
    for glance in glances:
        _check_glance(name, glance, () if kept else usable)
    whole = _joined(glances)
    everything = Part(name, 0, target.entries[name].size)
    if kept:
        return {g.name: untouched(whole.update, everything.size, whole.changed) for g in usable}
    found = _rounded(reader, everything, columns, together, whole, sample)
    of_each = max(sample // len(parts), min(sample, SLICE))
    for part, glance in zip(parts, glances, strict=True) if alone else ():
        own = _rounded(reader, part, columns, alone, glance, of_each)
        found |= {n: found.get(n, Sums()).plus(s) for n, s in own.items()}
    return {g.name: found[g.name] for g in usable}


def _rounded(
    reader: Reader,
    part: Part,
    columns: int,
    grids: Sequence[Grid],
    glance: Glance,
    sample: int,
) -> dict[str, Sums]:
    """The sums of a run of whole rows, from a sample of its slices where that is fair, else from
    all.
    """
    pieces = list(_pieces(reader.target, part, columns, grids, PIECE))
    rounds = partial(
        _round, reader.pair, table(grids, columns, glance.ends), _run(columns, grids), glance.ends
    )
    for taken in (_sampled(reader.target, part, columns, grids, sample) or pieces, pieces):
        sums = sum(reader.pool.map(rounds, taken), np.zeros((len(grids), 7)))
        looked = sum(piece.size for piece in taken)
        if _fair(sums, glance, looked / part.size):
            break
    return {
        g.name: _sums(row, glance, part.size, looked) for g, row in zip(grids, sums, strict=True)
    }


def _experts(target: Checkpoint, name: str) -> list[Part]:
    """The [out, in] matrices of a weight, as runs of its entries."""
    entry = target.entries[name]
    size = entry.shape[-2] * entry.shape[-1]
    return [Part(name, first, size) for first in range(0, entry.size, size)]


def _check_glance(name: str, glance: Glance, grids: Sequence[Grid]) -> None:
    if not np.isfinite(glance.update):
        raise UserError(
            f"{name} holds a value that is not finite, or too large to be squared.",
            "The checkpoint is broken; unlearn or copy it again.",
        )
    largest = float(np.abs(glance.ends).max())
    for g in grids:
        if largest > g.limit:
            raise UserError(
                f"{name} holds {largest:.3g}, too large for the scales of {g.name}.",
                "Leave this grid out, or keep it.",
            )


def _check_others(pool: ThreadPoolExecutor, model: Checkpoint, looked_at: set[str]) -> None:
    """Whether the weights that no grid touches are finite too: a model with a broken norm has
    forgotten nothing.
    """

    def broken(name: str) -> str | None:
        entry = model.entries[name]
        for first in range(0, entry.size, PIECE) if entry.dtype in BYTES else ():
            raw = np.empty(min(PIECE, entry.size - first) * BYTES[entry.dtype], np.uint8)
            if not all_finite(entry.dtype, model.read_into(name, first, raw)):
                return name
        return None

    for name in filter(None, pool.map(broken, [n for n in model.entries if n not in looked_at])):
        raise UserError(
            f"{name} in {model.folder} holds a value that is not finite.",
            "The checkpoint is broken; unlearn or copy it again.",
        )


def shared(target: Checkpoint, unlearned: Checkpoint) -> list[str]:
    """The quantizable weights of two checkpoints of one model.

    Raises:
        UserError: they are not of one model.
    """
    names = target.matrices()
    if not names:
        raise UserError(
            f"{target.folder} holds no weight that a quantizer would touch.",
            "Give a checkpoint of a language model.",
        )
    compare_names(target.folder, target.entries, unlearned.folder, unlearned.entries)
    for name in names:
        one, other = target.entries[name], unlearned.entries[name]
        if one.shape != other.shape:
            raise UserError(
                f"{name} has shape {one.shape} in one checkpoint and {other.shape} in the other.",
                "Give two of one model.",
            )
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
    return columns, [g for g in grids if g.over_rows or g.block <= 0 or columns % g.block == 0]


def _pieces(
    target: Checkpoint, part: Part, columns: int, grids: Sequence[Grid], entries: int
) -> Iterator[Part]:
    """Runs of about so many entries in whole rows, in which every block is whole.

    A transposed weight is one piece.
    """
    if target.turned(part.name):
        yield part
        return
    rows = max(1, entries // columns)
    blocks = least_common_block(list(grids))
    if columns % blocks:
        rows = max(blocks, rows // blocks * blocks)
    for first in range(0, part.size, rows * columns):
        yield Part(part.name, part.first + first, min(rows * columns, part.size - first))


def _sampled(
    target: Checkpoint, part: Part, columns: int, grids: Sequence[Grid], sample: int
) -> list[Part]:
    """Slices of a large weight, one at random from each of many equal parts.

    None of one that is to be rounded whole.
    """
    if not sample or part.size <= 2 * sample or target.turned(part.name):
        return []
    slices = list(_pieces(target, part, columns, grids, SLICE))
    count = -(-sample * len(slices) // part.size)
    places = (np.arange(count) + np.random.default_rng(0).random(count)) * len(slices) / count
    return [slices[int(place)] for place in places]


def _load(
    scratch: Scratch, target: Checkpoint, unlearned: Checkpoint, piece: Part
) -> tuple[Raw, Raw]:
    """A piece of both models: bits of bfloat16 where both are stored so, else float32.

    The target is rounded to the dtype that the unlearned model is stored in: a cast is not an
    update.
    """
    stored = target.entries[piece.name].dtype, unlearned.entries[piece.name].dtype
    if target.turned(piece.name):
        t, u = target.read(piece.name, stored[1]), unlearned.read(piece.name, stored[0])
        return t.reshape(-1), u.reshape(-1)
    plain = stored == ("BF16", "BF16")
    found: list[Raw] = []
    for model, role, dtype, other in (
        (target, "t", stored[0], stored[1]),
        (unlearned, "u", stored[1], stored[0]),
    ):
        raw = model.read_into(
            piece.name, piece.first, scratch.take(role, piece.size * BYTES[dtype])
        )
        if plain:
            found.append(raw.view(np.uint16))
            continue
        wide = as_float32(raw, dtype, scratch.take(f"wide {role}", 4 * piece.size).view(np.float32))
        round_to(wide, dtype, other)
        found.append(wide)
    return found[0], found[1]


def _glance(reader: Reader, pieces: list[Part]) -> Glance:
    def one(piece: Part) -> NDArray[np.float64]:
        out = np.zeros(6)
        look(*reader.pair(piece), out)
        return out

    found = np.array(list(reader.pool.map(one, pieces)))
    ends = [found[:, 2].min(), found[:, 3].max(), found[:, 4].min(), found[:, 5].max()]
    return Glance(
        float(found[:, 0].sum()), int(found[:, 1].sum()), np.array(ends, np.float32)[:, None]
    )


def _joined(glances: Sequence[Glance]) -> Glance:
    ends = np.array([g.ends[:, 0] for g in glances])
    both = [ends[:, 0].min(), ends[:, 1].max(), ends[:, 2].min(), ends[:, 3].max()]
    return Glance(
        sum(g.update for g in glances),
        sum(g.changed for g in glances),
        np.array(both, np.float32)[:, None],
    )


def _run(columns: int, grids: Sequence[Grid]) -> int:
    """How many weights stay in the cache at a time, whole rows.

    0 for the whole piece, where blocks go on over the ends of rows.
    """
    run = max(1, RUN // columns) * columns
    return run if all(run % g.block == 0 for g in grids if g.block > 0) else 0


def _round(pair: Pair, grids: Table, run: int, whole: Floats, piece: Part) -> NDArray[np.float64]:
    """[grids, 7] the sums of one piece, in the order of ``kernels.scan``."""
    t, u = pair(piece)
    sums = np.zeros((len(grids.kinds), 7))
    kernels.scan(t, u, run or piece.size, *grids, whole, sums)
    return sums


def _fair(sums: NDArray[np.float64], glance: Glance, share: float) -> bool:
    """Whether what was rounded, a share of the weight, holds its part of the update, so that it can
    stand for all.
    """
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
