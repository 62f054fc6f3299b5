"""Rows of one measured model -> its numbers with intervals. No torch."""

import importlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from remnant.corpus import COMBINED, METRICS, numbers_by_column, of_role
from remnant.errors import UserError
from remnant.functional.reductions import Draws, Reduction
from remnant.functional.stats import Interval, bootstrap_auc
from remnant.instrument import faults_of, read_checks
from remnant.metrics import MEAN, MEMBERS, OTHERS, Column, Number, Role
from remnant.parsing import lines_of
from remnant.records import Cell, Check, Record, Row, Rule, Variant, status_of

Array = NDArray[np.float64]
# Sums of floats may leave a share by so much.
SLACK = 1e-6


class Sheet(NamedTuple):
    """The rows of one measured model: column -> item -> value, scorable ones only.

    And column -> item -> why it was not scorable.

    ``checks``: those of the instrument, None where none were made. ``texts``: set of items -> item
    -> (truth, what was written). ``remarks``: column -> what rows say beside their number, and how
    many. ``roles``: what the user's own metrics count as. ``prompts``: set of items -> item -> what
    was asked.
    """

    values: dict[Column, dict[str, float]]
    unscorable: dict[Column, dict[str, str]]
    checks: tuple[Check, ...] | None = None
    texts: Mapping[str, Mapping[str, tuple[str, str]]] = MappingProxyType({})
    remarks: Mapping[Column, Counter[str]] = MappingProxyType({})
    roles: Mapping[str, Role] = MappingProxyType({})
    prompts: Mapping[str, Mapping[str, str]] = MappingProxyType({})

    def column(self, column: Column) -> Array:
        """Values of one column in the order of the item ids."""
        found = self.values.get(column, {})
        return np.array([found[item] for item in sorted(found)], dtype=np.float64)

    def items(self, column: Column) -> set[str]:
        """Ids of all items of a column, with a number or without."""
        return set(self.values.get(column, {})) | set(self.unscorable.get(column, {}))

    def reasons(self, column: Column) -> Counter[str]:
        """Why items of a column have no number, and how often."""
        return Counter(self.unscorable.get(column, {}).values())

    def faults(self, metric: str, but: str = "") -> list[str]:
        """What failed checks of the instrument say that concern a metric, those of one name
        (``but``) left out.
        """
        return faults_of(self.checks or (), metric, but)


class Written(Record):
    """One line of texts.jsonl."""

    metric: str
    id: str
    prompt: str = ""
    truth: str
    generated: str


def read_rows(path: Path, roles: Mapping[str, Role] = MappingProxyType({})) -> Sheet:
    """The rows of a measurement, with the checks and the texts that lie beside them.

    A number that is not finite, or outside the range of its metric, is no number.

    Args:
        path: the file of rows.
        roles: what the user's own metrics count as.

    Raises:
        UserError: a line is not a row, or an item is given twice: the file is damaged.
    """
    values: dict[Column, dict[str, float]] = {}
    unscorable: dict[Column, dict[str, str]] = {}
    remarks: dict[Column, Counter[str]] = {}
    for number, row in enumerate(_lines(path, Row.model_validate_json), 1):
        column = Column(row.metric, row.split)
        good, bad = values.setdefault(column, {}), unscorable.setdefault(column, {})
        if row.id in good or row.id in bad:
            raise UserError(
                f"Line {number} of {path} gives {column} of {row.id} a second time.", _DAMAGED
            )
        if fault := _fault(row, shares=row.metric in roles):
            bad[row.id] = fault
        else:
            good[row.id] = float(row.value or 0.0)
            remarks.setdefault(column, Counter()).update(row.status.split(", ")[1:])
    found = read_checks(path.parent)
    checks = None if found is None else tuple(found)
    texts, prompts = _texts(path.parent)
    return Sheet(
        values,
        {c: lost for c, lost in unscorable.items() if lost},
        checks,
        texts,
        remarks,
        roles,
        prompts,
    )


_DAMAGED = "The measurement is damaged; delete its folder and measure again."


