"""A study's runs as points of knowledge against utility: the front, and the setting chosen on one
half of the items, told on the other.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from remnant.corpus import is_beside
from remnant.flow.store import Store
from remnant.methods import own_roles
from remnant.metrics import Column, Role
from remnant.parsing import lines_of
from remnant.records import FULL, Rule, Variant
from remnant.report.table import Results
from remnant.stages.cells import Sheet, asked, read_rows
from remnant.stages.lineup import chance_of

# A target that shows less than this, 0 to 1, is no measure.
LEAST = Rule().least
# By role the means of its columns, above what guessing scores.
Means = Mapping[Role, Mapping[Column, float]]


class Point(NamedTuple):
    """One setting, averaged over seeds, on one half of the items.

    ``knowledge``: share of the target's that is left, in the form where most is left; low is
    forgotten. ``in_full``: the same in full precision. ``utility``: share of the target's that is
    left, in the form where least is left; high is useful. ``seeds``: runs.
    """

    corpus: str
    model: str
    knowledge: float
    in_full: float
    utility: float
    seeds: int


class Study(NamedTuple):
    """Points on both halves, the names on the front of the development half, and the chosen one
    (None where no setting is useful).
    """

    corpus: str
    dev: list[Point]
    test: list[Point]
    front: list[str]
    chosen: str | None

    def on_test(self, model: str) -> Point:
        """The point of a setting on the half that nothing was chosen by."""
        return next(p for p in self.test if p.model == model)


def study(results: Results, store: Store) -> list[Study]:
    """One study per corpus, from the rows of all finished measurements."""
    found = []
    for corpus in dict.fromkeys(g.corpus for g in results.groups):
        dev, test = (_points(results, store, corpus, half) for half in ("dev", "test"))
        if dev and test:
            found.append(
                Study(corpus, dev, test, front(dev), choose(dev, results.sweep.rule.utility_floor))
            )
    return found


def front(points: Sequence[Point]) -> list[str]:
    """The settings that no other one beats in both knowledge and utility, the most forgetful
    first.
    """

    def beaten(point: Point) -> bool:
        return any(
            p.knowledge <= point.knowledge
            and p.utility >= point.utility
            and (p.knowledge, p.utility) != (point.knowledge, point.utility)
            for p in points
        )

    return [p.model for p in sorted(points, key=lambda p: p.knowledge) if not beaten(p)]


def choose(points: Sequence[Point], floor: float) -> str | None:
    """The setting that knows least among those whose utility is at least ``floor``.

    None where there is none.
    """
    useful = [p for p in points if p.utility >= floor]
    return min(useful, key=lambda p: (p.knowledge, -p.utility)).model if useful else None


def _points(results: Results, store: Store, corpus: str, half: str) -> list[Point]:
    means: dict[Variant, Means] = {}
    roles = own_roles(results.sweep.measure.extra)
    for name, manifest in results.manifests.items():
        about = results.labels[name]
        if manifest.stage == "measure" and about.corpus == corpus:
            means[about] = means_on(store.path(name) / "rows.jsonl", half, roles)
    target = {v.form: m for v, m in means.items() if v.model == "target"}
    runs: dict[str, dict[int | None, dict[str, Means]]] = {}
    for v, found in means.items():
        if not v.is_reference and v.form in target:
            runs.setdefault(v.model, {}).setdefault(v.seed, {})[v.form] = found
    points = [_point(corpus, model, seeds, target) for model, seeds in runs.items()]
    return [p for p in points if p]


def _point(
    corpus: str,
    model: str,
    seeds: Mapping[int | None, Mapping[str, Means]],
    target: Mapping[str, Means],
) -> Point | None:
    """A setting.

    None where one of its numbers is missing, since what was not measured is not forgotten.
    """
    if not all(FULL in by for by in seeds.values()):
        return None

    def left(by: Mapping[str, Means], role: Role) -> dict[str, float]:
        return {q: left_of(means, target[q], role) for q, means in by.items()}

    knowledge = [left(by, "knowledge") for by in seeds.values()]
    utility = [left(by, "utility") for by in seeds.values()]
    if not all(math.isfinite(x) for by in (*knowledge, *utility) for x in by.values()):
        return None
    return Point(
        corpus,
        model,
        knowledge=_mean([max(by.values()) for by in knowledge]),
        in_full=_mean([by[FULL] for by in knowledge]),
        utility=_mean([min(by.values()) for by in utility]),
        seeds=len(seeds),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def left_of(found: Means, target: Means, role: Role) -> float:
    """Mean over the metrics of a role of the share of the target's value, 1 is all of it.

    A metric that the target scores less than ``LEAST`` on says nothing and is left out.

    Not a number where a metric is missing that the target scores on, or where there is none.
    """
    own = found[role]
    shares = [own.get(c, math.nan) / value for c, value in target[role].items() if value >= LEAST]
    return sum(shares) / len(shares) if shares else math.nan


def means_on(rows: Path, half: str, roles: Mapping[str, Role]) -> Means:
    """The means of one half.

    A metric that a failed check concerns, or most of whose items have no number, is left out.
    """
    sheet = read_rows(rows, roles)
    lines = lines_of(rows.read_text(encoding="utf-8"))
    halves = {r["id"]: r["half"] for r in map(json.loads, lines)}
    counted: tuple[Role, ...] = ("knowledge", "utility")
    return {role: _means_of(sheet, _published(sheet, role), halves, half) for role in counted}


def _published(sheet: Sheet, role: Role) -> list[Column]:
    """The measures of a role as published, each answer counted once."""
    return [c for c in asked([sheet], role) if not is_beside(c)]


def _means_of(
    sheet: Sheet, columns: Sequence[Column], halves: Mapping[str, str], half: str
) -> dict[Column, float]:
    found = {}
    for column in columns:
        values = sheet.values.get(column, {})
        own = [v for i, v in values.items() if halves[i] == half]
        enough = 2 * len(values) > len(sheet.items(column))
        if own and enough and not sheet.faults(column.metric):
            found[column] = sum(own) / len(own) - chance_of(column)
    return found
