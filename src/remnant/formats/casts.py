"""Narrower floats without a scale: bf16, fp16."""

from typing import Annotated

from remnant.formats.base import Format, one_of
from remnant.records.base import Record

_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Casting(Record):
    """The dtype that is stored."""

    dtype: Annotated[str, one_of("the dtype is", *_NAMES)] = "bfloat16"


CAST = Format(
    key="cast",
    path="remnant.functional.quantizers:cast",
    version=1,
    meaning="a narrower float, bfloat16 or float16",
    source="torch",
    params=Casting,
    read=lambda name: Casting(dtype=_DTYPES[name]) if name in _DTYPES else None,
    write=lambda params: _NAMES[params.dtype],
    names=("bf16", "fp16"),
)
