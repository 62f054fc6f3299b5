"""Sixteen fixed levels in blocks, as bitsandbytes has them: nf4, fp4, nf4-b128."""

import re
from collections.abc import Callable
from functools import partial
from typing import Annotated

from remnant.formats.base import MOST_GROUP, Format, Grid, within
from remnant.records.base import Record

_NAME = re.compile(r"(?P<key>nf4|fp4)(?:-b(?P<block>[0-9]{1,6}))?")
USUAL_BLOCK = 64


class Blocks(Record):
    """Entries that share a scale."""

    block: Annotated[int, within("blocks are of", 1, MOST_GROUP)] = USUAL_BLOCK


def _read(key: str, name: str) -> Blocks | None:
    found = _NAME.fullmatch(name)
    if not found or found["key"] != key:
        return None
    return Blocks(block=int(found["block"] or USUAL_BLOCK))


def _write(key: str, params: Blocks) -> str:
    return key if params.block == USUAL_BLOCK else f"{key}-b{params.block}"


def _grid(key: str) -> Callable[[Blocks], Grid]:
    return lambda params: Grid(key, params.block, -1, 1, 1, over_rows=True)


NF4 = Format(
    key="nf4",
    path="remnant.functional.quantizers:nf4",
    version=1,
    meaning="4-bit NormalFloat in blocks",
    source="arXiv 2305.14314",
    params=Blocks,
    read=partial(_read, "nf4"),
    write=partial(_write, "nf4"),
    names=("nf4",),
    grid=_grid("nf4"),
)
FP4 = Format(
    key="fp4",
    path="remnant.functional.quantizers:fp4",
    version=1,
    meaning="4-bit float (e2m1) in blocks",
    source="bitsandbytes",
    params=Blocks,
    read=partial(_read, "fp4"),
    write=partial(_write, "fp4"),
    names=("fp4",),
    grid=_grid("fp4"),
)
