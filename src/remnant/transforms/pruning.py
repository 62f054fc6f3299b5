"""Zeros in the place of the least important weights: prune20, prune-2:4, wanda20, wanda-2:4."""

import re
from collections.abc import Callable
from typing import Annotated

from remnant.formats.base import one_of, within
from remnant.records.base import Record
from remnant.transforms.base import Transform

_NAME = re.compile(r"(?P<word>[a-z]+)(?:(?P<percent>0|[1-9][0-9]?)|-(?P<pattern>[0-9]:[0-9]))")


class Pruning(Record):
    """How many percent of every row, or a pattern of the kept."""

    percent: Annotated[int, within("the percent that go are", 0, 99)] = 20
    pattern: Annotated[str, one_of("the pattern is", "", "2:4", "4:8")] = ""


def _reader(word: str) -> Callable[[str], Pruning | None]:
    def read(name: str) -> Pruning | None:
        found = _NAME.fullmatch(name)
        if not found or found["word"] != word:
            return None
        if found["pattern"]:
            return Pruning(pattern=found["pattern"])
        return Pruning(percent=int(found["percent"]))

    return read


def _writer(word: str) -> Callable[[Pruning], str]:
    return lambda params: (
        f"{word}-{params.pattern}" if params.pattern else f"{word}{params.percent}"
    )


PRUNE = Transform(
    key="prune",
    path="remnant.functional.pruning:magnitude",
    version=1,
    meaning="zeros in the place of the smallest weights of every row",
    source="arXiv 1506.02626",
    params=Pruning,
    read=_reader("prune"),
    write=_writer("prune"),
    names=("prune20", "prune50", "prune-2:4"),
)
WANDA = Transform(
    key="wanda",
    path="remnant.functional.pruning:wanda",
    version=1,
    meaning="the same by magnitude times the norm of the input over calibration text",
    source="arXiv 2306.11695",
    params=Pruning,
    read=_reader("wanda"),
    write=_writer("wanda"),
    names=("wanda20", "wanda50", "wanda-2:4"),
    by_text=True,
)
