"""What every benchmark is made of: sets of items, metrics, and the numbers that several make."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from remnant.metrics import Metric, Number

# How an item is asked: text is continued, a question answered, a text read as a whole.
Asked = Literal["text", "answer", "whole"]


class SetEntry(NamedTuple):
    """One set of items: what it is, how its items are asked, and its name among the sets of one
    metric.
    """

    meaning: str
    asked: Asked
    split: str = ""


class Benchmark(NamedTuple):
    """What one benchmark brings: its sets of items, its metrics, names for some of them together,
    and what is made of several metrics.
    """

    sets: Mapping[str, SetEntry]
    metrics: Mapping[str, Metric]
    groups: Mapping[str, tuple[str, ...]] = {}
    combined: tuple[Number, ...] = ()
