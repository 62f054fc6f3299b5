"""Integers by rounding to nearest: int4, int8-tensor, int4-g64-asym."""

import re
from typing import Annotated

from remnant.formats.base import MOST_GROUP, Format, Grid, one_of, within
from remnant.records.base import Record

_NAME = re.compile(
    r"int(?P<bits>[2-8])(?:-(?P<granularity>tensor|channel|g(?P<group>[0-9]{1,6})))?"
    r"(?:-(?P<scheme>asym|half-step|paper))?"
)
_BLOCKS = {"channel": 0, "tensor": -1}


class Rounding(Record):
    """Bits, what shares a scale, and how the scale is taken."""

    bits: Annotated[int, within("the bits are", 2, 8)] = 4
    granularity: Annotated[str, one_of("the granularity is", "tensor", "channel", "group")] = (
        "channel"
    )
    group_size: Annotated[int, within("groups are of", 1, MOST_GROUP)] = 128
    scheme: Annotated[str, one_of("the scheme is", "sym", "half-step", "paper", "asym")] = "sym"


def _read(name: str) -> Rounding | None:
    if not (found := _NAME.fullmatch(name)):
        return None
    bits, scheme = int(found["bits"]), found["scheme"] or "sym"
    if found["group"]:
        size = int(found["group"])
        return Rounding(bits=bits, granularity="group", group_size=size, scheme=scheme)
    return Rounding(bits=bits, granularity=found["granularity"] or "channel", scheme=scheme)


def _write(params: Rounding) -> str:
    shared = {"tensor": "-tensor", "channel": "", "group": f"-g{params.group_size}"}
    scheme = "" if params.scheme == "sym" else f"-{params.scheme}"
    return f"int{params.bits}{shared[params.granularity]}{scheme}"


def _grid(params: Rounding) -> Grid:
    top = 2 ** (params.bits - 1) - 1
    divisors = {
        "sym": top,
        "half-step": (2**params.bits - 1) / 2,
        "paper": top + 1,
        "asym": 2**params.bits - 1,
    }
    return Grid(
        kind="asym" if params.scheme == "asym" else "rtn",
        block=_BLOCKS.get(params.granularity, params.group_size),
        low=-top if params.scheme == "sym" else -top - 1,
        high=top,
        divisor=divisors[params.scheme],
    )


RTN = Format(
    key="rtn",
    path="remnant.functional.quantizers:rtn",
    version=1,
    meaning="round to nearest on an integer grid",
    source="arXiv 2410.16454, section 4",
    params=Rounding,
    read=_read,
    write=_write,
    names=("int8", "int4", "int3", "int2", "int4-tensor", "int4-g128", "int4-g32-asym"),
    grid=_grid,
)
