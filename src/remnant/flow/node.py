"""One piece of work, with a key made of everything that decides its result. No torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from remnant.catalog import STAGE_VERSIONS
from remnant.durable import digest_of
from remnant.flow.place import Made, Outside
from remnant.records import SCHEMA, Piece, Record, Stage, Variant

# What is made outside of any comparison.
UNNAMED = Variant()


@dataclass(frozen=True)
class Node:
    """One piece of work.

    ``inputs`` are other pieces or outside folders; ``label`` is for people and not part of the key.
    """

    stage: Stage
    spec: Record
    inputs: Mapping[str, "Node | Made | Outside"] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)
    label: Variant = UNNAMED

    @cached_property
    def digest(self) -> str:
        """sha256 over stage, version, spec without circumstances, keys of the inputs and versions
        of the methods.
        """
        identity = {
            "schema": SCHEMA,
            "stage": self.stage,
            "version": STAGE_VERSIONS[self.stage],
            "spec": _without_paths(self.spec.identity(), self.inputs),
            "inputs": {role: source.digest for role, source in self.inputs.items()},
            "methods": dict(self.methods),
        }
        return digest_of(identity)

    @property
    def name(self) -> str:
        """Folder name in the store: stage and 16 digits of the digest."""
        return f"{self.stage}-{self.digest[:16]}"

    @property
    def piece(self) -> Piece:
        """What is kept of this node under the name of a run."""
        return Piece(name=self.name, stage=self.stage, label=self.label)


# Where a spec names a file or folder that is an input too, and so enters by its content.
_PATHS: Mapping[str, tuple[str, ...]] = {
    "base": ("base",),
    "tokenizer": ("tokenizer",),
    "alternatives": ("alternatives",),
    "token_weights": ("token_weights",),
    "reinforced": ("reinforced",),
}


def _without_paths(spec: dict[str, Any], roles: Iterable[str]) -> dict[str, Any]:
    """A spec's identity without the paths of inputs: the same content by another path is the
    same.
    """
    for *inside, last in (_PATHS[role] for role in roles if role in _PATHS):
        place = spec
        for part in inside:
            place = place.get(part, {})
        place.pop(last, None)
    return spec


Input = Node | Made | Outside
