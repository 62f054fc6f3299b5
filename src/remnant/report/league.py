"""Unlearned models in the order of what was found of them: the table of a sweep."""

from collections.abc import Iterable, Sequence
from math import inf
from typing import NamedTuple

from remnant.corpus import of_role
from remnant.records import Outcome
from remnant.report.front import WORST, Dot, badges, dots
from remnant.report.table import Group


class Standing(NamedTuple):
    """One model of a sweep.

    ``worst``: the gravest word of all its forms. ``badges``: form, word and reason of each.
    ``most``: the test, in any form, by which it is nearest to the target. ``utility``: the least
    share of the target's, in any form. Both None where nothing was measured, or the target itself
    shows too little.
    """

    group: str
    model: str
    worst: Outcome
    badges: list[tuple[str, Outcome, str]]
    most: Dot | None
    utility: float | None


def league(groups: Iterable[Group]) -> list[Standing]:
    """All models that were judged, the best first: by the word, then by what is left."""
    found = [_standing(g, model) for g in groups if g.verdicts for model in g.unlearned]
    return sorted((one for one in found if one), key=_rank)


def _standing(group: Group, model: str) -> Standing | None:
    own = badges(group, model)
    if not own:
        return None
    worst = min((outcome for _, outcome, _ in own), key=WORST.index)
    most = max(dots(group, model), key=lambda dot: dot.left, default=None)
    shares = _utilities(group, model)
    return Standing(group.title, model, worst, own, most, min(shares, default=None))


def _rank(one: Standing) -> tuple[int, float]:
    # What was not measured stands behind what was.
    return -WORST.index(one.worst), one.most.left if one.most else inf


def _utilities(group: Group, model: str) -> Sequence[float]:
    """The shares of the target's utility at the same precision, above what guessing scores."""
    useful = [m for m in group.metrics if m in of_role("utility")]
    cells = [group.cell(model, form, metric) for metric in useful for form in group.forms]
    shares = [group.share(cell) for cell in cells if cell]
    return [share for share in shares if share is not None]
