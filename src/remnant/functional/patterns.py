"""Weights named by pattern: "layers.5-7.mlp.down_proj". No torch.

The parts of a pattern, between dots, fit as many parts of a weight's name that stand next to each
other. A part is a word, a glob ("*_proj", "[qk]_proj") or a range of layers ("5-7").
"""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import product

from remnant.errors import UserError, unknown

_RANGE = re.compile(r"(\d+)-(\d+)")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def fits(pattern: str, name: str) -> bool:
    """Whether a pattern names a weight.

    >>> fits("layers.5-7.mlp", "model.layers.6.mlp.down_proj.weight")
    True
    >>> fits("layers.5-7.mlp", "model.layers.8.mlp.down_proj.weight")
    False
    """
    wanted, parts = pattern.split("."), name.split(".")
    places = range(len(parts) - len(wanted) + 1)
    return any(all(map(_part_fits, wanted, parts[at:])) for at in places)


def _part_fits(wanted: str, part: str) -> bool:
    if span := _RANGE.fullmatch(wanted):
        return part.isdecimal() and int(span[1]) <= int(part) <= int(span[2])
    return fnmatchcase(part, wanted)


def chosen(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """The names that some pattern fits, in their order.

    Raises:
        UserError: a pattern, or an end of one of its ranges, fits nothing; with near names.
    """
    listed, found = list(names), set()
    for pattern in patterns:
        for end in _ends(pattern):
            if not any(fits(end, name) for name in listed):
                raise _nothing(pattern, end, listed)
        found |= {name for name in listed if fits(pattern, name)}
    return [name for name in listed if name in found]


def _ends(pattern: str) -> Iterable[str]:
    """A pattern with the first and the last number of each of its ranges in their place."""
    parts = [
        (span[1], span[2]) if (span := _RANGE.fullmatch(part)) else (part,)
        for part in pattern.split(".")
    ]
    return (".".join(parts) for parts in product(*parts))


def _nothing(pattern: str, end: str, names: list[str]) -> UserError:
    fault = unknown("weights", pattern, summed_up(names))
    if end == pattern or not any(fits(pattern, name) for name in names):
        return UserError(f"'{pattern}' fits no weight of the model.", fault.remedy)
    return UserError(f"'{pattern}' reaches beyond the model: '{end}' fits no weight.", fault.remedy)


def summed_up(names: Iterable[str]) -> list[str]:
    """Names of weights with their layers' numbers as ranges, each form once.

    >>> summed_up(["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"])
    ['layers.0-1.mlp.up_proj']
    """
    spans: dict[str, list[list[int]]] = {}
    for name in names:
        form = _NUMBER.sub("#", name).removeprefix("model.").removesuffix(".weight")
        spans.setdefault(form, []).append([int(n) for n in _NUMBER.findall(name)])
    return [_spanned(form, numbers) for form, numbers in spans.items()]


def _spanned(form: str, numbers: list[list[int]]) -> str:
    for column in zip(*numbers, strict=True):
        low, high = min(column), max(column)
        form = form.replace("#", str(low) if low == high else f"{low}-{high}", 1)
    return form
