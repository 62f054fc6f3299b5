"""NF4, FP4 and LLM.int8 by bitsandbytes itself: bnb-nf4, bnb-nf4-b128-dq, bnb-int8."""

import re
from typing import Annotated

from remnant.formats.base import Format, one_of
from remnant.records.base import Record

_NAME = re.compile(r"bnb-(?P<levels>nf4|fp4)(?:-b(?P<block>[0-9]{1,6}))?(?P<double>-dq)?")
# Entries that share a scale. Source: bitsandbytes 0.50, functional.py.
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
# The only block that transformers can ask for.
OPENED_BLOCK = 64
EXTRA, SAVER = "bitsandbytes", "remnant.runtimes.bnb:save"


class FourBit(Record):
    """Levels, entries that share a scale, and whether the scales are quantized too."""

    levels: Annotated[str, one_of("the levels are", "nf4", "fp4")] = "nf4"
    block: Annotated[int, one_of("bitsandbytes has blocks of", *BLOCKS)] = OPENED_BLOCK
    double: bool = False


class Int8(Record):
    """Nothing to choose."""


def _read(name: str) -> FourBit | None:
    if not (found := _NAME.fullmatch(name)):
        return None
    block = int(found["block"] or OPENED_BLOCK)
    return FourBit(levels=found["levels"], block=block, double=bool(found["double"]))


def _write(params: FourBit) -> str:
    block = "" if params.block == OPENED_BLOCK else f"-b{params.block}"
    return f"bnb-{params.levels}{block}{'-dq' if params.double else ''}"


def _unopened(params: FourBit) -> str | None:
    if params.block == OPENED_BLOCK:
        return None
    return f"transformers opens blocks of {OPENED_BLOCK} only, not {params.block}."


FOUR_BIT = Format(
    key="bnb-4bit",
    path="remnant.runtimes.bnb:four_bit",
    version=1,
    meaning="NF4 and FP4 by bitsandbytes",
    source="arXiv 2305.14314",
    params=FourBit,
    read=_read,
    write=_write,
    names=("bnb-nf4", "bnb-fp4", "bnb-nf4-b128-dq"),
    saver=SAVER,
    unopened=_unopened,
    extra=EXTRA,
)
INT8 = Format(
    key="bnb-int8",
    path="remnant.runtimes.bnb:int8",
    version=1,
    meaning="LLM.int8 weights by bitsandbytes",
    source="arXiv 2208.07339",
    params=Int8,
    read=lambda name: Int8() if name == "bnb-int8" else None,
    write=lambda params: "bnb-int8",
    names=("bnb-int8",),
    saver=SAVER,
    extra=EXTRA,
)
