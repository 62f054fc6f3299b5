"""A policy and the verdicts of an audit -> one case for every form that was promised. No torch.

A pass is believed only with its evidence: whatever is missing makes a case "not measured".
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import JsonValue, ValidationError

from remnant.errors import UserError, some
from remnant.gate.policy import Policy, weaker
from remnant.parsing import parse
from remnant.records import Cell, Evidence, Outcome, Rule, Variant, Verdict
from remnant.weightfiles import strict_json

Row = TypeVar("Row", bound=Variant)
# Where one corpus was used with one seed.
Group = tuple[str | None, int | None]


class Audited(NamedTuple):
    """What a summary holds of an audit: the rule it followed, and what it found by it.

    ``lost``: where work failed or was not made; what has no verdict there was not measured.
    """

    rule: Rule
    verdicts: list[Verdict]
    evidence: list[Evidence]
    cells: list[Cell]
    lost: tuple[Group, ...] = ()


class Case(NamedTuple):
    """One form that was promised of a model, and what the audit says of it."""

    corpus: str | None
    seed: int | None
    model: str
    form: str
    outcome: Outcome
    reason: str

    @property
    def passed(self) -> bool:
        """Whether the text is gone in this form."""
        return self.outcome == "gone"

    @property
    def failed(self) -> bool:
        """Whether it was shown not to be; else it is open."""
        return not self.passed and self.outcome not in ("unclear", "not measured")

    @property
    def name(self) -> str:
        """Model and form, with corpus and seed where there are any."""
        seed = "" if self.seed is None else f"seed {self.seed}"
        about = [Path(self.corpus).name if self.corpus else "", seed]
        return f"{self.model} {self.form} ({', '.join(filter(None, about))})".replace(" ()", "")


def read_summary(path: Path) -> dict[str, JsonValue]:
    """The summary of an audit or a run, or the one in a folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    file = path / "summary.json" if path.is_dir() else path
    try:
        data = strict_json(file.read_bytes())
    except OSError as error:
        raise UserError(
            f"There is no summary {file} ({error.strerror}).",
            "remnant audit writes one; or give TARGET UNLEARNED.",
        ) from error
    except ValueError as error:
        raise UserError(
            f"{file} is no summary of an audit ({error}).", "remnant audit writes one."
        ) from error
    if not isinstance(data, dict) or not data.get("verdicts"):
        raise UserError(f"{file} holds no verdict.", "remnant audit writes one that does.")
    return data


def audited(summary: Mapping[str, Any]) -> Audited:
    """What a summary says, as records.

    Raises:
        UserError: it is not as Remnant writes it, or has two verdicts on one form.
    """
    given = summary.get("rule")
    rule = parse(Rule, given, "the rule of the summary")
    if lacks := Rule().told().keys() - (given or {}).keys():
        raise UserError(
            f"The rule of the summary does not say {some(sorted(lacks))}.", "Audit again."
        )
    found = Audited(
        rule,
        _rows(Verdict, summary, "verdicts"),
        _rows(Evidence, summary, "evidence"),
        _rows(Cell, summary, "cells"),
        _lost(summary),
    )
    places = [(v.corpus, v.seed, v.model, v.form) for v in found.verdicts]
    if len(set(places)) < len(places):
        raise UserError("The summary has two verdicts on one form.", "Audit again.")
    return found


def _rows(kind: type[Row], summary: Mapping[str, Any], name: str) -> list[Row]:
    try:
        return [kind.model_validate(_without_form(row)) for row in summary.get(name, ())]
    except (ValidationError, AttributeError, TypeError) as error:
        raise UserError(
            f"The {name} of the summary are not as this version writes them.", "Audit again."
        ) from error


def _lost(summary: Mapping[str, Any]) -> tuple[Group, ...]:
    """Where work failed or was not made."""
    try:
        return tuple(map(_group, summary.get("failed", ())))
    except (ValidationError, AttributeError, TypeError) as error:
        raise UserError(
            "What failed is not told by the summary as this version writes it.", "Audit again."
        ) from error


def _group(row: Mapping[str, Any]) -> Group:
    about = Variant(corpus=row.get("corpus"), seed=row.get("seed"))
    return about.corpus, about.seed


def _without_form(row: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """A row of a summary without what its steps say already."""
    return {name: value for name, value in row.items() if name != "form"}


def cases(found: Audited, policy: Policy, model: str | None = None) -> list[Case]:
    """What the audit says of every form that is promised, group by group.

    Args:
        found: the audit.
        policy: what is promised.
        model: which unlearned model, where the audit has several.

    Raises:
        UserError: the audit followed a weaker rule, or which model is meant is not clear.
    """
    if less := weaker(found.rule, policy.rule):
        raise UserError(
            f"The audit followed a weaker rule than the policy: {'; '.join(less)}.",
            "Audit again by the policy's rule: remnant gate TARGET UNLEARNED --policy ...",
        )
    chosen = _model(found.verdicts, model)
    own = [v for v in found.verdicts if v.model == chosen]
    groups = dict.fromkeys([*((v.corpus, v.seed) for v in own), *found.lost])
    return [_case(found, policy, chosen, group, form) for group in groups for form in policy.forms]


def _model(verdicts: Sequence[Verdict], wanted: str | None) -> str:
    known = list(dict.fromkeys(v.model for v in verdicts))
    if wanted is None and len(known) == 1:
        return known[0]
    if wanted in known:
        return str(wanted)
    raise UserError(
        f"The audit is of {', '.join(known)}." if wanted is None else f"No model is '{wanted}'.",
        f"Say which with --model: {', '.join(known)}.",
    )


def _case(found: Audited, policy: Policy, model: str, group: Group, form: str) -> Case:
    def here(row: Verdict | Evidence) -> bool:
        return (row.corpus, row.seed, row.model, row.form) == (*group, model, form)

    verdict = next(filter(here, found.verdicts), None)
    if verdict is None:
        return Case(*group, model, form, "not measured", "this form was not audited")
    if verdict.outcome != "gone":
        return Case(*group, model, form, verdict.outcome, verdict.reason)
    lacks = list(_lacking(list(filter(here, found.evidence)), policy))
    if lacks:
        return Case(*group, model, form, "not measured", "; ".join(lacks))
    return Case(*group, model, form, "gone", verdict.reason)


def _lacking(evidence: Sequence[Evidence], policy: Policy) -> Iterator[str]:
    """What speaks against believing a pass: no silent test of a kind, or a test that is not."""
    for kind in policy.needs:
        if not any(e.kind == kind and e.says == "silent" for e in evidence):
            said = next((f": {e.said}" for e in evidence if e.kind == kind), "")
            yield f"no test of {kind} had power{said}"
    for e in evidence:
        if e.says in ("tells", "undecided", "lost"):
            yield f"the evidence does not bear the verdict: {e.kind}: {e.said}"
