"""Zeros in the place of the least important weights: prune20, prune-2:4, wanda20, wanda-2:4."""

import re
from collections.abc import Callable
from typing import Annotated

from remnant.formats.base import one_of, within
from remnant.records.base import Record
from remnant.transforms.base import Transform, by_number

_PATTERN = re.compile(r"([a-z]+)-([0-9]:[0-9])")


class Pruning(Record):
    """How many percent of every row, or a pattern of the kept."""

    percent: Annotated[int, within("the percent that go are", 0, 99)] = 20
    pattern: Annotated[str, one_of("the pattern is", "", "2:4", "4:8")] = ""


def _by_name(word: str) -> tuple[Callable[[str], Pruning | None], Callable[[Pruning], str]]:
    """A word with percent or a pattern behind it."""
    percent, in_percent = by_number(word, Pruning, "percent", whole=True)

    def read(name: str) -> Pruning | None:
        found = _PATTERN.fullmatch(name)
        return Pruning(pattern=found[2]) if found and found[1] == word else percent(name)

    return read, lambda own: f"{word}-{own.pattern}" if own.pattern else in_percent(own)


_read_prune, _write_prune = _by_name("prune")
_read_wanda, _write_wanda = _by_name("wanda")


PRUNE = Transform(
    key="prune",
    path="remnant.functional.pruning:magnitude",
    version=1,
    meaning="zeros in the place of the smallest weights of every row",
    source="arXiv 1506.02626",
    params=Pruning,
    read=_read_prune,
    write=_write_prune,
    names=("prune20", "prune50", "prune-2:4"),
)
WANDA = Transform(
    key="wanda",
    path="remnant.functional.pruning:wanda",
    version=1,
    meaning="the same by magnitude times the norm of the input over calibration text",
    source="arXiv 2306.11695",
    params=Pruning,
    read=_read_wanda,
    write=_write_wanda,
    names=("wanda20", "wanda50", "wanda-2:4"),
    by_text=True,
)
