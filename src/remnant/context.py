"""What a piece of work is given besides its settings and inputs: whom to tell how far it is, the
model that is still in memory, where to compute, what its inputs are. No torch.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from remnant.lineage import Lineage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Called with (done, total, note).
Progress = Callable[[int, int, str], None]


def both(first: Progress, second: Progress) -> Progress:
    """Progress that two are told of.

    >>> both(lambda *said: print(1, *said), lambda *said: print(2, *said))(3, 4, "steps")
    1 3 4 steps
    2 3 4 steps
    """

    def told(done: int, total: int, note: str) -> None:
        first(done, total, note)
        second(done, total, note)

    return told


class Opened(NamedTuple):
    """A model in memory, and what its weights are."""

    model: "PreTrainedModel"
    lineage: Lineage


class ModelCache:
    """At most one model: the one that was used last, for work on it or on a version of it.

    It lives as long as one call that makes pieces of work. What is handed out is no longer in it,
    since who gets a model may change it.
    """

    def __init__(self) -> None:
        self._last: Opened | None = None

    def get(self, origin: str) -> Opened | None:
        """The model, if it is of this origin (a digest); one of another is let go."""
        last, self._last = self._last, None
        return last if last and last.lineage.origin == origin else None

    def put(self, model: Opened) -> None:
        """Hold a model for the next ``get``, in the place of any other."""
        self._last = model

    def clear(self) -> None:
        """Hold no model, before work that needs the memory."""
        self._last = None


class Place(NamedTuple):
    """Where a process computes.

    ``device``: where its models go, in torch's words ("cuda"); what is computed with a model goes
    where the model is. Dtypes are no part of it: they change results, so the settings say them.
    How many processes work on the same piece is asked of ``remnant.ranks``.
    """

    device: str = "cpu"


class Context(NamedTuple):
    """The last argument of every stage.

    ``known``: what the inputs are, by their roles, and what is being made as "self"; empty where a
    stage is run by itself, and nobody seals what it leaves. ``weights``: whether a copy of a model
    is to be written; if not, it is left in ``models`` alone.
    """

    progress: Progress
    models: ModelCache
    place: Place = Place()
    known: Mapping[str, Lineage] = MappingProxyType({})
    weights: bool = True
