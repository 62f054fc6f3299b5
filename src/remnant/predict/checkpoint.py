"""Read weights of a checkpoint on disk (safetensors, one file or sharded) piece by piece, without building a model."""

import json
import os
import re
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from remnant.errors import UserError
from remnant.predict.casts import narrow, widen

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
BYTES = {"F32": 4, "BF16": 2, "F16": 2}
_NOT_QUANTIZED = re.compile(r"(embed|wte|wpe|lm_head|norm|\bln_|layernorm|router|\bgate\.weight|\.bias$)", re.IGNORECASE)
_CONV1D = re.compile(r"(c_attn|c_proj|c_fc)\.weight$")


class Entry(NamedTuple):
    """Where one weight lies: file, first byte, dtype of the header (F32, BF16, F16, ...) and shape."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=np.int64))


class Checkpoint:
    """The index of a folder of safetensors. Keeps the files that were read from open, as opening costs as much as reading a piece.

    Raises:
        UserError: no folder, no safetensors, a missing shard, a file that is damaged or cut short.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        for file in _shards(folder):
            self.entries |= _header(file)
        self.transposed = _conv1d(folder)
        self._opened: dict[Path, FileIO] = {}

    def matrices(self) -> list[str]:
        """Names of the weights that quantizers usually touch: two or more dimensions, no embedding, head, norm or router."""
        return [n for n, e in self.entries.items() if len(e.shape) > 1 and not _NOT_QUANTIZED.search(n)]

    def turned(self, name: str) -> bool:
        """Whether the weight is stored as [in, out] (GPT-2)."""
        return self.transposed and bool(_CONV1D.search(name))

    def read(self, name: str, rounded_to: str = "F32") -> Floats:
        """One whole weight as float32 [..., out, in], rounded to what a dtype of a header can hold."""
        entry = self.entries[name]
        raw = self.read_into(name, 0, np.empty(entry.size * BYTES[entry.dtype], np.uint8))
        flat = as_float32(raw, entry.dtype, np.empty(entry.size, np.float32))
        round_to(flat, entry.dtype, rounded_to)
        weight = flat.reshape(entry.shape)
        return np.ascontiguousarray(weight.T) if self.turned(name) else weight

    def read_into(self, name: str, first: int, raw: Bytes) -> Bytes:
        """Fill ``raw`` with the bytes of a weight's entries from ``first`` on, as they are on the disk."""
        entry = self.entries[name]
        file = self._opened.get(entry.file) or self._opened.setdefault(entry.file, FileIO(entry.file))
        read = os.preadv(file.fileno(), [raw.data], entry.offset + first * BYTES[entry.dtype])
        if read != raw.size:
            raise UserError(f"{entry.file} is cut short inside {name}.", "Copy or download the checkpoint again.")
        return raw


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
    """Round weights in place from the dtype they are stored in to a narrower one; to the same or a wider one nothing happens."""
    if BYTES[dtype] < BYTES[stored]:
        if dtype == "BF16":
            narrow(weights.view(np.int32))
        else:
            weights[:] = weights.astype(np.float16)


def _shards(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"The checkpoint {folder} is not a folder.", "Give a folder with *.safetensors in it.")
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        files = sorted({folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    files = [f for f in files if f.name != "codes.safetensors"]
    if not files:
        raise UserError(f"The folder {folder} has no *.safetensors.", "Save the model again with save_pretrained.")
    for file in files:
        if not file.is_file():
            raise UserError(f"The shard {file.name} of {folder} is missing.", "Copy or download the checkpoint again.")
    return files


def _header(file: Path) -> dict[str, Entry]:
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= size - 8:
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(opened.read(length))
    except ValueError as error:
        raise UserError(f"{file} is damaged or no safetensors file ({error}).", "Copy or download the checkpoint again.") from error
    header.pop("__metadata__", None)
    entries = {n: Entry(file, 8 + length + e["data_offsets"][0], e["dtype"], tuple(e["shape"])) for n, e in header.items()}
    if max((8 + length + e["data_offsets"][1] for e in header.values()), default=0) > size:
        raise UserError(f"{file} is cut short.", "Copy or download the checkpoint again.")
    return entries


def _conv1d(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") == "gpt2"
