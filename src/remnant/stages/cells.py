"""Rows of one measured model -> its numbers with intervals. No torch."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from remnant.catalog import METRICS
from remnant.errors import UserError
from remnant.functional.stats import (
    Interval,
    bootstrap,
    bootstrap_auc,
    bootstrap_mean,
    privleak,
    true_positives,
)
from remnant.functional.tofu import (
    USEFUL,
    forget_quality,
    forget_truth,
    model_utility,
    useful_truth,
)
from remnant.instrument import faults_of, read_checks
from remnant.parsing import lines_of
from remnant.records import CastMember, Cell, Check, Record, Row, Rule, status_of

Array = NDArray[np.float64]
MEMBERS, OTHERS = "forget", "holdout"
FALSE_POSITIVES = 0.01
TRUTH = "tofu_truth_ratio"
# Sums of floats may leave a share by so much.
SLACK = 1e-6


class Sheet(NamedTuple):
    """The rows of one measured model: metric -> item -> value, scorable ones only.

    And metric -> item -> why it was not scorable.

    Where a metric has several sets of items, the key is "metric/set". ``checks``: those of the
    instrument, None where none were made. ``texts``: set of items -> item -> (truth, what was
    written). ``remarks``: metric -> what rows say beside their number, and how many.
    """

    values: dict[str, dict[str, float]]
    unscorable: dict[str, dict[str, str]]
    checks: tuple[Check, ...] | None = None
    texts: Mapping[str, Mapping[str, tuple[str, str]]] = MappingProxyType({})
    remarks: Mapping[str, Counter[str]] = MappingProxyType({})

    def column(self, metric: str) -> Array:
        """Values of one metric in the order of the item ids."""
        found = self.values.get(metric, {})
        return np.array([found[item] for item in sorted(found)], dtype=np.float64)

    def pair(self, name: str) -> tuple[Array, Array]:
        """Values of an attack on text that is to be forgotten and on text that was never read."""
        return self.column(f"{name}/{MEMBERS}"), self.column(f"{name}/{OTHERS}")

    def items(self, metric: str) -> set[str]:
        """Ids of all items of a metric, with a number or without."""
        return set(self.values.get(metric, {})) | set(self.unscorable.get(metric, {}))

    def reasons(self, metric: str) -> Counter[str]:
        """Why items of a metric have no number, and how often."""
        return Counter(self.unscorable.get(metric, {}).values())

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


def read_rows(path: Path) -> Sheet:
    """The rows of a measurement, with the checks and the texts that lie beside them.

    A number that is not finite, or outside the range of its metric, is no number.

    Raises:
        UserError: a line is not a row, or an item is given twice: the file is damaged.
    """
    values: dict[str, dict[str, float]] = {}
    unscorable: dict[str, dict[str, str]] = {}
    remarks: dict[str, Counter[str]] = {}
    for number, row in enumerate(_lines(path, Row.model_validate_json), 1):
        metric = f"{row.metric}/{row.split}" if row.split else row.metric
        good, bad = values.setdefault(metric, {}), unscorable.setdefault(metric, {})
        if row.id in good or row.id in bad:
            raise UserError(
                f"Line {number} of {path} gives {metric} of {row.id} a second time.", _DAMAGED
            )
        if fault := _fault(row):
            bad[row.id] = fault
        else:
            good[row.id] = float(row.value or 0.0)
            remarks.setdefault(metric, Counter()).update(row.status.split(", ")[1:])
    found = read_checks(path.parent)
    checks = None if found is None else tuple(found)
    return Sheet(
        values,
        {m: lost for m, lost in unscorable.items() if lost},
        checks,
        _texts(path.parent),
        remarks,
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


def _fault(row: Row) -> str:
    """Why a row holds no number; empty if it does."""
    if row.value is None or not row.status.startswith("ok"):
        return row.status
    if not math.isfinite(row.value):
        return "the number is not finite"
    if is_share(row.metric) and not -SLACK <= row.value <= 1 + SLACK:
        return f"the number {row.value:.3g} is outside 0 to 1"
    return ""


def is_attack(metric: str) -> bool:
    """Whether a built-in metric tells forget text from text that was never read, by a number for
    each.
    """
    return {on.partition("_")[2] for on in METRICS[metric].on} >= {MEMBERS, OTHERS}


def is_share(metric: str) -> bool:
    """Whether an item of a built-in metric is a share, 0 to 1."""
    return (
        metric in METRICS
        and METRICS[metric].span == "0 to 100"
        and not is_attack(metric)
        and metric != TRUTH
    )


def _texts(folder: Path) -> dict[str, dict[str, tuple[str, str]]]:
    found: dict[str, dict[str, tuple[str, str]]] = {}
    path = folder / "texts.jsonl"
    for text in _lines(path, Written.model_validate_json) if path.is_file() else []:
        own = found.setdefault(text.metric, {})
        if text.id in own:
            raise UserError(f"{path} gives {text.metric} of {text.id} a second time.", _DAMAGED)
        own[text.id] = text.truth, text.generated
    return found


def auc_of(
    sheet: Sheet, name: str, rule: Rule, of: Callable[[float], float] = lambda a: a
) -> Interval | None:
    """AUC of an attack (or a function of it); None without values on both sides."""
    return bootstrap_auc(*sheet.pair(name), rule.resamples, rule.seed, of)


def cells_of(member: CastMember, sheet: Sheet, rule: Rule, retrain: Sheet | None) -> list[Cell]:
    """All numbers of one measured model, x100 where the catalogue says so.

    PrivLeak takes the retrain model's AUC as given, without its own uncertainty; so does TOFU's
    forget quality, which is a p-value and has no interval.
    """
    cells: list[Cell] = []
    for metric in sheet.values:
        name, _, split = metric.partition("/")
        if f"{name}/{OTHERS}" in sheet.values:
            cells += _attack(member, name, sheet, rule, retrain) if split == MEMBERS else []
        elif split == OTHERS:
            cells += _attack(member, name, sheet, rule, retrain)
        else:
            cells.append(_plain(member, metric, sheet, rule))
    return [
        _remarked(_unless_faulty(cell, sheet), sheet)
        for cell in cells + _tofu(member, sheet, rule, retrain)
    ]


def _remarked(cell: Cell, sheet: Sheet) -> Cell:
    """A cell with what its rows say beside their numbers (cut texts, another way to count words),
    and how many of them.
    """
    if cell.value is None:
        return cell
    name = "privleak" if cell.metric in ("auc", "auc_tpr") else cell.metric.removesuffix("_tpr")
    found = sum(
        (
            c
            for m, c in sheet.remarks.items()
            if m.partition("/")[0] == name or m.replace("/", "_") == name
        ),
        Counter[str](),
    )
    return cell.model_copy(
        update={
            "status": ", ".join(
                [cell.status, *(f"{n} {remark}" for remark, n in sorted(found.items()))]
            )
        }
    )


def _unless_faulty(cell: Cell, sheet: Sheet) -> Cell:
    """A cell, or the same without its number where a check of the instrument failed that concerns
    it.
    """
    name = "privleak" if cell.metric in ("auc", "auc_tpr") else cell.metric.removesuffix("_tpr")
    faults = sheet.faults(name)
    if not faults:
        return cell
    return cell.model_copy(
        update={"value": None, "low": None, "high": None, "status": f"not measured: {faults[0]}"}
    )


def _plain(member: CastMember, metric: str, sheet: Sheet, rule: Rule) -> Cell:
    """The mean of a metric's rows; of TOFU's truth ratios what TOFU makes of them."""
    name, _, split = metric.partition("/")
    column = sheet.column(metric)
    if name == TRUTH:
        of = forget_truth if split == MEMBERS else useful_truth
        found = bootstrap(lambda i: of(column[i[0]]), (len(column),), rule.resamples, rule.seed)
    else:
        found = bootstrap_mean(column, rule.resamples, rule.seed)
    shown = f"{name}_{split}" if split and name in METRICS else name
    unit = 1.0 if name in METRICS and not METRICS[name].unit else 100.0
    return _cell(member, shown, found, len(column), sheet.reasons(metric), unit=unit)


def _attack(
    member: CastMember, name: str, sheet: Sheet, rule: Rule, retrain: Sheet | None
) -> list[Cell]:
    """AUC and true positives of a membership attack.

    For PrivLeak's also its distance from the retrain model's.
    """
    forget, holdout = sheet.pair(name)
    n = len(forget) + len(holdout)
    lost = sheet.reasons(f"{name}/{MEMBERS}") + sheet.reasons(f"{name}/{OTHERS}")
    caught = bootstrap(
        lambda i: true_positives(forget[i[0]], holdout[i[1]], FALSE_POSITIVES),
        (len(forget), len(holdout)),
        rule.resamples,
        rule.seed,
    )
    base = "auc" if name == "privleak" else name
    cells = [
        _cell(member, base, auc_of(sheet, name, rule), n, lost),
        _cell(member, f"{base}_tpr", caught, n, lost),
    ]
    if name != "privleak":
        return cells
    reference = auc_of(retrain, name, rule) if retrain else None
    if reference is None or reference.value <= 0:
        return [
            *cells,
            _cell(member, name, None, n, lost, "no reference: there is no retrain model"),
        ]
    return [
        *cells,
        _cell(
            member, name, auc_of(sheet, name, rule, lambda a: privleak(a, reference.value)), n, lost
        ),
    ]


def _tofu(member: CastMember, sheet: Sheet, rule: Rule, retrain: Sheet | None) -> list[Cell]:
    """Model utility and forget quality, where the rows they are made of are there."""
    cells = []
    parts = {s: _aligned(sheet, [f"{name}/{s}" for name in names]) for s, names in USEFUL.items()}
    if all(p.shape[-1] for p in parts.values()):
        sizes = tuple(p.shape[-1] for p in parts.values())
        found = bootstrap(
            lambda i: model_utility({s: parts[s][:, i[k]] for k, s in enumerate(parts)}),
            sizes,
            rule.resamples,
            rule.seed,
        )
        cells.append(_cell(member, "tofu_utility", found, sum(sizes), None))
    ratios = sheet.column(f"{TRUTH}/{MEMBERS}")
    if len(ratios):
        other = retrain.column(f"{TRUTH}/{MEMBERS}") if retrain else np.zeros(0)
        quality = forget_quality(ratios, other) if len(other) else None
        status = (
            "ok, no interval" if quality is not None else "no reference: there is no retrain model"
        )
        value = 100 * quality if quality is not None else None
        about = member.model_dump()
        cells.append(
            Cell(
                **about,
                metric="tofu_forget_quality",
                value=value,
                low=None,
                high=None,
                n=len(ratios),
                status=status,
            )
        )
    return cells


def _aligned(sheet: Sheet, metrics: list[str]) -> Array:
    """[metrics, n] values over the items that all of them have."""
    tables = [sheet.values.get(m, {}) for m in metrics]
    both = sorted(set.intersection(*(set(t) for t in tables)))
    return np.array([[t[item] for item in both] for t in tables], dtype=np.float64)


def _cell(
    member: CastMember,
    metric: str,
    found: Interval | None,
    n: int,
    lost: Counter[str] | None,
    status: str = "",
    unit: float = 100.0,
) -> Cell:
    if found and not all(math.isfinite(unit * x) for x in found):
        found, status = None, "the number is too large"
    value, low, high = (unit * x for x in found) if found else (None, None, None)
    about = member.model_dump()
    return Cell(
        **about,
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=n,
        status=status or status_of(found is not None, lost),
    )
