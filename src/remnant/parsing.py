"""What a user wrote -> a record, with all faults in one message."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from remnant.errors import UserError, unknown

Spec = TypeVar("Spec", bound=BaseModel)


def lines_of(text: str) -> list[str]:
    r"""The lines of a file of JSON lines. Only "\n" ends one: str.splitlines also cuts at characters that stand inside a JSON string."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def parse(model: type[Spec], data: Any, where: str) -> Spec:
    """Validate what a user wrote; all faults in one message, unknown keys with the nearest known one.

    Raises:
        UserError: with one line per fault.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = [_fault(model, e["loc"], e["type"], e["msg"]) for e in error.errors()]
    head = f"{where} has {len(faults)} fault{'s' if len(faults) > 1 else ''}:"
    raise UserError(head + "".join(f"\n  - {fault}" for fault in faults) if len(faults) > 1 else f"{where}: {faults[0]}")


def _fault(model: type[BaseModel], loc: tuple[str | int, ...], kind: str, message: str) -> str:
    place = ".".join(str(part) for part in loc if not (isinstance(part, str) and part.endswith("Spec")))
    if kind == "extra_forbidden":
        fault = unknown("key", str(loc[-1]), _keys(model, loc[:-1]))
        return f"{place}: {fault}"
    text = message.removeprefix("Value error, ")
    return f"{place}: {text[0].lower()}{text[1:]}" if place else f"{text}"


def _keys(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """Known keys at a place inside a record, following lists and nested records."""
    current: type[BaseModel] = model
    for part in loc:
        field = current.model_fields.get(part) if isinstance(part, str) else None
        if field is not None:
            nested = [a for a in _flatten(field.annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
            current = nested[0] if nested else current
    return list(current.model_fields)


def _flatten(annotation: Any) -> list[Any]:
    inner = getattr(annotation, "__args__", ())
    return [annotation, *(found for part in inner for found in _flatten(part))]
