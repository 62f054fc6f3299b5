"""A signed statement against models, a policy and the clock: what does not hold, in words."""

from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, NamedTuple

from remnant.errors import UserError, some
from remnant.gate.policy import read_policy
from remnant.sign.files import differences, files_of, nearest
from remnant.sign.keys import Refused
from remnant.sign.statement import DEPLOYED, PREDICATE, STATEMENT, digest_of_policy


class Outcome(NamedTuple):
    """What was signed of one form."""

    form: str
    outcome: str
    reason: str


class Verified(NamedTuple):
    """What a statement that holds says: every outcome, and which signed model each folder is."""

    outcomes: list[Outcome]
    folders: dict[Path, str]
    absent: list[str]


def verified(
    statement: Mapping[str, Any], folders: Sequence[Path], policy: Path, now: datetime
) -> Verified:
    """Compare a statement that was signed with what is there.

    Raises:
        Refused: with everything that does not hold.
    """
    try:
        kinds, predicate = (statement["_type"], statement["predicateType"]), statement["predicate"]
        models = _models(statement["subject"])
        expires, promised = _end(predicate["expires"]), predicate["policy"]
        outcomes = [
            Outcome(str(row["form"]), str(row["outcome"]), str(row["reason"]))
            for row in predicate["outcomes"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise Refused("What was signed is no verdict of Remnant.") from error
    if kinds != (STATEMENT, PREDICATE) or not models or not outcomes:
        raise Refused("What was signed is no verdict of Remnant.")
    reasons = []
    if expires and now.date() > expires:
        reasons.append(f"The statement counted until {expires}.")
    covered = {row.form for row in outcomes}
    reasons += _policy_faults(policy, promised) or _not_said(policy, covered)
    named = {}
    for folder in folders:
        files = files_of(folder)
        form = named[folder] = nearest(files, models)
        if form.removesuffix(f" {DEPLOYED}") not in covered:
            reasons.append(f"{folder} is nearest to '{form}', of which nothing is promised.")
        if wrong := differences(files, models[form]):
            reasons.append(
                f"{folder} is no model that was signed; beside '{form}': {'; '.join(wrong)}."
            )
    if reasons:
        raise Refused(*reasons)
    return Verified(outcomes, named, [m for m in models if m not in named.values()])


def _end(given: object) -> date | None:
    """The last day on which a statement counts; ValueError of what is no day as ``sign`` writes
    it.
    """
    end = None if given is None else date.fromisoformat(str(given))
    if end and end.isoformat() != given:
        raise ValueError
    return end


def _not_said(policy: Path, covered: Collection[str]) -> list[str]:
    """The forms that a policy promises and of which nothing was signed."""
    open_ = [form for form in read_policy(policy).forms if form not in covered]
    return [f"Nothing was signed of what is promised: {some(open_)}."] if open_ else []


def _models(subject: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Form -> the files that were signed of it; ValueError where one name has two."""
    found: dict[str, dict[str, str]] = {}
    for entry in subject:
        form, _, name = entry["name"].partition("/")
        files = found.setdefault(form, {})
        if name in files:
            raise ValueError
        files[name] = entry["digest"]["sha256"]
    return found


def _policy_faults(path: Path, promised: Mapping[str, Any]) -> list[str]:
    """In what a policy is not the one that was signed."""
    try:
        if digest_of_policy(path) == promised["sha256"]:
            return []
        own, signed = read_policy(path).model_dump(mode="json"), promised["content"]
        pairs = [(f"rule.{n}", own["rule"][n], v) for n, v in signed["rule"].items()]
        pairs += [(n, own[n], v) for n, v in signed.items() if n != "rule"]
    except OSError as error:
        raise UserError(f"The policy {path} cannot be read ({error.strerror}).") from error
    except (UserError, KeyError, TypeError, AttributeError):
        return [f"{path} is not the policy that was signed: it cannot be read as one."]
    changed = [f"{n} is {mine} and was {theirs}" for n, mine, theirs in pairs if mine != theirs]
    return [
        f"{path} is not the policy that was signed: {'; '.join(changed) or 'its text was changed'}."
    ]
