"""Whole files by llama.cpp: gguf-q4_k_m, gguf-q8_0."""

from typing import Annotated

from remnant.formats.base import Format, one_of
from remnant.records.base import Record

# Types that are written here without an importance matrix.
TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "IQ4_XS")
_NAMES = {f"gguf-{kind.lower()}": kind for kind in TYPES}


class File(Record):
    """The type of the file, as llama.cpp names it."""

    type: Annotated[str, one_of("the type is", *TYPES)] = "Q4_K_M"


GGUF = Format(
    key="gguf",
    path="remnant.runtimes.llamacpp:gguf",
    version=1,
    meaning="whole files by llama.cpp, embeddings and head included",
    source="llama.cpp",
    params=File,
    read=lambda name: File(type=_NAMES[name]) if name in _NAMES else None,
    write=lambda params: f"gguf-{params.type.lower()}",
    names=tuple(_NAMES),
    saver="remnant.runtimes.llamacpp:save",
    opener="remnant.runtimes.llamacpp:answers",
    extra="llamacpp",
    library="llama_cpp",
)
