"""GGUF's plain blocks as grids: q8_0, q4_0."""

from typing import Annotated

from remnant.formats.base import MOST_GROUP, Format, Grid, within
from remnant.records.base import Record

# Scales are kept as float16, whose largest number this is.
LARGEST_HALF = 65504


class Blocks(Record):
    """Entries that share a scale; files have 32."""

    block: Annotated[int, within("blocks are of", 1, MOST_GROUP)] = 32


Q8_0 = Format(
    key="q8_0",
    path="remnant.functional.quantizers:q8_0",
    version=1,
    meaning="GGUF's 8-bit blocks of 32",
    source="llama.cpp, ggml-quants.c",
    params=Blocks,
    read=lambda name: Blocks() if name == "q8_0" else None,
    write=lambda params: "q8_0",
    names=("q8_0",),
    grid=lambda params: Grid("q8_0", params.block, -127, 127, 127, limit=127 * LARGEST_HALF),
)
Q4_0 = Format(
    key="q4_0",
    path="remnant.functional.quantizers:q4_0",
    version=1,
    meaning="GGUF's 4-bit blocks of 32",
    source="llama.cpp, ggml-quants.c",
    params=Blocks,
    read=lambda name: Blocks() if name == "q4_0" else None,
    write=lambda params: "q4_0",
    names=("q4_0",),
    grid=lambda params: Grid("q4_0", params.block, 0, 15, -8, limit=8 * LARGEST_HALF),
)
