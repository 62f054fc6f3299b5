"""8-bit floats (e4m3) with a scale per row or block: fp8."""

from typing import Annotated

from remnant.formats.base import MOST_GROUP, Format, Grid, within
from remnant.records.base import Record

# The largest e4m3. Source: arXiv 2209.05433, table 1.
LARGEST = 448


class Blocks(Record):
    """Entries that share a scale; 0 for a row."""

    block: Annotated[int, within("blocks are of", 0, MOST_GROUP)] = 0


FP8 = Format(
    key="fp8",
    path="remnant.functional.quantizers:fp8",
    version=1,
    meaning="8-bit float (e4m3) with a scale per row",
    source="arXiv 2209.05433",
    params=Blocks,
    read=lambda name: Blocks() if name == "fp8" else None,
    write=lambda params: "fp8",
    names=("fp8",),
    grid=lambda params: Grid("fp8", params.block, -LARGEST, LARGEST, LARGEST),
)
