"""The models of a run as a tree, as their manifests tell it: who was made from whom."""

from collections.abc import Iterator, Mapping

from remnant.ancestry.facts import KNOWING, ROLES
from remnant.ancestry.member import BY_MANIFEST, Member
from remnant.flow.store import Store
from remnant.records import Manifest, Outcome, Variant
from remnant.report.account import outside
from remnant.report.table import Results

# Of a key or digest: enough to tell models of one run apart.
SHOWN = 8
OUTCOMES: Mapping[str, str] = {"target": "target", "retrain": "never read"}


def descent(results: Results, store: Store) -> list[Member]:
    """Every model that was measured and those that it was made from, back to the first.

    A model from outside stands by its file's name; one behind a server has no place.
    """
    found: dict[str, Member] = {}
    for name, about, word in _measured(results):
        found.setdefault(name, _member(name, about, word, store))
    for name in [*found]:
        for older in _older(name, store):
            found.setdefault(older, _member(older, Variant(), "", store))
    named = {name: member.name for name, member in found.items()}
    return [m._replace(parent=named.get(m.parent or "")) for m in found.values()]


def _measured(results: Results) -> Iterator[tuple[str, Variant, str]]:
    """The models that were measured, as what, and what was said of them."""
    words: dict[tuple[str | None, str, int | None, str], Outcome] = {
        (v.corpus, v.model, v.seed, v.form): v.outcome for g in results.groups for v in g.verdicts
    }
    for name, manifest in results.manifests.items():
        model = manifest.inputs.get("model", "")
        if manifest.stage == "measure" and model:
            about = results.labels[name]
            word = words.get((about.corpus, about.model, about.seed, about.form), "")
            yield model, about, word or (OUTCOMES.get(about.model, "") if about.in_full else "")


def _older(name: str, store: Store) -> Iterator[str]:
    """What a model was made from, then what that was made from, and so on."""
    while parent := _parent(_made(name, store)):
        yield parent
        name = parent


def _made(name: str, store: Store) -> Manifest | None:
    return store.manifest(name) if store.has(name) else None


def _parent(made: Manifest | None) -> str:
    """The model that another one was made from; empty of one that was not, or is from outside."""
    given = made.inputs if made else {}
    return next((given[role] for role in ROLES if role in given), "")


def _member(name: str, about: Variant, word: str, store: Store) -> Member:
    made = _made(name, store)
    method = str(made.spec.get("method") or made.spec.get("use") or "") if made else ""
    known = {"gone": "gone", "": "not known"}
    given, digest = (made.stage, made.key) if made else outside(name)
    return Member(
        name=f"{about.words or given} ({digest[:SHOWN]})",
        kind=made.stage if made else "from outside",
        parent=_parent(made) or None,
        step=f"{made.stage} {method}".strip() if made else "",
        told=True,
        by=BY_MANIFEST,
        family=0,
        verdict=word,
        knowing="is one" if word in KNOWING else known.get(word, "no"),
    )
