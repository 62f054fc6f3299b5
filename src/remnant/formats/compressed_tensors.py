"""Plain rounding in the schemes of compressed-tensors that vLLM loads: ct-w4a16, ct-fp8."""

from collections.abc import Mapping
from typing import Annotated, NamedTuple

from remnant.formats.base import Format, one_of
from remnant.records.base import Record


class Scheme(NamedTuple):
    """One scheme: its preset in the library, and the columns of its groups (0: whole rows)."""

    preset: str
    group: int


# Integers in half-steps, floats with a scale per row. Source: compressed-tensors 0.19,
# quant_scheme.py.
SCHEMES: Mapping[str, Scheme] = {
    "W4A16": Scheme("W4A16", 128),
    "W8A16": Scheme("W8A16", 128),
    "FP8": Scheme("FP8_DYNAMIC", 0),
    "NVFP4A16": Scheme("NVFP4A16", 16),
    "MXFP4A16": Scheme("MXFP4A16", 32),
}
_PREFIX = "ct-"


class Preset(Record):
    """The scheme, by its name in the library."""

    scheme: Annotated[str, one_of("the scheme is", *SCHEMES)] = "W4A16"


def _read(name: str) -> Preset | None:
    scheme = name.removeprefix(_PREFIX).upper()
    known = name.startswith(_PREFIX) and name == name.lower() and scheme in SCHEMES
    return Preset(scheme=scheme) if known else None


def _write(params: Preset) -> str:
    return f"{_PREFIX}{params.scheme.lower()}"


COMPRESSED = Format(
    key="compressed",
    path="remnant.runtimes.oneshot:rounded",
    version=1,
    meaning="rounding as vLLM loads it, by llm-compressor",
    source="compressed-tensors",
    params=Preset,
    read=_read,
    write=_write,
    names=tuple(f"{_PREFIX}{scheme.lower()}" for scheme in SCHEMES),
    saver="remnant.runtimes.oneshot:save",
    extra="oneshot",
)
