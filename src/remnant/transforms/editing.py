"""Forgetting in closed form: edit1."""

from typing import Annotated

from remnant.formats.base import within
from remnant.records.base import Record
from remnant.transforms.base import Transform, by_number

# What is far beyond is no model any more, or no edit.
MOST_STRENGTH, MOST_WEIGHT = 1000, 1_000_000


class Editing(Record):
    """How many layers, how far their outputs go over their own length, what retain text weighs, and
    the ridge.
    """

    layers: Annotated[int, within("the layers are", 1, 1024)] = 3
    strength: Annotated[float, within("the strength is", 0, MOST_STRENGTH)] = 1.0
    retain: Annotated[float, within("the weight of retain text is", 0, MOST_WEIGHT)] = 1.0
    ridge: Annotated[float, within("the ridge is", 1e-9, MOST_WEIGHT)] = 0.01


_read, _write = by_number("edit", Editing, "strength")

EDIT = Transform(
    key="edit",
    path="remnant.training.editing:edit",
    version=1,
    meaning="least squares: MLP outputs on forget text moved against the true tokens, others held",
    source="arXiv 2608.05783",
    params=Editing,
    read=_read,
    write=_write,
    names=("edit0.5", "edit1"),
    by_text=True,
)
