"""Whether models from outside hold finite weights, told from their files before long work."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from remnant.errors import UserError
from remnant.flow.node import Node
from remnant.flow.place import Outside
from remnant.weightfiles import Entry, entries_of, shown

# An infinity, and what is no number, has an exponent of ones alone: the bytes of a
# number, and these bits, by the dtype of a header.
EXPONENTS: Mapping[str, tuple[int, int]] = {
    "F32": (4, 0x7F800000),
    "BF16": (2, 0x7F80),
    "F16": (2, 0x7C00),
}
# Numbers that are read at a time: 64 MB of float32.
PIECE = 1 << 24


def check_sources(nodes: Iterable[Node]) -> None:
    """See that the models from outside that several measurements are about hold finite weights.

    One broken model among several would end a comparison when the others are measured. What is
    looked at by one piece of work alone, it looks at itself.

    Raises:
        UserError: one does not.
    """
    sources = {
        source.source: source
        for node in nodes
        if node.stage in ("measure", "transform")
        for role, source in node.inputs.items()
        if role == "model" and isinstance(source, Outside)
    }
    for place, source in sources.items() if len(sources) > 1 else ():
        plain = any(Path(place).glob("*.safetensors")) and source.packing is None
        for name, entry in entries_of(Path(place)).items() if plain else ():
            if not is_finite(entry):
                raise UserError(
                    f"The weight {shown(name)} of {place} holds values that are not finite.",
                    "The file is broken, or was saved from a model that had diverged.",
                )


def is_finite(entry: Entry) -> bool:
    """Whether a weight in a file holds finite numbers only; True of other dtypes, which its own
    reader looks at.
    """
    if entry.dtype not in EXPONENTS:
        return True
    wide, ones = EXPONENTS[entry.dtype]
    kind: np.dtype[np.unsignedinteger] = np.dtype(f"<u{wide}")
    for first in range(0, entry.size, PIECE):
        count = min(PIECE, entry.size - first)
        bits = np.fromfile(entry.file, kind, count, offset=entry.offset + first * wide)
        if ((bits & ones) == ones).any():
            return False
    return True
