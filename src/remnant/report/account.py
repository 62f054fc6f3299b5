"""A report's part for whoever answers for a deletion and reads no code: what was deleted, how that
was checked, what the words mean, and what is not claimed. Counts and digests, never a text.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

from remnant.flow.store import Store
from remnant.records import FULL, NOT_RUN, Manifest, Outcome, Variant
from remnant.report.front import PLAIN
from remnant.report.table import Group, Results, checks, not_run
from remnant.stages.evidence import ANSWERS

# What is counted of a corpus, by the names of its files.
COUNTED: Mapping[str, tuple[str, ...]] = {
    "texts to be forgotten": ("raw/forget",),
    "passages of them that are asked for": ("verbmem/forget",),
    "questions about them": ("knowmem/forget_qa",),
    "texts to be kept": ("raw/retain1", "raw/retain2"),
    "questions about what is kept": ("knowmem/retain_qa",),
    "texts of the same kind that were never read": ("raw/holdout",),
}
FORGET = "raw/forget.json"
# What says of a test that it did not come to a number.
NOT_MADE = ("not measured", "lost", NOT_RUN)
# The roles of a corpus's sources that hold forget text: files of the user's, or a benchmark.
SOURCES = ("forget-", "folder")
WEIGHTS = (".safetensors", ".gguf")
KINDS: Mapping[str, str] = {
    PLAIN: "The model is asked for a passage or a fact, and what it writes is compared with the "
    "truth.",
    "given beginning": "The beginning of the passage or of the answer is given to it as well.",
    "samples": "It answers several times with chance in it, and the best answer counts.",
    "probability per token": "How likely it holds the next word of the text, said or not.",
    "membership": "Whether the text can be told from text of the same kind that was never read.",
    ANSWERS: "Whether it ends at once or repeats a phrase, as a model does that only refuses.",
    "relearning": "It is trained a little on a part of the text, and asked for the rest.",
    "damaged weights": "Its weights are pruned, blurred or mixed with the target's, and it is "
    "asked again.",
    "soft prompt": "An input is searched for that makes it tell the text.",
    "more tests": "Further tests, such as the question in other words; the engineer's part names "
    "them.",
}
WORDS: Mapping[Outcome, str] = {
    "gone": "No test of this report tells the model from one that never read the text. Only this "
    "is a pass.",
    "hidden": "Asked plainly the model says nothing, but a stronger test shows that the text is "
    "still there.",
    "known": "Asked plainly the model tells the text, or a part of it.",
    "came back": "In full precision the text is not told, but in this form of the model it is: "
    "making the model smaller brought it back.",
    "broken": "The model is no longer useful, so its silence proves nothing.",
    "unclear": "There were too few texts to decide.",
    "not measured": "A number, a test or a check is missing. It counts as not passed.",
}
BEFORE = "Each model was compared with the model as it was before"


class Text(NamedTuple):
    """What was to be forgotten, by one corpus.

    ``counts``: what there is of it, and how many. ``given``: files as given with their digests.
    ``prepared``: sha256 of the prepared forget texts; empty where it was prepared elsewhere.
    """

    corpus: str
    counts: tuple[tuple[str, int], ...]
    given: tuple[tuple[str, str], ...]
    prepared: str


class Audited(NamedTuple):
    """A model that this report speaks of.

    ``files``: those that hold its weights with their sha256, or what is known in their place.
    """

    model: str
    how: str
    files: tuple[tuple[str, str], ...]


class Kind(NamedTuple):
    """One kind of test: what it does in plain words, how often it was made and how often it found
    the text.
    """

    name: str
    meaning: str
    made: int
    found: int


def texts(results: Results, store: Store) -> list[Text]:
    """The corpora of a run."""
    found: dict[str, Text] = {}
    for about, manifest in _measured(results):
        own = manifest.inputs.get("corpus", "")
        if own and own not in found:
            found[own] = _text(about.corpus or "corpus", own, store)
    return list(found.values())


def _measured(results: Results) -> Iterable[tuple[Variant, Manifest]]:
    for name, manifest in results.manifests.items():
        if manifest.stage == "measure":
            yield results.labels[name], manifest


def _text(name: str, given: str, store: Store) -> Text:
    if not store.has(given):
        return Text(name, (), (outside(given),), "")
    made = store.manifest(given)
    files = tuple(
        (outside(made.inputs.get(role, role))[0], digest)
        for role, digest in made.sources.items()
        if role.startswith(SOURCES)
    )
    lab = made.spec.get("lab")
    invented = ((f"invented by Remnant's lab ({lab})", made.digest),) if lab else ()
    prepared = made.files[FORGET].sha256 if FORGET in made.files else ""
    return Text(name, _counts(made), files or invented, prepared)


def _counts(corpus: Manifest) -> tuple[tuple[str, int], ...]:
    """What there is in a corpus of what is counted."""
    there = corpus.summary.get("counts", {})
    found = []
    for said, files in COUNTED.items():
        if count := sum(there.get(name, 0) for name in files):
            found.append((said, count))
    return tuple(found)


def outside(given: str) -> tuple[str, str]:
    """Name and digest of something from outside, as a manifest writes it; where a file lies on
    this machine is nobody's business.

    >>> outside("/mine/letters.txt (0123456789abcdef)")
    ('letters.txt', '0123456789abcdef')
    >>> outside("owner/model (0123456789abcdef)")
    ('owner/model', '0123456789abcdef')
    """
    path, _, digest = given.removesuffix(")").rpartition(" (")
    if not path:
        return given, ""
    return PurePath(path).name if path.startswith("/") else path, digest


def audited(results: Results, store: Store) -> list[Audited]:
    """The models of a run in full precision, the unlearned ones first."""
    found: dict[tuple[str | None, str, int | None], Audited] = {}
    for about, manifest in sorted(_measured(results), key=lambda one: one[0].is_reference):
        place = about.corpus, about.model, about.seed
        if about.in_full and place not in found:
            found[place] = _audited(about, manifest.inputs.get("model", ""), store)
    return list(found.values())


def _audited(about: Variant, source: str, store: Store) -> Audited:
    name = {
        "target": "target: the model before",
        "retrain": "retrain: a model that never read the text",
    }.get(about.model, about.model)
    if not source:
        return Audited(name, "behind a server; no file of it was seen", ())
    if not store.has(source):
        return Audited(name, "a model from outside, as it was given", (outside(source),))
    made = store.manifest(source)
    method = made.spec.get("method") or made.spec.get("use") or ""
    how = f"{made.stage} {method}".strip() + f", finished {made.created[:10]}"
    files = sorted((f, r.sha256) for f, r in made.files.items() if f.endswith(WEIGHTS))
    return Audited(name, how, tuple(files) or (("record", made.digest),))


def kinds(groups: Sequence[Group]) -> list[Kind]:
    """The kinds of tests that were made of the unlearned models, plain asking first.

    Of plain asking nothing is counted: its limits are those of the verdicts.
    """
    found = [e for group in groups for e in group.evidence]
    plain = Kind(PLAIN, KINDS[PLAIN], 0, 0)
    rest = []
    for name in dict.fromkeys(e.kind for e in found):
        own = [e.says for e in found if e.kind == name and e.says not in NOT_MADE]
        rest.append(Kind(name, KINDS.get(name, ""), len(own), own.count("tells")))
    return [plain, *rest]


def checked(results: Results) -> list[str]:
    """How it was checked, in plain sentences."""
    groups = [g for g in results.groups if g.verdicts]
    forms = list(dict.fromkeys(v.form for g in groups for v in g.verdicts))
    unread = bool(groups) and all("retrain" in g.models for g in groups)
    quantized = [form for form in forms if form != FULL]
    said = [
        f"{BEFORE}, and with one that never read the text."
        if unread
        else f"{BEFORE}. There was none that never read the text, so what is left is counted from "
        "nothing.",
        "How much a test may find was fixed before the run, and stands under Rule of the verdict.",
    ]
    if quantized:
        said.insert(0, _forms(forms))
    if results.sweep.rule.access == "text":
        said.append("Only what the models write was seen, not what they hold likely.")
    return [*said, *not_run(groups), *_instrument(results)]


def _forms(forms: Sequence[str]) -> str:
    full = "in full precision and " if FULL in forms else ""
    rest = [form for form in forms if form != FULL]
    return f"The models were checked {full}as {', '.join(rest)}."


def _instrument(results: Results) -> list[str]:
    made = checks(results)
    failed = sum(not check["ok"] for _, check in made)
    if not made:
        return ["Whether the measuring itself works was not checked, so nothing can pass."]
    rest = "all passed" if not failed else f"{failed} failed, and what they concern does not pass"
    return [f"Whether the measuring itself works was checked {len(made)} times: {rest}."]


def words(results: Results) -> list[tuple[Outcome, str, int]]:
    """Every word of the verdict, what it means, and how often it was said in this report."""
    said = [v.outcome for group in results.groups for v in group.verdicts]
    return [(word, meaning, said.count(word)) for word, meaning in WORDS.items()]


def not_claimed(results: Results) -> list[str]:
    """What this report does not say, in plain sentences."""
    rule = results.sweep.rule
    tried = [v.form for group in results.groups for v in group.verdicts]
    tried += [k.name for k in kinds(results.groups) if k.made]
    relearned = any("relearn" in what for what in tried)
    told = [
        "That a law or a contract is kept. This is a measurement, not legal advice.",
        "That the texts above are the right ones, or all that there are. What stands in other "
        "texts that the model read is not asked about.",
        "That copies of the texts are gone elsewhere: in training data, logs, backups or other "
        "models.",
        "That no trace is in the weights. Gone means that no test above finds more than its limit "
        "allows, each with 95 % confidence. A test that was not made may find more: another "
        "language or a code word, say.",
        "Anything about a form of the model that is not listed, or about these files once they "
        "are changed, merged or trained again.",
    ]
    if not relearned:
        told.append(
            "That the text stays gone if somebody trains the model on a part of it: that was not "
            "tried."
        )
    if rule.access == "text":
        told.append("What the model holds likely without writing it: only its words were seen.")
    return [*told, "That the machine that measured was honest. Who vouches for it signs it."]
