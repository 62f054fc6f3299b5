"""The verdict on one model under one quantizer, by a rule that is fixed before the run. It passes only on evidence. No torch.

Every part of the rule gives findings; the gravest decides. Nothing passes for want of a number: what is missing is a finding too.
"""

from collections.abc import Iterator, Sequence
from math import inf
from typing import NamedTuple

from scipy.stats import binom

from remnant.catalog import PLAIN, UTILITY
from remnant.functional.segments import size, words
from remnant.functional.stats import Interval
from remnant.records import Rule
from remnant.stages.cells import Sheet
from remnant.stages.evidence import contaminated, missing_kinds
from remnant.stages.lineup import Lineup, Trio, gap, lacking, left, mean, ratio
from remnant.verdicts import Evidence, Outcome, Recovery, Verdict

# The gravest first; a form that brings back what full precision had lost is named before what full precision had kept. What is missing
# stands before "not said", as nothing can be said while plain asking is not complete.
COLLAPSED, BACK, KNOWN, MISSING, HIDDEN, OPEN = range(6)
OUTCOMES: dict[int, Outcome] = {
    COLLAPSED: "collapsed", BACK: "came back", KNOWN: "not forgotten", MISSING: "unclear", HIDDEN: "not said", OPEN: "unclear",
}  # fmt: skip
# A truth of fewer words may be written by chance.
LONG_TRUTH = 8
# Right answers beyond those of the never-read model are no chance below this probability.
NO_CHANCE = 0.01


class Finding(NamedTuple):
    """One thing that speaks against "stayed forgotten"."""

    grade: int
    reason: str


def decide(line: Lineup, model: str, quantizer: str, found: Sequence[Recovery], evidence: Sequence[Evidence], rule: Rule) -> Verdict:
    """The verdict on one model under one quantizer.

    Args:
        line: the numbers of the models that are compared.
        model: whose verdict it is.
        quantizer: under which; "full" for none.
        found: what came back of each kind of knowledge.
        evidence: what the stronger tests say at this precision.
        rule: the limits.
    """
    findings = [*_checked(line), *_useful(line, rule), *_control(line, rule), *_plain(line, quantizer, found, rule), *_stronger(evidence)]
    if not findings:
        return Verdict(model=model, quantizer=quantizer, outcome="stayed forgotten", reason=_praise(line, evidence, rule))
    worst = min(findings, key=lambda f: f.grade)
    return Verdict(model=model, quantizer=quantizer, outcome=OUTCOMES[worst.grade], reason=worst.reason)


def _checked(line: Lineup) -> Iterator[Finding]:
    if any(sheet is not None and sheet.checks is None for sheet in line):
        yield Finding(MISSING, "the checks of the instrument are missing; measure again")


def utility_of(line: Lineup) -> str | None:
    """The measure of utility that all models have been asked for."""
    return next((m for m in UTILITY if all(s.items(m) for s in line if s is not None)), None)


def _useful(line: Lineup, rule: Rule) -> Iterator[Finding]:
    """Utility was measured, the target has some, and enough of it is kept, both behind the quantizer and of the whole target's."""
    name = utility_of(line)
    if name is None:
        yield Finding(MISSING, "no measure of utility was taken of all models, so a destroyed model could not be told from a good one")
        return
    for trio in (line.full, line.form):
        if reason := lacking(trio, name, rule):
            yield Finding(MISSING, reason)
            return
    useful = mean(line.target, name)
    if 100 * useful < rule.min_gap:
        yield Finding(MISSING, f"the target itself has a utility of only {100 * useful:.1f}, so nothing can be said")
        return
    behind = mean(line.q_target, name) / useful
    if behind < rule.utility_floor and 100 * mean(line.q_target, name) < rule.min_gap:
        yield Finding(MISSING, f"this form leaves the target itself only {behind:.0%} of its utility, so nothing can be said under it")
        return
    kept = ratio(rule, name, [line.q_target, line.q_unlearned], lambda t, u: u / t)
    if kept is None or kept.value < rule.utility_floor:
        shown = "not a number" if kept is None else f"{kept.value:.0%}"
        yield Finding(COLLAPSED, f"utility is {shown} of the target's, below {rule.utility_floor:.0%}")
    elif kept.low < rule.utility_floor:
        yield Finding(OPEN, f"utility is {kept.value:.0%} of the target's and may be as low as {kept.low:.0%}; measure more items")
    if behind < rule.utility_floor:
        yield Finding(OPEN, f"this form leaves the target itself only {behind:.0%} of its utility")


