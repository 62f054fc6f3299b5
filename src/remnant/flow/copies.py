"""Which transformed copies of models have their weights on the disk, and for how long. No torch.

A copy that is only measured, or changed on, never gets there: its artefact holds no weights, and
the piece that reads it takes the model from memory. One whose files something reads is written, and
let go when all that reads it is done (design/002-store.md).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum

from remnant.errors import UserError
from remnant.flow.node import Input, Node
from remnant.flow.place import Made, Outside, origin_of
from remnant.flow.store import Store, has_weights
from remnant.records import Manifest, MeasureSpec, Record, TransformResult, TransformSpec

# What can be asked of a model in memory; all else reads its files.
_IN_MEMORY = ("measure", "elicit", "transform")


class Copy(IntEnum):
    """What is wanted of a copy: that it is known, that its files are there while they are read, or
    that they stay.
    """

    KNOWN = 0
    READ = 1
    KEPT = 2


def enough(manifest: Manifest, copy: Copy) -> bool:
    """Whether an artefact is what is wanted; anything but a copy is always kept."""
    return manifest.kept or copy == Copy.KNOWN or (copy == Copy.READ and has_weights(manifest))


def from_memory(reader: Node, role: str) -> bool:
    """Whether a piece takes one of its models from memory: its own engine reads files."""
    engine = isinstance(reader.spec, MeasureSpec) and bool(reader.spec.engine)
    return role == "model" and reader.stage in _IN_MEMORY and not engine


def wanted(nodes: Iterable[Node]) -> dict[str, Copy]:
    """What is wanted of every transformed copy among some pieces, by name: that what nothing reads
    stays, since it is what was asked for.
    """
    found: dict[str, Copy] = {}
    for reader in nodes:
        for role, source in reader.inputs.items():
            if isinstance(source, Node) and source.stage == "transform":
                copy = Copy.KNOWN if from_memory(reader, role) else Copy.READ
                found[source.name] = max(copy, found.get(source.name, copy))
    return found


def by_form(nodes: Sequence[Node]) -> list[Node]:
    """Some pieces so that the copies of one form are done with before those of the next are made:
    full precision first, and what compares copies as soon as they are there.
    """
    forms = list(dict.fromkeys([(), *(n.label.steps for n in nodes)]))
    rank = {steps: i for i, steps in enumerate(forms)}
    return sorted(nodes, key=lambda n: (rank[n.label.steps], n.stage != "explain"))


def readers_of(nodes: Iterable[Node]) -> dict[str, list[str]]:
    """Which of some pieces read each transformed copy among them, by names."""
    found: dict[str, list[str]] = defaultdict(list)
    for reader in nodes:
        for source in reader.inputs.values():
            if isinstance(source, Node) and source.stage == "transform":
                found[source.name].append(reader.name)
    return found


def let_go(store: Store, readers: Mapping[str, Sequence[str]]) -> None:
    """Delete the weights of all copies whose readers are done, but not of what was asked for.

    One that another process is reading stays until the next call.
    """
    for name, reading in readers.items():
        if store.has(name) and not store.manifest(name).kept and all(map(store.has, reading)):
            store.lighten(name)


def node_of(store: Store, name: str) -> Node:
    """The piece of work that made a copy, by its manifest.

    Raises:
        UserError: what it was made from is no longer there, or another version made it.
    """
    manifest = store.manifest(name)
    spec = TransformSpec.model_validate(manifest.spec)
    inputs = {role: _source(store, manifest, role) for role in manifest.inputs}
    node = Node("transform", spec, inputs, manifest.methods)
    if node.digest != manifest.digest:
        raise UserError(
            f"The weights of {name} were not kept, and cannot be made again: what it was made from "
            "was changed or is gone, or another version of Remnant made it.",
            f"Delete the folder {store.path(name)} and make it anew.",
        )
    return node


def check_same(before: Manifest, again: Record) -> None:
    """See that a copy came out as it did before.

    Raises:
        UserError: it did not, so that what was measured on it would be another model's.
    """
    was, now = before.of(TransformResult), again
    if isinstance(now, TransformResult) and was.weights and was.weights != now.weights:
        raise UserError(
            f"The copy transform-{before.key} was made again and came out with other weights: its "
            f"{was.use} does not give the same bits twice here.",
            "Delete its folder and those of what was measured on it; the command makes all anew.",
        )


def _source(store: Store, manifest: Manifest, role: str) -> Input:
    said = manifest.inputs[role]
    if store.has(said):
        return Made(said, manifest.sources[role])
    return Outside(origin_of(said))
