"""A packed model made dense."""

from remnant.records.base import Record
from remnant.records.transform import Difference


class DequantizeSpec(Record):
    """The decoding of packed weights: nothing to choose."""


class DequantizeResult(Record):
    """What was decoded. ``packed_as``: what the weights were packed by; None of plain ones.

    ``against_packed``: how far the dense model's answers are from those of the packed one under its
    own runtime; None where nothing here opens it.
    """

    packed_as: str | None
    against_packed: Difference | None = None