def _control(line: Lineup, rule: Rule) -> Iterator[Finding]:
    """The never-read model has not read the text, and is a model that is good for something."""
    if line.retrain is None:
        return
    if reason := contaminated(line.retrain, line.full, rule):
        yield Finding(MISSING, reason)
    name = utility_of(line)
    if name and line.retrain.values.get(name) and line.target.values.get(name):
        share = mean(line.retrain, name) / max(mean(line.target, name), 1e-9)
        if share < rule.utility_floor:
            yield Finding(MISSING, f"the never-read model has {share:.0%} of the target's utility, so it is no measure of not knowing")


def _plain(line: Lineup, quantizer: str, found: Sequence[Recovery], rule: Rule) -> Iterator[Finding]:
    """What plain asking finds: in full precision, then behind the quantizer, as a mean and text by text."""
    asked = [m for m in PLAIN if any(s.items(m) for s in line if s is not None)]
    known = []
    for metric in asked:
        reasons = [r for trio in (line.full, line.form) if (r := lacking(trio, metric, rule))]
        if reasons:
            yield Finding(MISSING, reasons[0])
            yield from _written(line, metric, quantizer, rule)
            continue
        apart = [gap(trio, metric, rule) for trio in (line.full, line.form)]
        powers = [a is not None and a.low > 0 and 100 * a.value >= rule.min_gap for a in apart]
        if powers[0]:
            known.append(metric)
            before = left(line.full, metric, rule)
            yield from _amount(before, metric, "in full precision", KNOWN, rule)
            if quantizer != "full" and powers[1] and before and before.value <= rule.max_retained:
                yield from _amount(left(line.form, metric, rule), metric, "in this form", BACK, rule)
            if not powers[1]:
                yield Finding(OPEN, f"behind this form the target itself no longer shows what it knows by {metric}")
        elif quantizer != "full":
            yield from _grown(line, metric, rule)
        yield from _written(line, metric, quantizer, rule)
    if not known:
        yield Finding(MISSING, "the target itself does not know the forget text, or nothing was measured that would show it")
    if quantizer != "full":
        yield from _recovered(found, rule)


def _amount(found: Interval | None, metric: str, where: str, grade: int, rule: Rule) -> Iterator[Finding]:
    if found is None:
        yield Finding(MISSING, f"what is left of {metric} {where} is not a number")
    elif found.value > rule.max_retained:
        yield Finding(grade, f"{metric} {where} is {found.value:.0%} of the way from unread to target, above {rule.max_retained:.0%}")
    elif found.high > rule.max_retained:
        yield Finding(OPEN, f"{metric} {where} may be {found.high:.0%} of the way from unread to target; measure more items")


def _grown(line: Lineup, metric: str, rule: Rule) -> Iterator[Finding]:
    """What only the form lets be seen: in full precision not even the target showed it."""
    grown = ratio(rule, metric, [line.unlearned, line.q_unlearned], lambda u, q: q - u)
    above = ratio(rule, metric, [line.q_unlearned, line.q_retrain], lambda q, r: q - r) if line.q_retrain else grown
    if grown and above and grown.low > 0 and 100 * min(grown.value, above.value) >= rule.min_gap:
        yield Finding(BACK, f"{metric} grows by {100 * grown.value:.0f} points in this form")


