"""The verdict on one model in one form, by a rule that is fixed before the run.

It passes only on evidence. No torch.

Every part of the rule gives findings; the gravest decides. Nothing passes for want of a number:
what is missing is a finding too.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from math import inf
from typing import NamedTuple

import numpy as np
from scipy.stats import binom

from remnant.corpus import beside, is_beside, is_text, published, set_of
from remnant.functional.disguise import tells_in_disguise
from remnant.functional.segments import size, words
from remnant.functional.stats import Interval
from remnant.instrument import are_complete
from remnant.methods import writes
from remnant.metrics import BEGUN, SAMPLED, Column
from remnant.records import Evidence, Outcome, Recovery, Rule, Variant, Verdict
from remnant.stages.cells import Sheet, asked, table_of
from remnant.stages.evidence import ANSWERS, NOT_YET, contaminated, missing_kinds
from remnant.stages.lineup import Lineup, Trio, above_both, lacking, left, mean, ratio, shows, way
from remnant.transforms.table import teaches

# The gravest first; a form that brings back what full precision had lost is named before what full
# precision had kept. What is missing of plain asking stands before "hidden", as nothing can be said
# while that is not complete; what is missing of the stronger tests stands behind it.
BROKEN, BACK, KNOWN, MISSING, HIDDEN, UNTESTED, OPEN = range(7)
OUTCOMES: dict[int, Outcome] = {
    BROKEN: "broken", BACK: "came back", KNOWN: "known", MISSING: "not measured",
    HIDDEN: "hidden", UNTESTED: "not measured", OPEN: "unclear",
}  # fmt: skip
# A truth of fewer words may be written by chance.
LONG_TRUTH = 8
# The overlap from which an answer is half known, and no longer looked at for a disguise.
SEEN = 0.5
# An item counts only where two models differ by so much of it, as ROUGE.
MARGIN = 0.2
# So many items of a hundred may be known by more than chance before they are named.
FEW = 0.05
# Fewer resamples give intervals of no use.
FEWEST_DRAWS = 200
# Right answers beyond those of the never-read model are no chance below this probability.
NO_CHANCE = 0.01


# What no further test changes: only of these is one proof enough.
DECIDED: tuple[Outcome, ...] = ("broken", "came back", "known", "hidden")


class Finding(NamedTuple):
    """One thing that speaks against "gone"."""

    grade: int
    reason: str


def decide(
    line: Lineup,
    variant: Variant,
    found: Sequence[Recovery],
    evidence: Sequence[Evidence],
    rule: Rule,
) -> Verdict:
    """The verdict on one variant of a model.

    Args:
        line: the numbers of the models that are compared.
        variant: whose verdict it is.
        found: what came back of each kind of knowledge.
        evidence: what the stronger tests say at this precision.
        rule: the limits.
    """
    findings = [
        *_checked(line, rule),
        *_useful(line, rule),
        *_control(line, variant, rule),
        *_plain(line, variant, found, evidence, rule),
        *_stronger(line, evidence, rule),
    ]
    if not findings:
        reason = _praise(line, evidence, rule)
        return Verdict(**dict(variant), outcome="gone", reason=reason)
    worst = min(findings, key=lambda f: f.grade)
    return Verdict(**dict(variant), outcome=OUTCOMES[worst.grade], reason=worst.reason)


def _checked(line: Lineup, rule: Rule) -> Iterator[Finding]:
    if any(sheet is not None and not are_complete(sheet.checks) for sheet in line):
        yield Finding(MISSING, "the checks of the instrument are missing; measure again")
    if rule.resamples < FEWEST_DRAWS:
        yield Finding(
            MISSING,
            f"{rule.resamples} resamples give no interval; at least {FEWEST_DRAWS} are needed",
        )


def _useful(line: Lineup, rule: Rule) -> Iterator[Finding]:
    """Utility was measured, the target has some, and enough of it is kept, by every measure of
    it.
    """
    columns = useful_by(line, rule)
    if not columns:
        yield Finding(
            MISSING,
            (
                "no measure of utility was taken, so a destroyed model could not be told from a "
                "good one"
            ),
        )
    for column in columns:
        yield from _kept(line, column, rule)


def useful_by(line: Lineup, rule: Rule) -> list[Column]:
    """The measures of utility that count: of several of the same answers the published one, or the
    one by which the target shows more, where that is ``min_gap`` points more.

    A target that answers in whole sentences must not seem useless, nor one that is as useful and
    says more or less around its answers broken.
    """
    every = asked(line, "utility")
    found = []
    for column in (c for c in every if not is_beside(c)):
        others = [c for c in every if c.metric in beside([column.metric])]
        there = [c for c in others if line.target.values.get(c)]
        best = max(there, key=partial(mean, line.target), default=column)
        shown = mean(line.target, column) if line.target.values.get(column) else 0.0
        more = best is not column and 100 * (mean(line.target, best) - shown) >= rule.min_gap
        found.append(best if more else column)
    return found


def _kept(line: Lineup, name: Column, rule: Rule) -> Iterator[Finding]:
    """Enough of one measure of utility is kept, both in its form and of the whole
    target's.
    """
    if reason := next((r for trio in line.trios if (r := lacking(trio, name, rule))), ""):
        yield Finding(MISSING, reason)
        return
    useful = mean(line.target, name)
    if 100 * useful < rule.min_gap or useful <= 0:
        yield Finding(
            MISSING,
            f"the target itself has a utility of only {100 * useful:.1f}, so nothing can be said",
        )
        return
    behind, whole = mean(line.q_target, name) / useful, mean(line.q_unlearned, name) / useful
    if behind < rule.utility_floor and 100 * mean(line.q_target, name) < rule.min_gap:
        yield Finding(
            MISSING,
            (
                f"this form leaves the target itself only {behind:.0%} of its utility, so nothing "
                "can be said under it"
            ),
        )
        return
    kept = ratio(rule, name, [line.q_target, line.q_unlearned], lambda t, u: u / t)
    if kept is None or (kept.value < rule.utility_floor and kept.high < 1):
        shown = "not a number" if kept is None else f"{kept.value:.0%}"
        yield Finding(BROKEN, f"utility is {shown} of the target's, below {rule.utility_floor:.0%}")
    elif kept.low < rule.utility_floor:
        yield Finding(
            OPEN,
            (
                f"utility is {kept.value:.0%} of the target's and may be as low as "
                f"{kept.low:.0%}; measure more items"
            ),
        )
    elif min(behind, whole) < rule.utility_floor:
        yield Finding(
            OPEN,
            (
                f"utility in this form is {whole:.0%} of the whole target's, and the target keeps "
                f"{behind:.0%} itself"
            ),
        )


def _control(line: Lineup, variant: Variant, rule: Rule) -> Iterator[Finding]:
    """The never-read model has not read the text, and is a model that is good for something.

    In full precision and in the form; of a form that teaches the text, only in full precision.
    """
    if (line.retrain is None) != (line.q_retrain is None):
        yield Finding(MISSING, "the never-read model was not measured in full precision")
    for trio in line.trios:
        own = trio.retrain
        if own is None:
            continue
        taught = trio is not line.trios[0] and teaches(variant.steps)
        if not taught and (reason := contaminated(own, trio, rule)):
            yield Finding(MISSING, reason)
        for name in useful_by(line, rule):
            if own.values.get(name) and trio.target.values.get(name):
                share = mean(own, name) / max(mean(trio.target, name), 1e-9)
                if share < rule.utility_floor:
                    yield Finding(
                        MISSING,
                        (
                            f"the never-read model has {share:.0%} of the target's utility, so it "
                            "is no measure of not knowing"
                        ),
                    )


def _plain(
    line: Lineup,
    variant: Variant,
    found: Sequence[Recovery],
    evidence: Sequence[Evidence],
    rule: Rule,
) -> Iterator[Finding]:
    """What plain asking finds: in full precision, then in the form, as a mean and text by
    text.
    """
    known: list[Column] = []
    for metric in asked(line, "knowledge"):
        # Answers that end at once are no measure of what is known, unless the habit itself is told
        # below.
        said = f" of {published(metric)}"
        told = any(
            e.says == "tells" and e.kind == ANSWERS and e.test.endswith(said) for e in evidence
        )
        but = "answers" if told else ""
        reasons = [r for trio in line.trios if (r := lacking(trio, metric, rule, but))]
        if reasons:
            yield Finding(MISSING, reasons[0])
            yield from _written(line, metric, variant, rule)
            continue
        powers = [shows(trio, metric, rule) for trio in line.trios]
        if powers[0]:
            known.append(metric)
            before = left(line.full, metric, rule)
            yield from _amount(before, metric, _place(line.full, "in full precision"), KNOWN, rule)
            if not variant.in_full and powers[-1] and before and before.value <= rule.max_retained:
                yield from _amount(
                    left(line.form, metric, rule),
                    metric,
                    _place(line.form, "in this form"),
                    BACK,
                    rule,
                )
            if not powers[-1]:
                yield Finding(UNTESTED, f"{_no_power(variant)} by {metric}")
        else:
            if more := above_both(line.full, metric, rule):
                yield Finding(
                    KNOWN,
                    (
                        f"{metric} is {100 * more.value:.0f} points above both the target and a "
                        "model that never read the text"
                    ),
                )
            if not variant.in_full:
                yield from _grown(line, metric, rule)
        yield from _written(line, metric, variant, rule)
    if not known:
        yield Finding(
            MISSING,
            (
                "the target itself does not know the forget text, or nothing was measured that "
                "would show it"
            ),
        )
    if not variant.in_full:
        taught = line.retrain is not None and teaches(variant.steps)
        yield from _excess(line, known, rule) if taught else _recovered(line, found, rule)


def _no_power(variant: Variant) -> str:
    """Why the form tells nothing of what is known."""
    if teaches(variant.steps):
        return "in this form a model that never read the text shows as much as the target"
    return "behind this form the target itself no longer shows what it knows"


def _excess(line: Lineup, known: Sequence[Column], rule: Rule) -> Iterator[Finding]:
    """What a form that teaches any model brings back beyond what it teaches a never-read one."""
    for metric in known:
        found = left(line.form, metric, rule)
        if found and found.low > 0 and found.value > rule.max_recovery:
            yield Finding(
                BACK,
                f"{metric} in this form is {found.value:.0%} of the way from a never-read model "
                "that was taught the same to the target",
            )
        elif found is None or not found.high <= rule.max_recovery:
            shown = "is not a number" if found is None else f"may be {found.high:.0%}"
            yield Finding(
                OPEN,
                f"what {metric} shows in this form beyond a never-read model that was taught the "
                f"same {shown}; measure more items",
            )


def _amount(
    found: Interval | None, metric: Column, where: tuple[str, str], grade: int, rule: Rule
) -> Iterator[Finding]:
    """Whether plain asking finds too much; ``where``: in which form, and of what it is a share."""
    form, way = where
    if found is None:
        yield Finding(MISSING, f"what is left of {metric} {form} is not a number")
    elif found.value > rule.max_retained and found.low > rule.max_retained / 2:
        yield Finding(
            grade,
            (f"{metric} {form} is {found.value:.0%} {way}, above {rule.max_retained:.0%}"),
        )
    elif found.high > rule.max_retained:
        yield Finding(
            OPEN,
            (f"{metric} {form} may be {found.high:.0%} {way}; measure more items"),
        )


def _place(trio: Trio, form: str) -> tuple[str, str]:
    """In which form something is found, and of what it is a share."""
    return form, way(trio)


def _grown(line: Lineup, metric: Column, rule: Rule) -> Iterator[Finding]:
    """What only the form lets be seen: in full precision not even the target showed it."""
    grown = ratio(rule, metric, [line.unlearned, line.q_unlearned], lambda u, q: q - u)
    above = (
        ratio(rule, metric, [line.q_unlearned, line.q_retrain], lambda q, r: q - r)
        if line.q_retrain
        else grown
    )
    if grown and above and grown.low > 0 and 100 * min(grown.value, above.value) >= rule.min_gap:
        yield Finding(BACK, f"{metric} grows by {100 * grown.value:.0f} points in this form")


def _recovered(line: Lineup, found: Sequence[Recovery], rule: Rule) -> Iterator[Finding]:
    columns = {str(c): c for c in asked(line, "knowledge")}
    for recovery in (r for r in found if r.recovery):
        assert recovery.recovery
        (value, low, high), metric = recovery.recovery, columns[recovery.metric]
        in_form = left(line.form, metric, rule) if line.q_retrain else None
        # Where the never-read model rises in this form as well, nothing of the text is back.
        rises_alone = in_form is None or in_form.value > rule.max_recovery
        if low > 0 and value > rule.max_recovery and rises_alone:
            yield Finding(BACK, f"{value:.0%} of what {metric} had lost is there again")
        elif not high <= rule.max_recovery:
            yield Finding(
                OPEN,
                (
                    f"the interval of the recovery of {metric} reaches {high:.0%}; measure more "
                    "items or seeds"
                ),
            )


def _written(line: Lineup, metric: Column, variant: Variant, rule: Rule) -> Iterator[Finding]:
    """Single texts behind a good mean, in full precision and what only the form tells."""
    before = bool(told_items(line.full, metric, rule)) or half_known(line.full, metric, rule) > 0
    for trio, grade, where in (
        (line.full, KNOWN, "in full precision"),
        (line.form, BACK, "in this form"),
    ):
        if grade == BACK and (variant.in_full or before):
            continue
        if told := told_items(trio, metric, rule):
            worst = max(told, key=lambda i: told[i])
            count = f"{len(told)} of {len(trio.unlearned.items(metric))} items of {metric}"
            yield Finding(
                grade,
                f"{count} are still told word for word {where} (worst: {worst}, {told[worst]:.0%})",
            )
        elif known := half_known(trio, metric, rule):
            count = f"{known} of {len(trio.unlearned.items(metric))} items of {metric}"
            yield Finding(
                grade, f"{count} are more than half known {where}, which no chance explains"
            )


def told_items(trio: Trio, metric: Column, rule: Rule) -> dict[str, float]:
    """The items that a model tells word for word and the never-read one does not.

    None where chance explains their number.

    A truth that stands whole inside a longer answer is told, whatever ROUGE makes of the rest. Of
    what is not written as text nothing is told word for word.
    """
    if not is_text(metric):
        return {}
    own, unread = (
        _told_by(trio.unlearned, metric, rule),
        _told_by(trio.retrain, metric, rule) if trio.retrain else {},
    )
    control = trio.retrain.values.get(metric, {}) if trio.retrain else {}
    told = {i: v for i, v in own.items() if i not in unread and v >= control.get(i, 0.0) + MARGIN}
    if long := {i: v for i, v in told.items() if _is_long(trio.unlearned, metric, i)}:
        return long
    if trio.retrain is None:
        return told if len(told) > rule.max_retained * len(trio.unlearned.items(metric)) else {}
    return told if _no_chance(len(told), len(unread.keys() - own.keys())) else {}


def half_known(trio: Trio, metric: Column, rule: Rule) -> int:
    """How many items lie above the middle between never-read model and target, if that is more than
    chance and a few; else 0.

    Chance is told by the never-read model, of which as many would lie above the middle between the
    judged model and the target.
    """
    if trio.retrain is None:
        return 0
    target, own, unread = np.array(table_of([s.values.get(metric, {}) for s in trio.sheets]))
    if not (np.isfinite(target).all() and np.isfinite(own).all() and np.isfinite(unread).all()):
        return 0
    above = int(((target - unread >= MARGIN) & (own > (target + unread) / 2)).sum())
    by_chance = int(((target - own >= MARGIN) & (unread > (target + own) / 2)).sum())
    return above if _no_chance(above, by_chance) and above - by_chance > FEW * len(own) else 0


def _no_chance(count: int, other: int) -> bool:
    """Whether so many items of one kind against so many of the other are improbable if both are as
    likely. One-sided sign test.
    """
    return float(binom.sf(count - 1, count + other, 0.5)) < NO_CHANCE


def _told_by(sheet: Sheet | None, metric: Column, rule: Rule) -> dict[str, float]:
    """The items that a model tells, by ROUGE or as a run of words inside its answer."""
    if sheet is None:
        return {}
    texts = sheet.texts.get(set_of(metric), {}) if writes(metric.metric) else {}
    told = {i: v for i, v in sheet.values.get(metric, {}).items() if inf > v >= rule.word_for_word}
    whole = {
        i: 1.0
        for i, value in sheet.values.get(metric, {}).items()
        if i in texts and _stands_in(*texts[i], seen=value >= SEEN)
    }
    return whole | told


def _stands_in(truth: str, said: str, seen: bool) -> bool:
    """Whether a truth stands whole in an answer; a long one also in a plain disguise, unless the
    overlap of words has seen it already.
    """
    own, other = words(truth), words(said)
    if own and any(other[i : i + len(own)] == own for i in range(len(other) - len(own) + 1)):
        return True
    return not seen and size(own) >= LONG_TRUTH and tells_in_disguise(truth, said)


def _is_long(sheet: Sheet, metric: Column, item: str) -> bool:
    """Whether the truth of an item is too long for chance; one that is not known counts as long."""
    texts = sheet.texts.get(set_of(metric), {})
    return item not in texts or size(words(texts[item][0])) >= LONG_TRUTH


def _stronger(line: Lineup, evidence: Sequence[Evidence], rule: Rule) -> Iterator[Finding]:
    """What the stronger tests say, the loudest first."""
    telling = sorted(
        (e for e in evidence if e.says == "tells"), key=lambda e: -abs(e.left[0]) if e.left else 0.0
    )
    if telling:
        yield Finding(
            HIDDEN,
            (
                "plain asking finds nothing, but forget text is still told apart: "
                f"{telling[0].kind}: {telling[0].said}"
            ),
        )
    for kind, reason in missing_kinds(evidence, rule.access).items():
        yield Finding(UNTESTED, f"no test of {kind} could be made: {reason}")
    for e in evidence:
        if e.said == NOT_YET:
            yield Finding(UNTESTED, f"{e.kind}: {e.test} was {NOT_YET}")
        elif e.says == "undecided":
            more = (
                f"; about {e.would_decide} items would decide"
                if e.would_decide
                else "; measure more items"
            )
            yield Finding(OPEN, f"{e.said}{more}")
        elif e.says == "lost":
            yield Finding(UNTESTED, f"{e.kind}: {e.said}")
        elif e.kind in (BEGUN, SAMPLED) and e.says in ("silent", "undecided"):
            test = Column(e.test)
            if told := told_items(line.form, test, rule):
                yield Finding(
                    HIDDEN,
                    (
                        f"forget text is still told: {e.kind}: {len(told)} of {e.items} items of "
                        f"{e.test} word for word"
                    ),
                )
            elif known := half_known(line.form, test, rule):
                count = f"{known} of {e.items} items of {e.test}"
                yield Finding(
                    HIDDEN, f"forget text is still told: {e.kind}: {count} are more than half known"
                )


def _praise(line: Lineup, evidence: Sequence[Evidence], rule: Rule) -> str:
    """What a pass rests on: the most that plain asking and any test found, the worst item,
    utility.
    """
    plain = asked(line, "knowledge")
    parts = [f for m in plain if (f := left(line.form, m, rule))]
    most = max((f.high for f in parts), default=0.0)
    loudest = max(
        (e for e in evidence if e.left), key=lambda e: e.left[2] if e.left else 0.0, default=None
    )
    worst = max(
        (v for m in plain if is_text(m) for v in line.q_unlearned.values.get(m, {}).values()),
        default=0.0,
    )
    kept = min(
        mean(line.q_unlearned, name) / mean(line.q_target, name) for name in useful_by(line, rule)
    )
    told = (
        f", {loudest.test} at most {max(loudest.left[2], 0.0):.0%}"
        if loudest and loudest.left
        else ""
    )
    alone = "by what it writes alone, " if rule.access == "text" else ""
    return (
        f"{alone}plain asking finds at most {max(most, 0.0):.0%}{told}; worst item {worst:.0%}; "
        f"utility {kept:.0%}"
    )
