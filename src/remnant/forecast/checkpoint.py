"""Read weights of a checkpoint on disk (safetensors, one file or sharded) piece by piece, without
building a model.
"""

import os
import re
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from remnant.errors import UserError
from remnant.forecast.casts import narrow, widen
from remnant.functional.touched import is_quantized_by_default
from remnant.weightfiles import COPY_AGAIN, Entry, config_of, entries_of

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
BYTES = {"F32": 4, "BF16": 2, "F16": 2}
_CONV1D = re.compile(r"(c_attn|c_proj|c_fc)\.weight$")


class Update(Protocol):
    """What is added to a weight: its entries from one on, in the order of the rows."""

    def entries(self, first: int, weight: Floats) -> Floats:
        """What is added to the entries from ``first`` on, which are ``weight``."""


class _Twice(NamedTuple):
    """An update of what another one has moved."""

    once: Update
    again: Update

    def entries(self, first: int, weight: Floats) -> Floats:
        moved = self.once.entries(first, weight)
        return moved + self.again.entries(first, weight + moved)


class Checkpoint:
    """The index of a folder of safetensors, some weights with an update that is added to them.

    Keeps the files that were read from open, as opening costs as much as reading a piece.

    Raises:
        UserError: no folder, no safetensors, a missing shard, a file that is damaged or cut short.
    """

    def __init__(self, folder: Path, updates: Mapping[str, Update] | None = None) -> None:
        self.folder = folder
        self._stored = entries_of(folder)
        self._updates = updates or {}
        # A weight with an update is as it would be merged, in float32.
        self.entries: dict[str, Entry] = {
            name: entry._replace(dtype="F32") if name in self._updates else entry
            for name, entry in self._stored.items()
        }
        self.transposed = _conv1d(folder)
        self._opened: dict[Path, FileIO] = {}

    def matrices(self) -> list[str]:
        """Names of the weights that quantizers usually touch: linear layers and stacked experts
        (`remnant.functional.touched`).
        """
        return [n for n, e in self.entries.items() if is_quantized_by_default(n, e.shape)]

    def moved(self, update: Update) -> "Checkpoint":
        """The same with every one of its matrices moved once more."""
        own = self._updates
        return Checkpoint(
            self.folder,
            {n: _Twice(own[n], update) if n in own else update for n in self.matrices()},
        )

    def turned(self, name: str) -> bool:
        """Whether the weight is stored as [in, out] (GPT-2)."""
        return self.transposed and bool(_CONV1D.search(name))

    def read(self, name: str, rounded_to: str = "F32") -> Floats:
        """One whole weight as float32 [..., out, in], rounded to what a dtype of a header can
        hold.
        """
        entry = self.entries[name]
        raw = self.read_into(name, 0, np.empty(entry.size * BYTES[entry.dtype], np.uint8))
        flat = as_float32(raw, entry.dtype, np.empty(entry.size, np.float32))
        round_to(flat, entry.dtype, rounded_to)
        weight = flat.reshape(entry.shape)
        return np.ascontiguousarray(weight.T) if self.turned(name) else weight

    def read_into(self, name: str, first: int, raw: Bytes) -> Bytes:
        """Fill ``raw`` with the bytes of a weight's entries from ``first`` on, as they are on the
        disk; of one that has an update, with those of the sum.
        """
        if name in self._updates:
            size = raw.size // BYTES["F32"]
            entry = self._stored[name]
            own = self._from_disk(name, first, np.empty(size * BYTES[entry.dtype], np.uint8))
            plain = as_float32(own, entry.dtype, np.empty(size, np.float32))
            raw.view(np.float32)[:] = plain + self._updates[name].entries(first, plain)
            return raw
        return self._from_disk(name, first, raw)

    def _from_disk(self, name: str, first: int, raw: Bytes) -> Bytes:
        entry = self._stored[name]
        file = self._opened.get(entry.file) or self._opened.setdefault(
            entry.file, FileIO(entry.file)
        )
        read = os.preadv(file.fileno(), [raw.data], entry.offset + first * BYTES[entry.dtype])
        if read != raw.size:
            raise UserError(f"{entry.file} is cut short inside {name}.", COPY_AGAIN)
        return raw


def stored_as_float32(entry: Entry) -> Floats:
    """All of one weight of a file, as float32."""
    if entry.dtype not in BYTES:
        raise UserError(f"{entry.file} holds weights in {entry.dtype}.", "Save it in float32.")
    raw = np.fromfile(entry.file, np.uint8, entry.size * BYTES[entry.dtype], offset=entry.offset)
    return as_float32(raw, entry.dtype, np.empty(entry.size, np.float32)).reshape(entry.shape)


def as_float32(raw: Bytes, dtype: str, out: Floats) -> Floats:
    """Bytes of a dtype of a header as float32, in ``out`` unless they are that already."""
    if dtype == "F32":
        return raw.view(np.float32)
    if dtype == "BF16":
        widen(raw.view(np.uint16), out)
    else:
        out[:] = raw.view(np.float16)
    return out


def round_to(weights: Floats, stored: str, dtype: str) -> None:
    """Round weights in place from the dtype they are stored in to a narrower one.

    To the same or a wider one nothing happens.
    """
    if BYTES[dtype] < BYTES[stored]:
        if dtype == "BF16":
            narrow(weights.view(np.int32))
        else:
            weights[:] = weights.astype(np.float16)


def _conv1d(folder: Path) -> bool:
    return config_of(folder).get("model_type") == "gpt2"
