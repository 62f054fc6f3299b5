"""What stores beside the models say of them: who was made from whom, and what audits found.

A manifest carries its own digest and the sizes of its files; a model from outside of a store is the
one that an audit saw if its content has the digest that was noted then.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from remnant.catalog import STAGE_VERSIONS
from remnant.flow.digests import digest_path
from remnant.flow.place import MODEL_STAGES
from remnant.flow.store import Store
from remnant.records import AuditSpec, Manifest, Verdict

# The inputs that are models, the one that a step begins with first.
ROLES = ("model", "target", "base", "adapter")
TARGET, UNREAD = "target", "never read"
FROM_SCRATCH = "train from scratch"
# What an audit says of a model that still knows, or comes back to it. A target is what the others
# are compared with: it knows.
KNOWING = (TARGET, "known", "came back", "hidden")
# The worst is believed where several audits speak of one model.
_WORST = (*KNOWING, "broken", "not measured", "unclear", "gone", UNREAD)
_OUTSIDE = re.compile(r"(?P<source>.+) \((?P<digest>[0-9a-f]{16})\)")


class Made(NamedTuple):
    """How a manifest says that a model was made, and from which models that are on this disk."""

    how: str
    parents: tuple[Path, ...]


class Facts(NamedTuple):
    """What is known of the models of a disk, by their resolved folders."""

    made: Mapping[Path, Made]
    verdicts: Mapping[Path, str]


def facts(stores: Collection[Path]) -> Facts:
    """What all manifests of some stores say.

    Args:
        stores: the folders that have ``objects`` in them.
    """
    made: dict[Path, Made] = {}
    verdicts: dict[Path, str] = {}
    for root in stores:
        store = Store(root)
        manifests = {n: m for n, m in store.manifests().items() if _whole(store.path(n), m)}
        for name, manifest in manifests.items():
            if manifest.stage in MODEL_STAGES:
                made[store.path(name).resolve()] = _made(store, manifest)
            if manifest.stage == "audit" and manifest.stage_version == STAGE_VERSIONS["audit"]:
                for path, word in _audited(store, name, manifests).items():
                    verdicts[path] = min(word, verdicts.get(path, word), key=_WORST.index)
    return Facts(made, verdicts)


def _whole(folder: Path, manifest: Manifest) -> bool:
    """Whether the files are there in the sizes that the manifest has noted."""
    for place, record in manifest.files.items():
        file = folder / place
        if not file.is_file() or file.stat().st_size != record.bytes:
            return False
    return True


def _made(store: Store, manifest: Manifest) -> Made:
    how = manifest.spec.get("method") or manifest.spec.get("use") or ""
    given = [manifest.inputs[role] for role in ROLES if role in manifest.inputs]
    parents = [path for text in given if (path := _place(store, text))]
    if manifest.stage == "train" and not given:
        return Made(FROM_SCRATCH, ())
    return Made(f"{manifest.stage} {how}".strip(), tuple(parents))


def _place(store: Store, given: str) -> Path | None:
    """Where an input of a manifest lies: in the store, or outside; None of a model of the hub."""
    if store.has(given):
        return store.path(given).resolve()
    outside = _OUTSIDE.fullmatch(given)
    path = Path(outside["source"]) if outside else None
    return path.resolve() if path and path.exists() else None


def _audited(store: Store, name: str, manifests: Mapping[str, Manifest]) -> dict[Path, str]:
    """What one audit says of the models that it measured, by where they lie."""
    manifest = manifests[name]
    text = (store.path(name) / "verdicts.json").read_text(encoding="utf-8")
    verdicts = TypeAdapter(list[Verdict]).validate_json(text)
    outcomes = {(v.model, v.form): v.outcome for v in verdicts}
    words = {"target": TARGET, "retrain": UNREAD}
    found: dict[Path, str] = {}
    for role, variant in AuditSpec.model_validate(manifest.spec).members.items():
        measured = manifests.get(manifest.inputs.get(role, ""))
        word = words.get(variant.model) or outcomes.get((variant.model, variant.form))
        path = _seen(store, measured) if measured else None
        if path and word:
            found[path] = min(word, found.get(path, word), key=_WORST.index)
    return found


def _seen(store: Store, measured: Manifest) -> Path | None:
    """The model that was measured, if what lies there now is what was measured then."""
    given = measured.inputs.get("model", "")
    path = _place(store, given)
    outside = _OUTSIDE.fullmatch(given)
    if path and outside and digest_path(Path(outside["source"]))[:16] != outside["digest"]:
        return None
    return path
