"""Noise on the weights: noise0.02."""

from typing import Annotated

from remnant.formats.base import within
from remnant.records.base import Record
from remnant.transforms.base import Transform, by_number

# Ten times a weight's own size is nothing but noise.
MOST = 10


class Noising(Record):
    """The noise over the root mean square of a weight."""

    scale: Annotated[float, within("the scale is", 0, MOST)] = 0.02


_read, _write = by_number("noise", Noising, "scale")

NOISE = Transform(
    key="noise",
    path="remnant.functional.noise:noise",
    version=1,
    meaning="normal noise, a share of every weight's root mean square",
    source="arXiv 2412.01784",
    params=Noising,
    read=_read,
    write=_write,
    names=("noise0.01", "noise0.02", "noise0.05"),
)
