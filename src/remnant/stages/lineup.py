"""Who is compared with whom: target, unlearned and never-read model in full precision and in one
other form. No torch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from remnant.corpus import METRICS
from remnant.functional.stats import Interval, bootstrap_ratio, ratio_draws
from remnant.metrics import Column
from remnant.records import FULL, Rule, Variant
from remnant.stages.cells import Sheet, table_of

Array = NDArray[np.float64]

FROM_UNREAD = "of the way from unread to target"


class Trio(NamedTuple):
    """The three models at one precision; without a never-read model its place is empty."""

    target: Sheet
    unlearned: Sheet
    retrain: Sheet | None

    @property
    def sheets(self) -> list[Sheet]:
        """Those that are there."""
        return [s for s in self if s is not None]


class Lineup(NamedTuple):
    """The sheets that one comparison needs: target, unlearned, retrain in full precision, and the
    same three in the form of the variant that is judged.
    """

    target: Sheet
    unlearned: Sheet
    retrain: Sheet | None
    q_target: Sheet
    q_unlearned: Sheet
    q_retrain: Sheet | None

    @classmethod
    def of(
        cls,
        sheets: Mapping[tuple[str, str], Sheet],
        variant: Variant,
    ) -> "Lineup | None":
        """Look the six up, by model and form.

        None where the target or the model itself is missing.
        """
        models = ("target", variant.model, "retrain")
        plain = [sheets.get((model, FULL)) for model in models]
        behind = [sheets.get((model, variant.form)) for model in models]
        if not (plain[0] and plain[1] and behind[0] and behind[1]):
            return None
        # A form in which the never-read model was not measured is held against it in full
        # precision, where it knows no more.
        return cls(plain[0], plain[1], plain[2], behind[0], behind[1], behind[2] or plain[2])

    @property
    def full(self) -> Trio:
        """The three in full precision."""
        return Trio(self.target, self.unlearned, self.retrain)

    @property
    def form(self) -> Trio:
        """The three in the form that is judged."""
        return Trio(self.q_target, self.q_unlearned, self.q_retrain)

    @property
    def trios(self) -> list[Trio]:
        """Full precision, then the form; one where the form is full precision itself."""
        same = all(one is other for one, other in zip(self.full, self.form, strict=True))
        return [self.full] if same else [self.full, self.form]


def way(trio: Trio) -> str:
    """Of what a share is, in words: without a never-read model it is counted from nothing."""
    return FROM_UNREAD if trio.retrain else "of what the target knows"


def aligned(sheets: Sequence[Sheet], column: Column) -> tuple[Array, ...]:
    """One column of several sheets over the items that all of them have, less what guessing
    scores.
    """
    tables = table_of([s.values.get(column, {}) for s in sheets])
    return tuple(np.array(t, dtype=np.float64) - chance_of(column) for t in tables)


def chance_of(column: Column) -> float:
    """What guessing scores, 0 to 1."""
    return METRICS[column.metric].chance if column.metric in METRICS else 0.0


def ratio(
    rule: Rule, column: Column, sheets: list[Sheet | None], of: Callable[..., Array]
) -> Interval | None:
    """A function of the means of one metric of several models, over the items that all have.

    None where one has none.
    """
    if any(s is None for s in sheets):
        return None
    return bootstrap_ratio(
        aligned([s for s in sheets if s is not None], column), of, rule.resamples, rule.seed
    )


def left(trio: Trio, column: Column, rule: Rule) -> Interval | None:
    """How much is left: 1 at the target, 0 at the model that never read the text (at no knowledge,
    where there is none).
    """
    return ratio(rule, column, list(trio.sheets), _left_of(trio))


def left_draws(trio: Trio, column: Column, rule: Rule) -> Array:
    """[1 + resamples] what ``left`` is made of."""
    return ratio_draws(aligned(trio.sheets, column), _left_of(trio), rule.resamples, rule.seed)


def _left_of(trio: Trio) -> Callable[..., Array]:
    if trio.retrain is None:
        return lambda t, u: u / t
    return lambda t, u, r: (u - r) / (t - r)


def gap(trio: Trio, column: Column, rule: Rule) -> Interval | None:
    """By how much the target is above the model that never read the text (above nothing), as a
    share.
    """
    if trio.retrain is None:
        return ratio(rule, column, [trio.target], lambda t: t)
    return ratio(rule, column, [trio.target, trio.retrain], lambda t, r: t - r)


def shows(trio: Trio, column: Column, rule: Rule) -> bool:
    """Whether the target is certainly above the model that never read the text, and by more than a
    trifle; else the column says nothing of what is left.
    """
    apart = gap(trio, column, rule)
    return apart is not None and apart.low > 0 and 100 * apart.value >= rule.min_gap


def above_both(trio: Trio, column: Column, rule: Rule) -> Interval | None:
    """By how much the judged model is above both others, as a share, where that is certain and no
    trifle.
    """
    others = [s for s in (trio.target, trio.retrain) if s is not None]
    found = [ratio(rule, column, [trio.unlearned, other], lambda u, o: u - o) for other in others]
    if any(f is None or f.low <= 0 or 100 * f.value < rule.min_gap for f in found):
        return None
    return min((f for f in found if f), key=lambda f: f.value)


def lacking(trio: Trio, column: Column, rule: Rule, but: str = "") -> str:
    """Why a metric of three models is not to be believed; empty where it is.

    Asked of all models that are there: no failed check (one of the name ``but`` apart), numbers,
    the same items, enough of them, few that have no number in any model, and none that has one in
    some models only: that one may be the very text that is known.
    """
    if reason := unmeasured(trio, column, but):
        return reason
    if len({frozenset(s.items(column)) for s in trio.sheets}) > 1:
        return f"{column} was measured on other items in one of the models"
    items, shared = len(trio.unlearned.items(column)), len(aligned(trio.sheets, column)[0])
    lost = [r for s in trio.sheets for r, _ in s.reasons(column).most_common(1)]
    if alone := items - shared - len(lost_in_all(trio, column)):
        return (
            f"{alone} of {items} items of {column} have no number in one of the models only "
            f"({lost[0]})"
        )
    if items - shared > rule.max_unscorable * items:
        return f"{items - shared} of {items} items of {column} have no number ({lost[0]})"
    if shared < rule.min_items:
        return f"{column} was measured on {shared} items, and at least {rule.min_items} are needed"
    return ""


def lost_in_all(trio: Trio, column: Column) -> set[str]:
    """The items that have no number in any of the models, as where their truth is empty."""
    return set.intersection(*(set(s.unscorable.get(column, {})) for s in trio.sheets))


def unmeasured(trio: Trio, column: Column, but: str = "") -> str:
    """Why one of three models has no number of a metric at all; empty where all have."""
    for sheet in trio.sheets:
        if faults := sheet.faults(column.metric, but):
            return f"{column} was not measured: {faults[0]}"
    if any(not s.values.get(column) for s in trio.sheets):
        reasons = [r for s in trio.sheets for r, _ in s.reasons(column).most_common(1)]
        return (
            f"{column} has no number for one of the models{f' ({reasons[0]})' if reasons else ''}"
        )
    if not all(np.isfinite(s.column(column)).all() for s in trio.sheets):
        return f"{column} has numbers that are not finite"
    return ""


def mean(sheet: Sheet, column: Column) -> float:
    """The mean of a column that has numbers, less what guessing scores."""
    return float(np.mean(sheet.column(column))) - chance_of(column)
