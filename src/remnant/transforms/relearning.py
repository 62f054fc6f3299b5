"""A little training on some of the text: relearn64-forget10, relearn64-retain10-lora."""

import re
from typing import Annotated

from pydantic import AfterValidator

from remnant.formats.base import one_of, within
from remnant.records.base import Record
from remnant.transforms.base import Transform

_NAME = re.compile(
    r"relearn(?P<steps>[0-9]{1,6})(?:-(?P<text>forget|retain)(?P<percent>[0-9]{1,3})?)?"
    r"(?P<lora>-lora)?"
)


def _above_zero(value: float | None) -> float | None:
    if value is None or value > 0:
        return value
    raise ValueError(f"the learning rate is above 0, not {value}.")


class Relearning(Record):
    """Steps, which text and how much of it, all weights or adapters, and the learning rate where it
    is not the usual one.
    """

    steps: Annotated[int, within("the steps are", 0, 100_000)] = 64
    text: Annotated[str, one_of("the text is", "forget", "retain")] = "forget"
    percent: Annotated[int, within("the percent of the text are", 1, 100)] = 10
    way: Annotated[str, one_of("the way is", "full", "lora")] = "full"
    lr: Annotated[float | None, AfterValidator(_above_zero)] = None


def _read(name: str) -> Relearning | None:
    if not (found := _NAME.fullmatch(name)):
        return None
    return Relearning(
        steps=int(found["steps"]),
        text=found["text"] or "forget",
        percent=int(found["percent"] or 10),
        way="lora" if found["lora"] else "full",
    )


def _write(params: Relearning) -> str:
    way = "-lora" if params.way == "lora" else ""
    return f"relearn{params.steps}-{params.text}{params.percent}{way}"


RELEARN = Transform(
    key="relearn",
    path="remnant.training.relearning:relearn",
    version=1,
    meaning="training on a share of the forget text, or on retain text",
    source="arXiv 2502.05374, 2409.18025",
    params=Relearning,
    read=_read,
    write=_write,
    names=("relearn64-forget10", "relearn64-retain10", "relearn64-forget10-lora"),
    by_text=True,
    teaches=lambda params: params.text == "forget" and params.steps > 0,
)
