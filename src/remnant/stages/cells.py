"""Rows of one measured model -> its numbers with intervals. No torch."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from remnant.catalog import METRICS
from remnant.functional.stats import Interval, bootstrap, bootstrap_auc, bootstrap_mean, privleak, true_positives
from remnant.functional.tofu import USEFUL, forget_quality, forget_truth, model_utility, useful_truth
from remnant.parsing import lines_of
from remnant.records import CastMember, Cell, Row, Rule, status_of

Array = NDArray[np.float64]
MEMBERS, OTHERS = "forget", "holdout"
FALSE_POSITIVES = 0.01
TRUTH = "tofu_truth_ratio"


class Sheet(NamedTuple):
    """The rows of one measured model: metric -> item -> value, scorable ones only; and why how many were not scorable.

    Where a metric has several sets of items, the key is "metric/set".
    """

    values: dict[str, dict[str, float]]
    unscorable: dict[str, Counter[str]]

    def column(self, metric: str) -> Array:
        """Values of one metric in the order of the item ids."""
        found = self.values.get(metric, {})
        return np.array([found[item] for item in sorted(found)], dtype=np.float64)

    def pair(self, name: str) -> tuple[Array, Array]:
        """Values of an attack on text that is to be forgotten and on text that was never read."""
        return self.column(f"{name}/{MEMBERS}"), self.column(f"{name}/{OTHERS}")


def read_rows(path: Path) -> Sheet:
    """The rows of a measurement."""
    values: dict[str, dict[str, float]] = {}
    unscorable: dict[str, Counter[str]] = {}
    for line in lines_of(path.read_text(encoding="utf-8")):
        row = Row.model_validate_json(line)
        metric = f"{row.metric}/{row.split}" if row.split else row.metric
        if row.value is None:
            unscorable.setdefault(metric, Counter())[row.status] += 1
            values.setdefault(metric, {})
        else:
            values.setdefault(metric, {})[row.id] = row.value
    return Sheet(values, unscorable)


def auc_of(sheet: Sheet, name: str, rule: Rule, of: Callable[[float], float] = lambda a: a) -> Interval | None:
    """AUC of an attack (or a function of it); None without values on both sides."""
    return bootstrap_auc(*sheet.pair(name), rule.resamples, rule.seed, of)


def cells_of(member: CastMember, sheet: Sheet, rule: Rule, retrain: Sheet | None) -> list[Cell]:
    """All numbers of one measured model, x100 where the catalogue says so.

    PrivLeak takes the retrain model's AUC as given, without its own uncertainty; so does TOFU's forget quality, which is a p-value and
    has no interval.
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
    return cells + _tofu(member, sheet, rule, retrain)


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
    return _cell(member, shown, found, len(column), sheet.unscorable.get(metric), unit=unit)


def _attack(member: CastMember, name: str, sheet: Sheet, rule: Rule, retrain: Sheet | None) -> list[Cell]:
    """AUC and true positives of a membership attack; for PrivLeak's also its distance from the retrain model's."""
    forget, holdout = sheet.pair(name)
    n = len(forget) + len(holdout)
    lost = sum((sheet.unscorable.get(f"{name}/{side}", Counter()) for side in (MEMBERS, OTHERS)), Counter[str]())
    caught = bootstrap(
        lambda i: true_positives(forget[i[0]], holdout[i[1]], FALSE_POSITIVES), (len(forget), len(holdout)), rule.resamples, rule.seed
    )
    base = "auc" if name == "privleak" else name
    cells = [_cell(member, base, auc_of(sheet, name, rule), n, lost), _cell(member, f"{base}_tpr", caught, n, lost)]
    if name != "privleak":
        return cells
    reference = auc_of(retrain, name, rule) if retrain else None
    if reference is None or reference.value <= 0:
        return [*cells, _cell(member, name, None, n, lost, "no reference: there is no retrain model")]
    return [*cells, _cell(member, name, auc_of(sheet, name, rule, lambda a: privleak(a, reference.value)), n, lost)]


def _tofu(member: CastMember, sheet: Sheet, rule: Rule, retrain: Sheet | None) -> list[Cell]:
    """Model utility and forget quality, where the rows they are made of are there."""
    cells = []
    parts = {s: _aligned(sheet, [f"{name}/{s}" for name in names]) for s, names in USEFUL.items()}
    if all(p.shape[-1] for p in parts.values()):
        sizes = tuple(p.shape[-1] for p in parts.values())
        found = bootstrap(lambda i: model_utility({s: parts[s][:, i[k]] for k, s in enumerate(parts)}), sizes, rule.resamples, rule.seed)
        cells.append(_cell(member, "tofu_utility", found, sum(sizes), None))
    ratios = sheet.column(f"{TRUTH}/{MEMBERS}")
    if len(ratios):
        other = retrain.column(f"{TRUTH}/{MEMBERS}") if retrain else np.zeros(0)
        quality = forget_quality(ratios, other) if len(other) else None
        status = "ok, no interval" if quality is not None else "no reference: there is no retrain model"
        value = 100 * quality if quality is not None else None
        about = member.model_dump()
        cells.append(Cell(**about, metric="tofu_forget_quality", value=value, low=None, high=None, n=len(ratios), status=status))
    return cells


def _aligned(sheet: Sheet, metrics: list[str]) -> Array:
    """[metrics, n] values over the items that all of them have."""
    tables = [sheet.values.get(m, {}) for m in metrics]
    both = sorted(set.intersection(*(set(t) for t in tables)))
    return np.array([[t[item] for item in both] for t in tables], dtype=np.float64)


def _cell(
    member: CastMember, metric: str, found: Interval | None, n: int, lost: Counter[str] | None, status: str = "", unit: float = 100.0
) -> Cell:
    value, low, high = (unit * x for x in found) if found else (None, None, None)
    about = member.model_dump()
    return Cell(**about, metric=metric, value=value, low=low, high=high, n=n, status=status or status_of(found is not None, lost))