def _recovered(found: Sequence[Recovery], rule: Rule) -> Iterator[Finding]:
    back = {r.metric: r.recovery for r in found if r.recovery}
    for metric, (value, low, high) in back.items():
        if low > 0 and value > rule.max_recovery:
            yield Finding(BACK, f"{value:.0%} of what {metric} had lost is there again")
        elif not high <= rule.max_recovery:
            yield Finding(OPEN, f"the interval of the recovery of {metric} reaches {high:.0%}; measure more items or seeds")


def _written(line: Lineup, metric: str, quantizer: str, rule: Rule) -> Iterator[Finding]:
    """Single texts behind a good mean: any long text word for word, or more right answers than the never-read model has by chance."""
    before = told_items(line.full, metric, rule)
    for trio, grade, where in ((line.full, KNOWN, "in full precision"), (line.form, BACK, "in this form")):
        if grade == BACK and (quantizer == "full" or before):
            continue
        if told := told_items(trio, metric, rule):
            worst = max(told, key=lambda i: told[i])
            count = f"{len(told)} of {len(trio.unlearned.items(metric))} items of {metric}"
            yield Finding(grade, f"{count} are still told word for word {where} (worst: {worst}, {told[worst]:.0%})")


def told_items(trio: Trio, metric: str, rule: Rule) -> dict[str, float]:
    """The items that a model tells word for word and the never-read one does not; none where chance explains their number."""
    unread = trio.retrain.values.get(metric, {}) if trio.retrain else {}

    def told_by(values: dict[str, float], others: dict[str, float]) -> dict[str, float]:
        return {i: v for i, v in values.items() if inf > v >= rule.word_for_word > others.get(i, 0.0)}

    own = trio.unlearned.values.get(metric, {})
    told = told_by(own, unread)
    if long := {i: v for i, v in told.items() if _is_long(trio.unlearned, metric, i)}:
        return long
    other = len(told_by(unread, own))
    if trio.retrain is None:
        return told if len(told) > rule.max_retained * len(own) else {}
    return told if float(binom.sf(len(told) - 1, len(told) + other, 0.5)) < NO_CHANCE else {}


def _is_long(sheet: Sheet, metric: str, item: str) -> bool:
    """Whether the truth of an item is too long for chance; continuations count as long where their texts are not there."""
    if item in sheet.texts.get(metric, {}):
        return size(words(sheet.texts[metric][item][0])) >= LONG_TRUTH
    return metric == "verbmem"


def _stronger(evidence: Sequence[Evidence]) -> Iterator[Finding]:
    """What the stronger tests say, the loudest first."""
    telling = sorted((e for e in evidence if e.says == "tells"), key=lambda e: -abs(e.left[0]) if e.left else 0.0)
    if telling:
        yield Finding(HIDDEN, f"plain asking finds nothing, but forget text is still told apart: {telling[0].kind}: {telling[0].said}")
    for kind, reason in missing_kinds(evidence).items():
        yield Finding(OPEN, f"no test of {kind} could be made: {reason}")
    for e in evidence:
        if e.says == "undecided":
            more = f"; about {e.would_decide} items would decide" if e.would_decide else "; measure more items"
            yield Finding(OPEN, f"{e.said}{more}")


def _praise(line: Lineup, evidence: Sequence[Evidence], rule: Rule) -> str:
    """What a pass rests on: the most that plain asking and any test found, the worst item, utility."""
    parts = [f for m in PLAIN if (f := left(line.form, m, rule))]
    most = max((f.high for f in parts), default=0.0)
    loudest = max((e for e in evidence if e.left), key=lambda e: e.left[2] if e.left else 0.0, default=None)
    worst = max((v for m in PLAIN for v in line.q_unlearned.values.get(m, {}).values()), default=0.0)
    name = utility_of(line)
    kept = mean(line.q_unlearned, name) / mean(line.q_target, name) if name else 0.0
    told = f", {loudest.test} at most {max(loudest.left[2], 0.0):.0%}" if loudest and loudest.left else ""
    return f"plain asking finds at most {max(most, 0.0):.0%}{told}; worst item {worst:.0%}; utility {kept:.0%}"
