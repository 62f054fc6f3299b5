"""What kept results say of every model in every form, in Markdown: knowledge, and how far on the
way from the never-read model (0) to the target (1) in the same form it is.

python scripts/way_table.py NAME [--short]

NAME of results below docs/results, or the summary.json of a run. VerMem, KnowMem and utility are
x100 with 95 % intervals. With --short a row for each model: both ways in every form. The last line
is one JSON object: the way by continuations of every unlearned model in every form.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kept

from remnant.records import FULL

KNOWN = ("verbmem", "knowmem_forget")
SHOWN = (*KNOWN, "knowmem_retain")
# Model, form and metric of a number.
Place = tuple[str, str, str]


class Told:
    """The numbers of a summary, by model, form and what they are of."""

    def __init__(self, summary: Mapping[str, Any]) -> None:
        """Of one seed; several are told one by one."""
        self.cells = {place(row): row for row in summary["cells"]}
        self.ways = {place(row): row["recovery_over_retrain"] for row in summary["recovery"]}
        self.gains = {(row["model"], row["form"]): row["gain"] for row in summary["survival"]}
        self.models = list(dict.fromkeys(model for model, _, _ in self.cells))
        self.forms = list(dict.fromkeys(form for _, form, _ in self.cells))

    def value(self, model: str, form: str, metric: str) -> str:
        """A number with its interval."""
        row = self.cells.get((model, form, metric))
        if row is None or row["value"] is None:
            return "not measured"
        return f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"

    def way(self, model: str, form: str, metric: str) -> str:
        """How far on the way, without the interval."""
        found = self.ways.get((model, form, metric))
        return "-" if found is None else f"{found[0]:.2f}"

    def gain(self, model: str, form: str) -> str:
        """The share of the update that a form leaves."""
        found = self.gains.get((model, form))
        return "-" if found is None else f"{found:.2f}"


def place(row: Mapping[str, Any]) -> Place:
    """Whose a number is and what of."""
    return row["model"], row["form"], row["metric"]


def whole(told: Told) -> Iterator[str]:
    """A row for every model and form."""
    yield "| model | form | VerMem | way | KnowMem | way | utility | gain |"
    yield "|---|---|---|---|---|---|---|---|"
    for model in told.models:
        for form in told.forms:
            values = [told.value(model, form, metric) for metric in SHOWN]
            ways = [told.way(model, form, metric) for metric in KNOWN]
            parts = [model, form, values[0], ways[0], values[1], ways[1], values[2]]
            yield f"| {' | '.join([*parts, told.gain(model, form)])} |"


def short(told: Told) -> Iterator[str]:
    """A row for every unlearned model: ways by continuations and questions in every form."""
    heads = ["model", "utility", *told.forms]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for model in dict.fromkeys(model for model, _, _ in told.ways):
        ways = (" / ".join(told.way(model, form, m) for m in KNOWN) for form in told.forms)
        yield f"| {' | '.join([model, utility(told, model), *ways])} |"


def utility(told: Told, model: str) -> str:
    """The share of the target's answers beside the forget text, in full precision."""
    own, target = (told.cells[name, FULL, SHOWN[-1]]["value"] for name in (model, "target"))
    return "not measured" if own is None else f"{own / target:.2f}"


def main(arguments: Sequence[str]) -> None:
    """Print the table of one sweep."""
    names = [a for a in arguments if not a.startswith("--")]
    if len(names) != 1:
        raise SystemExit(__doc__)
    path = Path(names[0])
    summary = kept.read(path if path.is_file() else kept.RESULTS / path / "summary.json.gz")
    seeds = {row["seed"] for row in summary["recovery"]}
    if len(seeds) != 1:
        raise SystemExit(f"{names[0]} has {len(seeds)} seeds; a table is of one.")
    told = Told(summary)
    print("\n".join((short if "--short" in arguments else whole)(told)))
    unlearned = dict.fromkeys(model for model, _, _ in told.ways)
    print(json.dumps({m: {f: told.way(m, f, KNOWN[0]) for f in told.forms} for m in unlearned}))


if __name__ == "__main__":
    main(sys.argv[1:])
