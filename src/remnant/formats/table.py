"""All formats that are built in, and how they are found.

To add one: its file, and its name here.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import ValidationError

from remnant.errors import UserError
from remnant.formats.base import AnyFormat, Kind
from remnant.formats.bitsandbytes import FOUR_BIT, INT8
from remnant.formats.casts import CAST
from remnant.formats.compressed_tensors import COMPRESSED
from remnant.formats.eight_bit_floats import FP8
from remnant.formats.four_bit_levels import FP4, NF4
from remnant.formats.gguf_blocks import Q4_0, Q8_0
from remnant.formats.hqq import HQQ
from remnant.formats.integers import RTN
from remnant.formats.llamacpp import GGUF
from remnant.formats.microscaling import MXFP4, NVFP4
from remnant.formats.oneshot import AUTOROUND, AWQ, GPTQ
from remnant.formats.torchao import EIGHT, INTX
from remnant.records.base import Record

_ALL: tuple[AnyFormat, ...] = (
    RTN,
    NF4,
    FP4,
    NVFP4,
    MXFP4,
    FP8,
    Q8_0,
    Q4_0,
    CAST,
    GPTQ,
    AWQ,
    AUTOROUND,
    COMPRESSED,
    FOUR_BIT,
    INT8,
    INTX,
    EIGHT,
    HQQ,
    GGUF,
)
# Stands between the steps of a chain.
FORMATS: Mapping[str, AnyFormat] = {found.key: found for found in _ALL}
NAMES = tuple(name for found in _ALL for name in found.names)


K = TypeVar("K", bound=Kind)


class Named(NamedTuple, Generic[K]):
    """A format (or another kind of transform) and all of its parameters."""

    format: K
    params: Record


def by_name(name: str) -> Named[AnyFormat] | None:
    """The format that a short name stands for; None if it is none.

    Raises:
        UserError: it is one, with parameters out of bounds.
    """
    return read_by(_ALL, name)


def read_by(among: Iterable[K], name: str) -> Named[K] | None:
    """That of some formats or transforms which a short name stands for; None if it is none.

    Raises:
        UserError: it is one, with parameters out of bounds.
    """
    for found in among:
        try:
            params = found.read(name)
        except ValidationError as error:
            raise _fault(name, error) from error
        if params is not None:
            return Named(found, params)
    return None


def checked(found: K, params: Mapping[str, Any]) -> Named[K]:
    """A format with parameters as a spec states them.

    Raises:
        UserError: some are out of bounds, or exclude each other.
    """
    try:
        return Named(found, found.params.model_validate(dict(params)))
    except ValidationError as error:
        raise _fault(found.key, error) from error


def _fault(name: str, error: ValidationError) -> UserError:
    said = (str(fault.get("ctx", {}).get("error", fault["msg"])) for fault in error.errors())
    return UserError(f"The transform '{name}': {' '.join(said)}")


def short(
    use: str, params: Mapping[str, Any], among: Mapping[str, Kind] = FORMATS
) -> tuple[str, dict[str, object]]:
    """The short name of a format with some parameters, and those of them that it does not say.

    Of what is no format, or has no short name, the key and all of them.

    >>> short("rtn", {"bits": 3, "granularity": "tensor"})
    ('int3-tensor', {})
    >>> short("autoround", {"bits": 4, "steps": 50})
    ('autoround4', {'steps': 50})
    """
    if use not in among:
        return use, dict(params)
    found = checked(among[use], params)
    name = found.format.write(found.params)
    said = found.format.read(name) if name else None
    if name is None or said is None:
        return use, dict(params)
    return name, {k: v for k, v in params.items() if getattr(said, k) != getattr(found.params, k)}


def decided_by_text(steps: Iterable[str]) -> bool:
    """Whether calibration text decides the codes of any of some steps, by their names.

    >>> decided_by_text(["gptq4-g128", "gguf-q4_k_m"]), decided_by_text(["int4"])
    (True, False)
    """
    return any(FORMATS[key].by_text for key in keys_of(steps))


def keys_of(steps: Iterable[str], among: Mapping[str, Kind] = FORMATS) -> set[str]:
    """The keys of the formats among some steps, by their names; none of a user's own.

    >>> sorted(keys_of(["gptq4 calibration_samples=64", "gguf-q4_k_m"]))
    ['gguf', 'gptq']
    """
    found = (_key_of(bare(step), among) for step in steps)
    return {key for key in found if key}


def bare(step: str) -> str:
    """The name of a step without the settings that tables show behind it.

    >>> bare("gptq4 calibration_samples=64")
    'gptq4'
    """
    return step.split(" ")[0]


def _key_of(name: str, among: Mapping[str, Kind]) -> str | None:
    try:
        named = read_by(among.values(), name)
    except UserError:
        return None
    return named.format.key if named else name if name in among else None


def deployed_names() -> tuple[str, ...]:
    """Short names whose files a runtime opens."""
    return tuple(name for name in NAMES if (found := by_name(name)) and _opens(found))


def instead_of(name: str) -> str:
    """What to deploy where no runtime opens a format: what bears its name too, then what has as
    many bits; any where there is neither.

    >>> instead_of("nf4").split(", ")[:2], instead_of("q8_0").split(", ")[0]
    (['bnb-nf4', 'gptq4'], 'gguf-q8_0')
    """
    bits = re.search(r"\d+", name)

    def far(other: str) -> tuple[bool, bool]:
        numbers = re.findall(r"\d+", other)
        return name.partition("-")[0] not in other, not bits or bits[0] not in numbers

    near = sorted(deployed_names(), key=far)
    return ", ".join([other for other in near if not all(far(other))] or near)


def _opens(found: Named[AnyFormat]) -> bool:
    return bool(found.format.saver) and found.format.unopened(found.params) is None
