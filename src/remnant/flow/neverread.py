"""Whether a model that is said never to have read a text is another one than those that it is held
against, told by the digests of their weights before anything is measured. No torch.
"""

from collections.abc import Mapping
from pathlib import Path

from remnant.errors import UserError
from remnant.flow.digests import digest_outside
from remnant.flow.node import Input
from remnant.flow.place import Made, Outside
from remnant.flow.store import Store
from remnant.flow.unread import WEIGHTS

# What it may not be, by its role.
OTHERS = {"target": "the target itself", "unlearned": "the model that is judged"}


def check_unread(store: Store | None, models: Mapping[str, Input]) -> None:
    """See that the never-read model of a comparison is none of the others.

    The same weights in other files or another dtype are told by their numbers, when these are
    there (``stages.evidence``).

    Args:
        store: where artefacts lie; None where all models are from outside.
        models: by role: "target", "unlearned", and "retrain" where there is one.

    Raises:
        UserError: it is one of them.
    """
    if "retrain" not in models:
        return
    unread = weights_of(store, models["retrain"])
    for role, what in OTHERS.items():
        if role in models and weights_of(store, models[role]) == unread:
            raise UserError(
                f"The model that never read the forget text (retrain) is {what}: their weights are "
                "the same bytes.",
                "Name one that was trained without the text, or none.",
            )


def weights_of(store: Store | None, source: Input) -> frozenset[str]:
    """The digests of the files that hold a model's weights; its own digest where there are none
    yet, or it lies elsewhere.
    """
    files: dict[str, str] = {}
    if isinstance(source, Made) and store is not None:
        files = {n: f.sha256 for n, f in store.manifest(source.name).files.items()}
    elif isinstance(source, Outside):
        files = _outside(Path(source.source))
    own = (digest for name, digest in files.items() if name.endswith(WEIGHTS))
    return frozenset(own) or frozenset({source.digest})


def _outside(path: Path) -> dict[str, str]:
    """The digests of the files of weights of a folder, or of a file that is a model."""
    there = path.iterdir() if path.is_dir() else [path]
    held = (p for p in there if p.is_file() and p.name.endswith(WEIGHTS))
    return {p.name: digest_outside(p) for p in held}
