"""Seeds taken together: means over runs that differ in their seed, with intervals."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from remnant.functional.stats import Interval, pooled
from remnant.records import Cell, Recovery, Shares, Verdict
from remnant.report.table import Group

Field = Literal["retained", "retained_of_full_target", "recovery", "recovery_over_retrain"]
FIELDS: tuple[Field, ...] = (
    "retained",
    "retained_of_full_target",
    "recovery",
    "recovery_over_retrain",
)


class Place(NamedTuple):
    """What is pooled: everything but the seed is the same."""

    model: str
    form: str
    metric: str


def over_seeds(groups: Sequence[Group]) -> list[Group]:
    """One group for every corpus that was run with several seeds, with the means of its numbers.

    A number that some seeds lack is the mean of the others, and its status says of how many. A
    verdict stands where it is the same for all seeds.
    """
    by_corpus: dict[str, list[Group]] = {}
    for group in groups:
        by_corpus.setdefault(group.corpus, []).append(group)
    return [
        Group(
            corpus,
            None,
            _cells(own),
            _recoveries(own),
            _verdicts(own),
            None,
            seeds=len(own),
            rule=own[0].rule,
        )
        for corpus, own in by_corpus.items()
        if len(own) > 1
    ]


def _cells(groups: Sequence[Group]) -> list[Cell]:
    found: dict[Place, dict[int | None, Cell]] = {}
    for cell in (c for group in groups for c in group.cells):
        # The target of several groups is one model, so its seed is there once.
        found.setdefault(Place(cell.model, cell.form, cell.metric), {})[cell.seed] = cell
    return [_cell(list(cells.values())) for cells in found.values()]


def _cell(cells: Sequence[Cell]) -> Cell:
    """The mean of one number over seeds; the only one as it is."""
    if len(cells) == 1:
        return cells[0]
    scored = [c for c in cells if c.value is not None]
    value, low, high = mean_of([(c.value or 0.0, c.low, c.high) for c in scored])
    status = f"mean over {len(scored)} of {len(cells)} seeds" if scored else cells[0].status
    n = sum(c.n for c in scored)
    return cells[0].model_copy(
        update={"seed": None, "value": value, "low": low, "high": high, "n": n, "status": status}
    )


def mean_of(
    found: Sequence[tuple[float, float | None, float | None]],
) -> tuple[float | None, float | None, float | None]:
    """The mean of some values, with an interval where all of them have one.

    >>> mean_of([(1.0, None, None), (2.0, 1.0, 3.0)])
    (1.5, None, None)
    """
    if not found:
        return None, None, None
    bounded = [(v, low, high) for v, low, high in found if low is not None and high is not None]
    if len(bounded) < len(found):
        return sum(v for v, _, _ in found) / len(found), None, None
    return pooled(bounded)


def by_place(recoveries: Iterable[Recovery], field: Field) -> dict[Place, list[Shares]]:
    """One field of some recoveries, an interval for each seed that has it."""
    found: dict[Place, list[Shares]] = {}
    for r in recoveries:
        shares: Shares | None = getattr(r, field)
        if shares is not None:
            found.setdefault(Place(r.model, r.form, r.metric), []).append(shares)
    return found


def _recoveries(groups: Sequence[Group]) -> list[Recovery]:
    every = [r for group in groups for r in group.recoveries]
    fields: dict[str, dict[Place, list[Shares]]] = {
        field: by_place(every, field) for field in FIELDS
    }
    firsts: dict[Place, Recovery] = {}
    for r in every:
        firsts.setdefault(Place(r.model, r.form, r.metric), r)
    return [_recovery(first, place, fields) for place, first in firsts.items()]


def _recovery(
    first: Recovery, place: Place, fields: Mapping[str, Mapping[Place, list[Shares]]]
) -> Recovery:
    """The means of one number over seeds, of which ``first`` is one."""
    means: dict[str, object] = {f: _shares(found.get(place)) for f, found in fields.items()}
    status = "ok" if any(place in found for found in fields.values()) else "no seed has it"
    return first.model_copy(update={"seed": None, "status": status, **means})


def _shares(found: Sequence[Shares] | None) -> Interval | None:
    return pooled(found) if found else None


def _verdicts(groups: Sequence[Group]) -> list[Verdict]:
    found: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in (v for group in groups for v in group.verdicts):
        found.setdefault((verdict.model, verdict.form), []).append(verdict)
    return [
        own[0].model_copy(update={"seed": None, "reason": f"with all {len(groups)} seeds"})
        for own in found.values()
        if len(own) == len(groups) and _agree(own)
    ]


def _agree(verdicts: Sequence[Verdict]) -> bool:
    return len({v.outcome for v in verdicts}) == 1
