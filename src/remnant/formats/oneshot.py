"""Rounding on calibration text by llm-compressor: gptq4, awq4-g128, autoround4-g128."""

import re
from functools import partial
from typing import Annotated, TypeVar

from remnant.formats.base import Format, grouped, one_of, within
from remnant.records.base import Record

_NAME = re.compile(r"(?P<key>gptq|awq|autoround)(?P<bits>[348])(?:-g(?P<group>[0-9]{1,6}))?")
EXTRA, SAVER = "oneshot", "remnant.runtimes.oneshot:save"


class Groups(Record):
    """Bits, and columns that share a scale (0 for whole rows)."""

    bits: Annotated[int, one_of("the bits are", 3, 4, 8)] = 4
    group_size: Annotated[int, grouped] = 0


class Learning(Groups):
    """``steps``: of signed gradient descent per block."""

    steps: Annotated[int, within("the steps are", 1, 100_000)] = 200


G = TypeVar("G", bound=Groups)


def _read(key: str, params: type[G], name: str) -> G | None:
    found = _NAME.fullmatch(name)
    if not found or found["key"] != key:
        return None
    return params(bits=int(found["bits"]), group_size=int(found["group"] or 0))


def _write(key: str, params: Groups) -> str:
    return f"{key}{params.bits}" + (f"-g{params.group_size}" if params.group_size else "")


GPTQ = Format(
    key="gptq",
    path="remnant.runtimes.oneshot:gptq",
    version=1,
    meaning="error-compensating rounding on calibration text",
    source="arXiv 2210.17323",
    params=Groups,
    read=partial(_read, "gptq", Groups),
    write=partial(_write, "gptq"),
    names=("gptq4", "gptq4-g128"),
    by_text=True,
    saver=SAVER,
    extra=EXTRA,
)
AWQ = Format(
    key="awq",
    path="remnant.runtimes.oneshot:awq",
    version=1,
    meaning="activation-aware scaling, then rounding",
    source="arXiv 2306.00978",
    params=Groups,
    read=partial(_read, "awq", Groups),
    write=partial(_write, "awq"),
    names=("awq4", "awq4-g128"),
    by_text=True,
    saver=SAVER,
    extra=EXTRA,
)
AUTOROUND = Format(
    key="autoround",
    path="remnant.runtimes.oneshot:autoround",
    version=1,
    meaning="rounding learned on calibration text",
    source="arXiv 2309.05516",
    params=Learning,
    read=partial(_read, "autoround", Learning),
    write=partial(_write, "autoround"),
    names=("autoround4-g128",),
    by_text=True,
    saver=SAVER,
    extra=EXTRA,
)
