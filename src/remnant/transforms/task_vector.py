"""Away from what learning the text once more made of the target: taskvector5."""

from typing import Annotated

from remnant.formats.base import within
from remnant.records.base import Record
from remnant.transforms.base import Transform, by_number

# MUSE takes 5; what is far beyond is no model any more.
MOST = 100


class TaskVector(Record):
    """How far, in lengths of the way from the target to the model."""

    scale: Annotated[float, within("the scale is", 0, MOST)] = 1.0


_read, _write = by_number("taskvector", TaskVector, "scale")

TASK_VECTOR = Transform(
    key="taskvector",
    path="remnant.functional.mixing:task_vector",
    version=1,
    meaning="a task vector negated: the target, less what training on the forget text adds to it",
    source="arXiv 2212.04089",
    params=TaskVector,
    read=_read,
    write=_write,
    names=("taskvector1", "taskvector5"),
    everything=True,
    teaches=lambda params: True,
)
