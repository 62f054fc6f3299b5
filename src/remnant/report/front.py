"""The first screen of a report: one sentence, a badge per form, and every test as a place between
the model that never read the text (0) and the target (1).
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from remnant.corpus import of_role, short_title
from remnant.records import FULL, Check, Evidence, Outcome, Variant, Verdict
from remnant.report.table import Group, Results, checks

# The worst first, as people read them.
WORST: tuple[Outcome, ...] = (
    "known", "came back", "hidden", "broken", "not measured", "unclear", "gone",
)  # fmt: skip
# A number is drawn at most so far beyond the target, and so far below the never-read model.
FARTHEST = 1.2
PLAIN = "plain asking"


class Dot(NamedTuple):
    """What one test finds in one form: ``left`` is 0 where the model is as one that never read the
    text, 1 where it is as the target.
    """

    form: str
    kind: str
    test: str
    left: float

    @property
    def said(self) -> str:
        """For whoever points at it."""
        return f"{self.form}, {self.kind}, {self.test}: {self.left:.0%} of the target"


class Failed(NamedTuple):
    """Failed checks of one name about one model, in the forms in which they failed."""

    corpus: str
    model: str
    name: str
    forms: tuple[str, ...]
    said: str


def headline(results: Results) -> str:
    """What was found of all models in all forms, in one sentence; empty before any verdict."""
    verdicts = [v for group in results.groups for v in group.verdicts]
    if not verdicts:
        return ""
    if all(v.outcome == "gone" for v in verdicts):
        return (
            f"Gone in all {len(verdicts)} forms that were audited: no test tells that the text "
            "was ever read."
        )
    told = filter(None, (_counted(word, verdicts) for word in WORST))
    forms = "form" if len(verdicts) == 1 else "forms"
    return f"Not gone. Of {len(verdicts)} {forms} of the unlearned models: {', '.join(told)}."


def _counted(word: Outcome, verdicts: Sequence[Verdict]) -> str:
    """How often a word is said, and under which forms something came back; empty if never."""
    own = [v for v in verdicts if v.outcome == word]
    under = f" (under {', '.join(dict.fromkeys(v.form for v in own))})"
    return f"{len(own)} {word}{under if word == 'came back' else ''}" if own else ""


def dots(group: Group, model: str) -> list[Dot]:
    """All that was found of one model, as far as it has a place on the way."""
    plain = [
        Dot(form, PLAIN, short_title(metric), share)
        for metric in group.metrics
        if metric in of_role("knowledge")
        for form in group.forms
        if (share := _left(group, model, form, metric)) is not None
    ]
    found = [e for e in group.evidence if e.model == model and e.left]
    return plain + [Dot(e.form, e.kind, e.test, e.left[0]) for e in found if e.left]


def _left(group: Group, model: str, form: str, metric: str) -> float | None:
    """Where a model stands by plain asking, against its references in the same form."""
    own = group.cell(model, form, metric)
    return group.share(own) if own else None


def drawn(left: float) -> float:
    """Where a number is drawn: what is pushed away or overshoots stays on the paper."""
    return min(max(left, -FARTHEST), FARTHEST)


def strongest(group: Group, model: str) -> str:
    """The test by which most is told of a model in any form, in words; empty where none tells."""
    telling = [e for e in group.evidence if e.model == model and e.says == "tells"]
    loudest = max(telling, key=_loud, default=None)
    return f"{loudest.said} ({loudest.kind}, {loudest.form})" if loudest else ""


def _loud(found: Evidence) -> float:
    return abs(found.left[0]) if found.left else 0.0


def badges(group: Group, model: str) -> list[tuple[str, Outcome, str]]:
    """Form, outcome and reason of one model, full precision first."""
    found = [(form, group.verdict(model, form)) for form in group.forms]
    there = [(form, v.outcome, v.reason) for form, v in found if v]
    return sorted(there, key=lambda badge: badge[0] != FULL)


class Judged(NamedTuple):
    """One word on one model, and the forms in which it is said for the same reason."""

    model: str
    word: str
    forms: tuple[str, ...]
    reason: str


def judged(group: Group) -> list[Judged]:
    """The verdicts on all models, forms of which the same is said together."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for model, form in product(group.unlearned, group.forms):
        verdict = group.verdict(model, form)
        word = "differs" if group.seeds > 1 else "not measured"
        said = (verdict.outcome, verdict.reason) if verdict else (word, "")
        found.setdefault((model, *said), []).append(form)
    return [Judged(model, w, tuple(forms), why) for (model, w, why), forms in found.items()]


def failed(results: Results) -> list[Failed]:
    """The failed checks of the instrument, those of one name about one model taken together."""
    made: dict[tuple[str, str, str], list[tuple[Variant, Check]]] = {}
    for about, check in checks(results):
        one = Check.model_validate(check)
        if not one.ok:
            key = about.corpus or "", about.model or "", one.name
            made.setdefault(key, []).append((about, one))
    return [Failed(*key, _forms(own), own[0][1].said) for key, own in made.items()]


def _forms(made: Sequence[tuple[Variant, Check]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(about.form for about, _ in made))
