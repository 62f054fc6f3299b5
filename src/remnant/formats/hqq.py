"""Half-quadratic quantization by its own library: hqq4, hqq2-g16."""

import re
from typing import Annotated

from pydantic import AfterValidator

from remnant.formats.base import Format, grouped, one_of
from remnant.records.base import Record

_NAME = re.compile(r"hqq(?P<bits>[2348])(?:-g(?P<group>[0-9]{1,6}))?")
USUAL_GROUP = 64


def _in_groups(size: int) -> int:
    if size == 0:
        raise ValueError("hqq has no scale per whole row; name a group.")
    return size


class Groups(Record):
    """Bits, and columns that share a scale."""

    bits: Annotated[int, one_of("the bits are", 2, 3, 4, 8)] = 4
    group_size: Annotated[int, grouped, AfterValidator(_in_groups)] = USUAL_GROUP


def _read(name: str) -> Groups | None:
    if not (found := _NAME.fullmatch(name)):
        return None
    size = USUAL_GROUP if found["group"] is None else int(found["group"])
    return Groups(bits=int(found["bits"]), group_size=size)


def _write(params: Groups) -> str:
    group = "" if params.group_size == USUAL_GROUP else f"-g{params.group_size}"
    return f"hqq{params.bits}{group}"


HQQ = Format(
    key="hqq",
    path="remnant.runtimes.hqq:hqq",
    version=1,
    meaning="half-quadratic quantization",
    source="hqq",
    params=Groups,
    read=_read,
    write=_write,
    names=("hqq4",),
    extra="hqq",
)
