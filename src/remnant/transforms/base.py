"""What a transform that is no format of weights says of itself, as a value."""

import re
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from remnant.records.base import Record

P = TypeVar("P", bound=Record)


class Transform(NamedTuple, Generic[P]):
    """One way of making a model of a model, by the name under which specs and manifests hold it.

    What it needs are the names of its function's parameters (``methods.TRANSFORM_READS``); what it
    gives is a weight without codes, or a model that was changed in place.

    Attributes:
        key: unique among all transforms, formats included.
        path: "module:function" that does it.
        version: enters the identity of every artefact; raised when results change.
        meaning: in a few words.
        source: where it is defined.
        params: the record of its parameters, with the function's names and defaults.
        read: the parameters that a short name stands for, None if it is none of this transform's;
            a ValidationError where they are out of bounds.
        write: the short name of some parameters, as near as there is one; None where there is none.
        names: short names to suggest.
        by_text: text decides the result.
        everything: all weights are changed, not only those that a quantizer touches.
        teaches: whether it puts the forget text, or the target's weights, into any model with some
            parameters, so that a verdict counts only the excess over a never-read model.
    """

    key: str
    path: str
    version: int
    meaning: str
    source: str
    params: type[P]
    read: Callable[[str], P | None]
    write: Callable[[P], str | None]
    names: tuple[str, ...] = ()
    by_text: bool = False
    everything: bool = False
    teaches: Callable[[P], bool] = lambda params: False


def by_number(
    word: str, params: type[P], field: str, *, whole: bool = False
) -> tuple[Callable[[str], P | None], Callable[[P], str]]:
    """How a short name of a word and one number is read and written: "noise0.02", "prune20".

    Args:
        word: before the number.
        params: the record of the transform's parameters.
        field: the one that the number is.
        whole: it has no decimals.
    """
    decimals = "" if whole else r"(?:\.[0-9]+)?"
    form = re.compile(rf"{word}((?:0|[1-9][0-9]*){decimals})")

    def read(name: str) -> P | None:
        found = form.fullmatch(name)
        return params(**{field: int(found[1]) if whole else float(found[1])}) if found else None

    return read, lambda record: f"{word}{getattr(record, field):g}"
