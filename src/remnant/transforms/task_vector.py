"""Away from what learning the text once more made of the target: taskvector5."""

import re
from typing import Annotated

from remnant.formats.base import within
from remnant.records.base import Record
from remnant.transforms.base import Transform

_NAME = re.compile(r"taskvector(?P<scale>[0-9]+(?:\.[0-9]+)?)")
# MUSE takes 5; what is far beyond is no model any more.
MOST = 100


class TaskVector(Record):
    """How far, in lengths of the way from the target to the model."""

    scale: Annotated[float, within("the scale is", 0, MOST)] = 1.0


def _read(name: str) -> TaskVector | None:
    found = _NAME.fullmatch(name)
    return TaskVector(scale=float(found["scale"])) if found else None


TASK_VECTOR = Transform(
    key="taskvector",
    path="remnant.functional.mixing:task_vector",
    version=1,
    meaning="a task vector negated: the target, less what training on the forget text adds to it",
    source="arXiv 2212.04089",
    params=TaskVector,
    read=_read,
    write=lambda params: f"taskvector{params.scale:g}",
    names=("taskvector1", "taskvector5"),
    everything=True,
    teaches=lambda params: True,
)
