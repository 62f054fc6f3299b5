"""A model and its place among others, as values. No torch."""

from typing import NamedTuple

BY_WEIGHTS, BY_MANIFEST, BY_ITSELF = "weights", "manifest", "its own word"


class Member(NamedTuple):
    """One model and its place.

    ``parent``: None of one without. ``step``: what was done to the parent. ``told``: whether it is
    known which of the two came first. ``by``: what tells it. ``beside``: the other parent of a
    merge. ``perhaps``: models that it may come from as well as from the parent. ``distance``,
    ``fit``, ``rank``: of ``kinship.Kin``. ``family``: equal for models that are related; None of
    one that is related to none. ``how``: by its manifest. ``verdict``: of an audit. ``knowing``:
    whether it descends from a model that still knows (``_answered``); ``of``: from which.
    ``turned``: a model that still knows and that this one may be in other coordinates.
    """

    name: str
    kind: str
    parent: str | None = None
    step: str = ""
    told: bool = False
    by: str = ""
    beside: str | None = None
    perhaps: tuple[str, ...] = ()
    distance: float | None = None
    fit: float | None = None
    rank: int | None = None
    family: int | None = None
    how: str = ""
    verdict: str = ""
    knowing: str = "no"
    of: str = ""
    turned: str = ""


class Forest(NamedTuple):
    """All models by name, and those that could not be read with the reasons."""

    members: tuple[Member, ...]
    unread: tuple[tuple[str, str], ...]
