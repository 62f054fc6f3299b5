"""Noise on the weights: noise0.02."""

import re
from typing import Annotated

from remnant.formats.base import within
from remnant.records.base import Record
from remnant.transforms.base import Transform

_NAME = re.compile(r"noise(?P<scale>[0-9]+(?:\.[0-9]+)?)")
# Ten times a weight's own size is nothing but noise.
MOST = 10


class Noising(Record):
    """The noise over the root mean square of a weight."""

    scale: Annotated[float, within("the scale is", 0, MOST)] = 0.02


def _read(name: str) -> Noising | None:
    found = _NAME.fullmatch(name)
    return Noising(scale=float(found["scale"])) if found else None


NOISE = Transform(
    key="noise",
    path="remnant.functional.noise:noise",
    version=1,
    meaning="normal noise, a share of every weight's root mean square",
    source="arXiv 2412.01784",
    params=Noising,
    read=_read,
    write=lambda params: f"noise{params.scale:g}",
    names=("noise0.01", "noise0.02", "noise0.05"),
)
