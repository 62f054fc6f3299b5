"""What an audit makes of the tests on weights: their rows beside the others, when they say nothing,
and how soon a curve of relearning is half-way. No torch.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from remnant.attacks import ATTACKS, LENSES, STEPS, UNCHANGED, role_of
from remnant.functional.curves import steps_until
from remnant.metrics import RELEARNED, WEIGHT_KINDS, Column
from remnant.records import FULL, Rule
from remnant.stages.cells import Sheet, read_rows
from remnant.stages.lineup import Trio, aligned, mean

# A block counts that shows half of what is told at the end. The lab's models of two blocks show
# about a fifth; with that, never-read models lay at -0.28 to 0.14 and one of 20 was unclear.
SEEN = 0.5
NO_CONTROL = (
    "a test on weights is held against a model that never read the text, and none was given"
)


def with_attacks(
    sheets: Mapping[tuple[str, str], Sheet], inputs: Mapping[str, Path]
) -> dict[tuple[str, str], Sheet]:
    """The sheets of measured models, those in full precision with the rows of tests on their
    weights, where these were made.
    """
    found = dict(sheets)
    for model, form in sheets:
        # One folder for all tests, or one for each look.
        named = role_of(model)
        own_folders = [f for role, f in inputs.items() if role.split(", look ")[0] == named]
        for folder in own_folders if form == FULL else ():
            own = found[model, form]
            made = read_rows(folder / "rows.jsonl", dict.fromkeys(ATTACKS, "test"))
            found[model, form] = own._replace(
                values=own.values | made.values,
                unscorable=own.unscorable | made.unscorable,
                roles={**own.roles, **made.roles},
            )
    return found


def no_model(whole: Trio, column: Column, rule: Rule) -> str:
    """Why a test says nothing; empty where it may say something.

    The never-read model does not bear what is done to weights (relearning must bear much), or a
    block shows little of what target and never-read model differ by: then two never-read models
    differ by as much.
    """
    assert whole.retrain is not None
    before = Column(UNCHANGED)
    if ATTACKS[column.metric].kind == RELEARNED or not whole.retrain.values.get(before):
        return ""
    if column.metric in LENSES:
        seen = _apart(whole, column) / max(_apart(whole, before), 1e-9)
        return f"{column} shows only {seen:.0%} of what is told at the end" if seen < SEEN else ""
    kept = mean(whole.retrain, column) / max(mean(whole.retrain, before), 1e-9)
    if kept >= rule.utility_floor:
        return ""
    return (
        f"{column} leaves a never-read model {kept:.0%} of the tokens that it had right, so it is "
        "no measure of not knowing"
    )


def broken(whole: Trio, column: Column, rule: Rule) -> str:
    """Why a test says nothing of the judged model: it breaks that one, and not the never-read one.
    Empty where it does not.

    The same function can be written in weights that bear nothing, and a broken model tells no text.
    Broken is what lies as far below the never-read model as it may not lie above it, and has lost
    more than usefulness allows of what it had right; an unlearned model may be below before.
    """
    assert whole.retrain is not None
    if ATTACKS[column.metric].kind not in WEIGHT_KINDS:
        return ""
    for point in dict.fromkeys((*map(Column, ATTACKS[column.metric].behind), column)):
        if not all(sheet.values.get(point) for sheet in whole.sheets):
            continue
        target, own, unread = (float(v.mean()) for v in aligned(whole.sheets, point))
        kept, usual = (_kept(sheet, point) for sheet in (whole.unlearned, whole.retrain))
        low = own < unread - rule.max_told * max(target - unread, 0.0)
        if low and kept < rule.utility_floor * min(1.0, usual):
            return (
                f"{point} leaves this model {kept:.0%} of the tokens that it had right and a "
                f"never-read model {usual:.0%}: it breaks this one, which says nothing of what it "
                "knew"
            )
    return ""


def _kept(sheet: Sheet, column: Column) -> float:
    """The share of what a model had right of some passages that it has right behind a test."""
    before, now = sheet.values.get(Column(UNCHANGED), {}), sheet.values[column]
    shared = before.keys() & now.keys()
    had = sum(before[item] for item in shared)
    return sum(now[item] for item in shared) / had if had else 1.0


def _apart(whole: Trio, column: Column) -> float:
    """By how much the target is above the never-read model, where both have the column."""
    sheets = [whole.target, whole.retrain]
    target, unread = (mean(s, column) if s and s.values.get(column) else 0.0 for s in sheets)
    return target - unread


def halfway(whole: Trio, column: Column) -> str:
    """After how many steps half of what the target knows beyond a never-read model is back, beside
    how many that one needs; empty of what is no curve.
    """
    behind = ATTACKS[column.metric].behind
    points = [Column(name) for name in (UNCHANGED, *behind)]
    sheets = whole.sheets
    if len(behind) < 2 or not all(s.values.get(p) for s in sheets for p in points):
        return ""
    curves = np.array([_means(sheets, p) for p in points])
    target, own, unread = curves.T
    level = (target[0] + unread[0]) / 2
    steps = (0, *STEPS)
    needed, usual = steps_until(steps, list(own), level), steps_until(steps, list(unread), level)
    if not needed:
        return "; half of what the target knows is there before any step"
    if math.isinf(needed):
        return f"; half of what the target knows is not back within {STEPS[-1]} steps"
    if math.isinf(usual):
        beside = f"a never-read model does not get there in {STEPS[-1]}"
    else:
        beside = f"{needed / max(usual, 1):.2f} of what a never-read model needs"
    return f"; half of what the target knows is there after {needed:.0f} steps ({beside})"


def _means(sheets: Sequence[Sheet], column: Column) -> list[float]:
    return [float(values.mean()) for values in aligned(sheets, column)]