def _lines(path: Path, parsed: Callable[[str], Any]) -> list[Any]:
    """Every line of a file of records, or a sentence about the one that is none."""
    found = []
    try:
        lines = lines_of(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}).", _DAMAGED) from error
    for number, line in enumerate(lines, 1):
        try:
            found += [parsed(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"Line {number} of {path} is no record of a measurement.", _DAMAGED
            ) from error
    return found


def _fault(row: Row, *, shares: bool) -> str:
    """Why a row holds no number; empty if it does.

    ``shares``: its metric is the user's and plays a role, for which it must be a share.
    """
    if row.value is None or not row.status.startswith("ok"):
        return row.status
    if not math.isfinite(row.value):
        return "the number is not finite"
    shares = METRICS[row.metric].is_share if row.metric in METRICS else shares
    if shares and not -SLACK <= row.value <= 1 + SLACK:
        return f"the number {row.value:.3g} is outside 0 to 1"
    return ""


def _texts(
    folder: Path,
) -> tuple[dict[str, dict[str, tuple[str, str]]], dict[str, dict[str, str]]]:
    """What was written and what was asked, by set of items and item."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    prompts: dict[str, dict[str, str]] = {}
    path = folder / "texts.jsonl"
    for text in _lines(path, Written.model_validate_json) if path.is_file() else []:
        own = found.setdefault(text.metric, {})
        if text.id in own:
            raise UserError(f"{path} gives {text.metric} of {text.id} a second time.", _DAMAGED)
        own[text.id] = text.truth, text.generated
        prompts.setdefault(text.metric, {})[text.id] = text.prompt
    return found, prompts


def asked(sheets: Sequence[Sheet | None], role: Role) -> list[Column]:
    """The columns of a role that any of some models has been asked for: built-in metrics in the
    order of the catalogue, then the user's own.
    """
    given = [s for s in sheets if s is not None]
    there = dict.fromkeys(c for s in given for c in (*s.values, *s.unscorable))
    measured = {c for s in given for c in there if s.items(c)}
    known = [c for name in of_role(role) for c in there if c.metric == name]
    own = {name for s in given for name, r in s.roles.items() if r == role}
    known += [c for c in there if c.metric not in METRICS and c.metric in own]
    return [c for c in known if c in measured]


def auc_of(sheet: Sheet, name: str, rule: Rule) -> Interval | None:
    """AUC of an attack; None without values on both sides."""
    forget, holdout = (sheet.column(Column(name, side)) for side in (MEMBERS, OTHERS))
    return bootstrap_auc(forget, holdout, rule.resamples, rule.seed)


def cells_of(variant: Variant, sheet: Sheet, rule: Rule, retrain: Sheet | None) -> list[Cell]:
    """All numbers of one measured model, x100 where the catalogue says so.

    PrivLeak takes the retrain model's AUC as given, without its own uncertainty; so does TOFU's
    forget quality, which is a p-value and has no interval.
    """
    return [_cell(variant, number, sheet, rule, retrain) for number in _numbers(sheet)]


def _numbers(sheet: Sheet) -> list[Number]:
    """The numbers that some rows make, in the order of their first column.

    Combined ones come last, and only where all that they are made of is there. Rows that no
    built-in metric has (the user's, abilities) make their mean.
    """
    by_column = numbers_by_column()
    own = [n for c in sheet.values for n in by_column.get(c, (_mean_of(c),))]

    def there(number: Number) -> bool:
        return all(group.size for group in _groups(number, sheet))

    return list(dict.fromkeys([*own, *filter(there, COMBINED)]))


def _mean_of(column: Column) -> Number:
    return Number(column.metric, MEAN.function, ((column,),))


def _groups(number: Number, sheet: Sheet) -> list[Array]:
    """The columns of each group [columns, items], over the items that all of a group have."""

    def values(group: Sequence[Column]) -> Array:
        return np.array(table_of([sheet.values.get(c, {}) for c in group]), dtype=np.float64)

    return list(map(values, number.groups))


def table_of(columns: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """[columns, items] values over the items that all of some columns have, in their order."""
    shared = sorted(set.intersection(*map(set, columns)))
    return [list(map(column.__getitem__, shared)) for column in columns]


def _cell(
    variant: Variant, number: Number, sheet: Sheet, rule: Rule, retrain: Sheet | None
) -> Cell:
    """One number of one model, without a value where it has none or a check concerns it."""
    groups = _groups(number, sheet)
    unread = _groups(number, retrain) if number.unread and retrain else []
    found = _reduced(number, [*groups, *unread], rule)
    lost = sum((sheet.reasons(c) for c in number.columns), Counter[str]())
    status = status_of(found is not None, lost)
    if number.unread and found is None and all(g.size for g in groups):
        status = "no reference: there is no retrain model"
    value, low, high = _shown(found, number.unit)
    if found is not None and value is None:
        status = "the number is too large"
    elif found is not None and low is None:
        status += ", no interval"
    if faults := [f for c in number.columns for f in sheet.faults(c.metric)]:
        value, low, high, status = None, None, None, f"not measured: {faults[0]}"
    elif value is not None:
        status = ", ".join([status, *_remarks(number, sheet)])
    return Cell(
        **dict(variant),
        metric=number.name,
        value=value,
        low=low,
        high=high,
        n=sum(group.shape[-1] for group in groups),
        status=status,
    )


def _reduced(number: Number, groups: Sequence[Array], rule: Rule) -> Interval | float | None:
    module, function = number.function.split(":")
    reduction: Reduction = getattr(importlib.import_module(module), function)
    if not all(group.size for group in groups[: len(number.groups)]):
        return None
    return reduction(groups, Draws(rule.resamples, rule.seed))


def _shown(
    found: Interval | float | None, unit: float
) -> tuple[float | None, float | None, float | None]:
    """A value with its bounds as they are shown; without any where one of them is not finite."""
    if found is None:
        return None, None, None
    if isinstance(found, float):
        return (unit * found if math.isfinite(found) else None), None, None
    value, low, high = (unit * x for x in found)
    finite = all(map(math.isfinite, (value, low, high)))
    return (value, low, high) if finite else (None, None, None)


def _remarks(number: Number, sheet: Sheet) -> list[str]:
    """What the rows of a number say beside their values (cut texts, another way to count words),
    and how many of them.
    """
    found = sum((sheet.remarks.get(c, Counter()) for c in number.columns), Counter[str]())
    return [f"{n} {remark}" for remark, n in sorted(found.items())]
