"""A target that itself answers nothing, or little, lets nothing look good: no share of its number
is shown or coloured, anywhere."""

import dataclasses
import math
from pathlib import Path

import pytest
from rich.console import Console

from remnant.flow.store import Store
from remnant.metrics import Column
from remnant.records import Cell, Rule
from remnant.report import charts, front, page, table, terminal
from remnant.report.league import league
from remnant.report.pareto import Means, left_of
from remnant.report.pooled import over_seeds
from remnant.report.table import Group, Results
from tests.test_report import FORMS, results
from tests.test_search import trial

KNOWN, USEFUL = ("verbmem", "knowmem_forget"), "knowmem_retain"


def with_target(
    value: float, *, half: float = 0.5, forms: tuple[str, ...] = tuple(FORMS)
) -> Results:
    """The made-up run with a target that scores so much of everything, in some forms."""
    base = results()
    (group,) = base.groups

    def changed(cell: Cell) -> Cell:
        if cell.model != "target" or cell.form not in forms:
            return cell
        found = {"value": value, "low": value - half, "high": value + half}
        return cell.model_copy(update=found)

    return dataclasses.replace(
        base, groups=[dataclasses.replace(group, cells=list(map(changed, group.cells)))]
    )


def group_of(found: Results) -> Group:
    (group,) = found.groups
    return group


def test_without_a_target_that_knows_no_number_is_coloured() -> None:
    group = group_of(with_target(8.0))  # the never-read model has 9 and 6
    own = [cell for cell in group.cells if cell.model == "ga_gdr" and cell.value is not None]
    assert {table.tone(group, c) for c in own if c.metric in KNOWN} == {"plain"}
    assert {table.tone(group, c) for c in own if c.metric == "privleak"} == {"plain"}
    small = group_of(with_target(4.0))
    useful = small.cell("ga_gdr", "full", USEFUL)  # 85 of the target's 4
    assert useful is not None
    assert table.tone(small, useful) == "plain"
    assert table.tone(group_of(results()), useful) == "good"


def test_shares_are_those_of_the_way_from_what_knows_nothing() -> None:
    group = group_of(results())
    own, useful = (group.cell("ga_gdr", "full", m) for m in ("verbmem", USEFUL))
    assert own is not None
    assert useful is not None
    assert group.share(own) == pytest.approx((12 - 9) / (97 - 9))
    assert group.share(useful) == pytest.approx(85 / 96)


@pytest.mark.parametrize(
    ("value", "half", "measured"),
    [(14.1, 0.5, True), (13.9, 0.5, False), (30.0, 22.0, False), (30.0, 20.0, True)],
)
def test_a_target_measures_where_the_verdict_says_so(
    value: float, half: float, measured: bool
) -> None:
    """Five points above the never-read model's 9, and certainly above it."""
    group = group_of(with_target(value, half=half))
    assert (group.lacking("full", "verbmem") == "") is measured
    assert Rule().min_gap == 5


def test_a_form_in_which_the_target_shows_nothing_is_left_out_by_itself() -> None:
    group = group_of(with_target(8.0, forms=("int4",)))
    assert group.lacking("full", "verbmem") == ""
    assert "scores 8.0, a model that never read the text 9.0" in group.lacking("int4", "verbmem")
    forms = {d.form for d in front.dots(group, "ga_gdr") if d.test == "VerMem"}
    assert "full" in forms
    assert "int4" not in forms
    told = [line for line in group.unmeasured if line.startswith("VerMem")]
    assert len(told) == 1
    assert "in int4 (" in told[0]


def test_no_dot_no_share_and_no_first_place_without_a_measure() -> None:
    group = group_of(with_target(4.0))
    assert front.dots(group, "ga_gdr") == []
    assert charts.forget_utility_plane(group) == ""
    for standing in league([group]):
        assert standing.most is None
        assert standing.utility is None
    one = dataclasses.replace(group_of(results()), corpus="books")
    order = [standing.group for standing in league([group, one])]
    assert order[:2] == [one.title, one.title]
    two = dataclasses.replace(group, seed=1, rule=Rule(min_gap=1.0))
    pooled = over_seeds([two, dataclasses.replace(two, seed=2)])
    assert pooled[0].rule == two.rule


def test_the_page_and_the_terminal_say_why_and_stay_neutral(tmp_path: Path) -> None:
    found = with_target(4.0)
    html = page.write(found, Store(tmp_path / "store"), tmp_path / "out").read_text()
    assert 'class="n good"' not in html
    assert html.count("not measured against the target in any form") == 4
    retained = html[html.index('class="recovery') :]
    assert "0.05 [0.00, 0.10]</td>" in retained  # recovery, of what was forgotten
    assert 'data-h="retained, same precision">0' not in retained
    assert 'title="the target itself scores 4.0' in retained
    screen = Console(record=True, width=200)
    screen.print(terminal.matrix(group_of(found)))
    # Green is said of verdicts alone, which are made up here.
    shown = screen.export_text(styles=True).replace("\x1b[32mgone", "")
    assert "\x1b[32m" not in shown
    assert "VerMem: not measured against the target in any form (the target itself scores" in shown
    told = " ".join(table.story(found))
    assert "too little to measure forgetting by" in told
    assert "too little" not in " ".join(table.story(results()))


def test_a_number_that_nobody_has_gets_no_empty_chart(tmp_path: Path) -> None:
    base = results()
    why = {"value": None, "low": None, "high": None, "status": "no reference"}
    cells = [
        c.model_copy(update=why) if c.metric == "privleak" else c for c in group_of(base).cells
    ]
    found = dataclasses.replace(base, groups=[dataclasses.replace(group_of(base), cells=cells)])
    html = page.write(found, Store(tmp_path / "store"), tmp_path / "out").read_text()
    assert html.count('<figure class="chart"') == 6  # one less than with PrivLeak
    assert "the target has no number: no reference" in html


def test_a_share_of_next_to_nothing_is_no_point_of_a_study() -> None:
    known, useful = Column("verbmem"), Column("knowmem_retain")
    target: Means = {"knowledge": {known: 0.04}, "utility": {useful: 0.9}}
    own: Means = {"knowledge": {known: 0.045}, "utility": {useful: 0.45}}
    assert math.isnan(left_of(own, target, "knowledge"))
    assert left_of(own, target, "utility") == 0.5


def test_a_trial_is_no_success_where_the_target_had_nothing_to_lose() -> None:
    told = trial(1e-4, 50, 0.2, 0.6)
    said = "20% of the forget tokens are right, 80% in the target; 75% of the utility is kept"
    assert told.said == said
    origin = told.result.probes[0].model_copy(update={"forget": 0.02, "retain": 0.03})
    nothing = told.result.model_copy(update={"probes": (origin, *told.result.probes[1:])})
    said = told._replace(result=nothing).said
    assert "forgetting not measured (the target has 2%" in said
    assert "utility not measured (the target has 3%" in said
