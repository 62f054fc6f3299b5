"""Whether two models whose windows are equal are equal in all weights. Such files are read whole,
each once, since nothing else tells a copy from a model that was changed outside of the windows.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from remnant.ancestry.windows import DTYPES, PLAIN, Sample
from remnant.errors import UserError
from remnant.packing import gguf_in, gguf_library
from remnant.weightfiles import Entry, compare_names, entries_of, wrapper_of

# Bytes that are read at a time.
PIECE = 1 << 26


Contents = Mapping[str, str]


def equal(a: Sample, b: Sample, read: Callable[[Path], Contents]) -> bool:
    """Whether two models have the same values in every weight that both hold, and hold the same
    weights; of models that are packed in different ways only windows can tell, and tell it.

    ``read``: ``contents``, with a memory.
    """
    if a.kind != b.kind:
        return True
    one, other = read(a.path), read(b.path)
    try:
        compare_names(a.path, one, b.path, other)
    except UserError:
        return False
    return all(one[name] == other[name] for name in one.keys() & other.keys())


def contents(path: Path) -> Contents:
    """The digest of the values of every weight; of floats as float32, whatever they are kept in."""
    if file := gguf_in(path):
        tensors = gguf_library().GGUFReader(file).tensors
        return {
            t.name: hashlib.sha256(np.ascontiguousarray(t.data).data).hexdigest() for t in tensors
        }
    entries = entries_of(path)
    prefix = wrapper_of(entries) or ""
    return {name.removeprefix(prefix): _values(entry) for name, entry in entries.items()}


def _values(entry: Entry) -> str:
    found = hashlib.sha256()
    if not entry.size:
        return found.hexdigest()
    raw = np.memmap(entry.file, np.uint8, "r", entry.offset, (entry.bytes,))
    for first in range(0, entry.bytes, PIECE):
        piece = np.array(raw[first : first + PIECE])
        if entry.dtype in PLAIN:
            piece = torch.from_numpy(piece).view(DTYPES[entry.dtype]).float().numpy()
        found.update(piece.data)
    return found.hexdigest()
