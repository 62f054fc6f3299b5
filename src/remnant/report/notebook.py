"""Results as small pieces of HTML, for where people look at values: a notebook's cell."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from remnant.forecast.forecast import Forecast
from remnant.functional.survival import Survival
from remnant.records import Cell, Record
from remnant.report import table

if TYPE_CHECKING:
    from jinja2 import Environment


def environment() -> "Environment":
    """The templates of all pages: everything escaped, nothing undefined."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # only pages need it

    return Environment(
        loader=PackageLoader("remnant", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )


def fields(title: str, path: Path, result: Record) -> str:
    """A record as a table of names and values, below the folder that it belongs to."""
    rows = [(n, v) for n, v in result.model_dump(mode="json").items() if v not in (None, [], {})]
    return _rendered(title=f"{title} {path}", head=(), rows=rows)


def cells(found: Sequence[Cell]) -> str:
    """Numbers with their intervals."""
    rows = [(c.metric, table.number(c), c.n, c.status) for c in found]
    head = ("metric", "x100 [95 % interval]", "items", "status")
    return _rendered(title="", head=head, rows=rows)


def audit(results: table.Results) -> str:
    """The verdicts, one line per form, below what they amount to."""
    rows = [(v.form, v.outcome, v.reason) for group in results.groups for v in group.verdicts]
    return _rendered(title=results.sweep.title, head=("form", "verdict", "reason"), rows=rows)


def forecast(
    said: str, whole: Mapping[str, Survival], forecasts: Mapping[str, Forecast | None]
) -> str:
    """What every grid is expected to bring back, below the sentence that sums it up."""
    rows = []
    for name, kept in whole.items():
        found = forecasts[name]
        told = f"{found.recovery:.2f} [{found.low:.2f}, {found.high:.2f}]" if found else "-"
        rows.append((name, told, "-" if kept.gain is None else f"{kept.gain:.2f}"))
    return _rendered(title=said, head=("grid", "forecast of recovery", "gain"), rows=rows)


def _rendered(**values: object) -> str:
    return environment().get_template("notebook.html.j2").render(**values)
