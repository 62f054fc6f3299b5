"""All transforms that are built in: the formats of weights, and what else is done to a model.

To add one that is no format: its file, and its name here.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from remnant.errors import UserError
from remnant.formats import table as formats
from remnant.formats.base import Format, Kind
from remnant.formats.table import Named, keys_of, read_by
from remnant.transforms.base import Transform
from remnant.transforms.editing import EDIT
from remnant.transforms.mixing import MIX
from remnant.transforms.noise import NOISE
from remnant.transforms.pruning import PRUNE, WANDA
from remnant.transforms.random_update import RANDOM_UPDATE
from remnant.transforms.relearning import RELEARN
from remnant.transforms.task_vector import TASK_VECTOR

_OWN: tuple[Transform[Any], ...] = (
    PRUNE,
    WANDA,
    NOISE,
    MIX,
    TASK_VECTOR,
    RANDOM_UPDATE,
    EDIT,
    RELEARN,
)
TRANSFORMS: Mapping[str, Kind] = {**formats.FORMATS, **{found.key: found for found in _OWN}}
NAMES = tuple(name for found in TRANSFORMS.values() for name in found.names)


def by_name(name: str) -> Named[Kind] | None:
    """The transform that a short name stands for; None if it is none.

    Raises:
        UserError: it is one, with parameters out of bounds.
    """
    return read_by(TRANSFORMS.values(), name)


def told_by_weights(steps: Iterable[str]) -> bool:
    """Whether a forecast from weights alone can know what some steps do, by their names.

    It can where every step is a format of weights that calibration text does not decide, or the
    user's own.

    >>> told_by_weights(["bf16", "int4"]), told_by_weights(["gptq4"])
    (True, False)
    """
    kinds = [TRANSFORMS[key] for key in keys_of(steps, TRANSFORMS)]
    return all(isinstance(kind, Format) and not kind.by_text for kind in kinds)


def teaches(steps: Iterable[str]) -> bool:
    """Whether some steps, by their names, teach any model what was to be forgotten.

    >>> teaches(["mix0.5", "int4"]), teaches(["int4"])
    (True, False)
    """
    return any(_taught_by(formats.bare(step)) for step in steps)


def _taught_by(name: str) -> bool:
    try:
        named = read_by(_OWN, name)
    except UserError:
        return False
    return named is not None and named.format.teaches(named.params)
