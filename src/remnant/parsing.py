"""What a user wrote -> a record, with all faults in one message."""

import math
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from remnant.errors import UserError, unknown

Spec = TypeVar("Spec", bound=BaseModel)
# More than any machine holds, by the name of a field; every other whole number stays below 2^53,
# every seed below 2^32.
MOST = {
    "layers": 1024, "hidden": 1 << 17, "intermediate": 1 << 19, "heads": 4096, "kv_heads": 4096,
    "context": 1 << 24, "batch_size": 1 << 20,
    "accumulate": 1 << 20, "block_tokens": 1 << 24, "vocab_size": 1 << 24, "steps": 1 << 32,
    "resamples": 10_000_000, "samples": 100_000,
    "concurrency": 1024, "attempts": 1000, "batch_tokens": 1 << 32, "forget_docs": 1_000_000,
    "retain_docs": 1_000_000,
    "holdout_docs": 1_000_000, "seed": (1 << 32) - 1, "seeds": (1 << 32) - 1,
}  # fmt: skip
MOST_WHOLE = 1 << 53
# Keys of before, and what is written in their place.
REPLACED = {
    "train_only": 'write train = "matrices" in its place',
    "perturb": "write transform in its place",
    "sure": "write train = {sure = {...}} in its place, train.sure.KEY in a grid",
}


def lines_of(text: str) -> list[str]:
    r"""The lines of a file of JSON lines.

    Only "\n" ends one: str.splitlines also cuts at characters that stand inside a JSON string.
    """
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def parse(model: type[Spec], data: Any, where: str) -> Spec:
    """Validate what a user wrote.

    All faults in one message, unknown keys with the nearest known one.

    Raises:
        UserError: with one line per fault.
    """
    try:
        spec = model.model_validate(data)
        read = spec.model_dump()
        faults = [*_numbers(read, ""), *_yes_for_numbers(data, read, "")]
        if not faults:
            return spec
    except ValidationError as error:
        faults = [_fault(model, e["loc"], e["type"], e["msg"]) for e in error.errors()]
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply.") from error
    head = f"{where} has {len(faults)} fault{'s' if len(faults) > 1 else ''}:"
    raise UserError(
        head + "".join(f"\n  - {fault}" for fault in faults)
        if len(faults) > 1
        else f"{where}: {faults[0]}"
    )


def _numbers(data: Any, place: str) -> Iterator[str]:
    """Faults of numbers anywhere in a record: not finite, or larger than anything they could
    count.
    """
    if isinstance(data, dict | list | tuple):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _numbers(value, f"{place}.{key}" if place else str(key))
    elif isinstance(data, float) and not math.isfinite(data):
        yield f"{place}: is not a finite number"
    elif isinstance(data, int):
        last = next((part for part in reversed(place.split(".")) if not part.isdigit()), "")
        if abs(data) > MOST.get(last, MOST_WHOLE):
            yield f"{place}: is larger than {MOST.get(last, MOST_WHOLE)}"
        elif data < 0 and last in ("seed", "seeds"):
            yield f"{place}: is below 0"


def _yes_for_numbers(given: Any, read: Any, place: str) -> Iterator[str]:
    """Where true or false was given and a number was read, which would be 1 or 0."""
    if isinstance(given, bool) and not isinstance(read, bool) and isinstance(read, int | float):
        yield f"{place}: is {str(given).lower()}, where a number is wanted"
    elif isinstance(given, dict) and isinstance(read, dict):
        for key in given.keys() & read.keys():
            yield from _yes_for_numbers(given[key], read[key], f"{place}.{key}" if place else key)
    elif isinstance(given, list | tuple) and isinstance(read, list | tuple):
        for i, pair in enumerate(zip(given, read, strict=False)):
            yield from _yes_for_numbers(*pair, f"{place}.{i}" if place else str(i))


def _fault(model: type[BaseModel], loc: tuple[str | int, ...], kind: str, message: str) -> str:
    place = ".".join(
        str(part) for part in loc if not (isinstance(part, str) and part.endswith("Spec"))
    )
    if kind == "extra_forbidden":
        key = str(loc[-1])
        fault = REPLACED.get(key) or unknown("key", key, _keys(model, loc[:-1]))
        return f"{place}: {fault}"
    text = message.removeprefix("Value error, ")
    if place and not text[1:2].isupper():  # a name in capitals stays one
        text = text[0].lower() + text[1:]
    return f"{place}: {text}" if place else text


def _keys(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """Known keys at a place inside a record, following lists and nested records."""
    current: type[BaseModel] = model
    nested: dict[str, type[BaseModel]] = {}
    for part in loc:
        field = current.model_fields.get(part) if isinstance(part, str) else None
        if field is not None:
            nested = {
                a.__name__: a
                for a in _flatten(field.annotation)
                if isinstance(a, type) and issubclass(a, BaseModel)
            }
            current = next(iter(nested.values()), current)
        else:  # which of several records a field holds
            current = nested.get(str(part), current)
    return list(current.model_fields)


def _flatten(annotation: Any) -> list[Any]:
    inner = getattr(annotation, "__args__", ())
    return [annotation, *(found for part in inner for found in _flatten(part))]
