"""Which model never read a forget text: one that is trained as the target was, without the text.

Known is that of a model which this store trained, as its record says on what and how. No torch.
"""

from typing import NamedTuple

from remnant.flow import plan as planning
from remnant.flow.place import Made
from remnant.flow.plan import Input
from remnant.flow.store import Store
from remnant.records import Manifest, TrainSpec

# A never-read model may take so much of a request's time.
SHARE = 0.4
NONE = (
    "none, {why}; what is left is counted from nothing, and membership against the holdout text "
    "(--retrain names a model that never read the text)"
)


class Control(NamedTuple):
    """What never read the text: a model, or none; ``said``: which, in a sentence's end."""

    model: Input | None
    said: str


def control_of(
    store: Store, target: Input, corpus: str, seconds: float, measuring: float = 0.0
) -> Control:
    """A never-read model for a target, made or not, or none and why.

    Args:
        store: where artefacts are kept.
        target: the model that knows the text.
        corpus: the artefact of the prepared texts of the request.
        seconds: of the whole request.
        measuring: seconds that measuring one model takes.
    """
    made = store.manifest(target.name) if isinstance(target, Made) else None
    if made is None or made.stage != "train":
        return Control(None, NONE.format(why="as the target was not trained in this store"))
    own = made.inputs["corpus"]
    if not store.has(own) or not _forget(store.manifest(corpus)) <= _forget(store.manifest(own)):
        why = "as the target was trained on other files than those to be forgotten"
        return Control(None, NONE.format(why=why))
    spec = TrainSpec.model_validate(made.spec).without_forget()
    node = planning.train_node(spec, Made(own, store.manifest(own).digest))
    cost = made.seconds + measuring
    if not store.has(node.name) and cost > SHARE * seconds:
        why = f"as one would take about {cost:.0f} s, more than {SHARE:.0%} of the budget"
        return Control(None, NONE.format(why=why))
    said = f"a model trained as train-{made.key} was, without the text to be forgotten"
    return Control(node, said)


def _forget(corpus: Manifest) -> set[str]:
    """The digests of the files whose text is to be forgotten."""
    return {digest for role, digest in corpus.sources.items() if role.startswith("forget-")}
