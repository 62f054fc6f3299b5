"""Part of the way back to the target: mix0.5."""

from typing import Annotated

from remnant.formats.base import within
from remnant.records.base import Record
from remnant.transforms.base import Transform, by_number


class Mixing(Record):
    """The share of the way to the target."""

    share: Annotated[float, within("the share is", 0, 1)] = 0.5


_read, _write = by_number("mix", Mixing, "share")

MIX = Transform(
    key="mix",
    path="remnant.functional.mixing:mix",
    version=1,
    meaning="part of the way from the model back to the target, in all weights",
    source="arXiv 2109.01903",
    params=Mixing,
    read=_read,
    write=_write,
    names=("mix0.25", "mix0.5", "mix0.75"),
    everything=True,
    teaches=lambda params: params.share > 0,
)
