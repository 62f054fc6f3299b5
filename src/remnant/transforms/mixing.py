"""Part of the way back to the target: mix0.5."""

import re
from typing import Annotated

from remnant.formats.base import within
from remnant.records.base import Record
from remnant.transforms.base import Transform

_NAME = re.compile(r"mix(?P<share>[01](?:\.[0-9]+)?)")


class Mixing(Record):
    """The share of the way to the target."""

    share: Annotated[float, within("the share is", 0, 1)] = 0.5


def _read(name: str) -> Mixing | None:
    found = _NAME.fullmatch(name)
    return Mixing(share=float(found["share"])) if found else None


MIX = Transform(
    key="mix",
    path="remnant.functional.mixing:mix",
    version=1,
    meaning="part of the way from the model back to the target, in all weights",
    source="arXiv 2109.01903",
    params=Mixing,
    read=_read,
    write=lambda params: f"mix{params.share:g}",
    names=("mix0.25", "mix0.5", "mix0.75"),
    everything=True,
    teaches=lambda params: params.share > 0,
)
