"""Weights by torchao: ao-int4-g128-asym, ao-fp8, ao-int8-dynamic."""

import re
from typing import Annotated

from remnant.formats.base import Format, grouped, one_of, within
from remnant.records.base import Record

_NAME = re.compile(r"ao-int(?P<bits>[2-8])(?:-g(?P<group>[0-9]{1,6}))?(?P<asym>-asym)?")
KINDS = ("fp8", "int8-dynamic")
_EIGHT = {f"ao-{kind}": kind for kind in KINDS}
EXTRA, SAVER = "torchao", "remnant.runtimes.torchao:save"


class Integers(Record):
    """Bits, columns that share a scale (0 for whole rows), and whether there is a zero."""

    bits: Annotated[int, within("the bits are", 2, 8)] = 4
    group_size: Annotated[int, grouped] = 0
    asymmetric: bool = False


class Eight(Record):
    """Which of the 8-bit forms."""

    kind: Annotated[str, one_of("the kind is", *KINDS)] = "fp8"


def _read(name: str) -> Integers | None:
    if not (found := _NAME.fullmatch(name)):
        return None
    size = int(found["group"] or 0)
    return Integers(bits=int(found["bits"]), group_size=size, asymmetric=bool(found["asym"]))


def _write(params: Integers) -> str:
    group = f"-g{params.group_size}" if params.group_size else ""
    return f"ao-int{params.bits}{group}{'-asym' if params.asymmetric else ''}"


INTX = Format(
    key="torchao",
    path="remnant.runtimes.torchao:intx",
    version=1,
    meaning="integer weights by torchao",
    source="torchao",
    params=Integers,
    read=_read,
    write=_write,
    names=("ao-int4-g128", "ao-int4-g128-asym"),
    saver=SAVER,
    extra=EXTRA,
)
EIGHT = Format(
    key="torchao-8",
    path="remnant.runtimes.torchao:eight",
    version=1,
    meaning="8-bit floats, and integers beside rounded activations, by torchao",
    source="torchao",
    params=Eight,
    read=lambda name: Eight(kind=_EIGHT[name]) if name in _EIGHT else None,
    write=lambda params: f"ao-{params.kind}",
    names=tuple(_EIGHT),
    saver=SAVER,
    extra=EXTRA,
)
