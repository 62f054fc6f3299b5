"""What lasts, by the rule of docs/lasting.md, from the kept results of a sweep.

python scripts/lasting.py [NAME [PLAIN]]

NAME of results below docs/results, PLAIN the run whose utility the others are held against. Prints
the tables in Markdown; the last line is one JSON object.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import kept

from remnant.corpus import of_role
from remnant.functional.stats import Interval, pooled
from remnant.records import Recovery, Shares
from remnant.report.pooled import Place, by_place

RESULTS = Path(__file__).parent.parent / "docs" / "results"
NAME, PLAIN = "deployment-matrix", "npo_gdr bf16"
# The rule: recovery under every format, its upper bound, and utility as a share of the plain run's.
MOST, MOST_BOUND, UTILITY = 0.05, 0.1, 0.9


class Arm(NamedTuple):
    """One way of unlearning: its worst format, and utility in full precision."""

    name: str
    recovery: Mapping[str, Interval]
    utility: float

    @property
    def worst(self) -> str:
        """The format under which most comes back."""
        return max(self.recovery, key=lambda form: self.recovery[form].value)

    def lasts(self, plain: float) -> bool:
        """Whether the rule is met."""
        found = self.recovery.values()
        return (
            all(r.value <= MOST and r.high <= MOST_BOUND for r in found)
            and self.utility >= UTILITY * plain
        )


def arms(summary: Mapping[str, Any]) -> list[Arm]:
    """All runs of a sweep, seeds and both kinds of knowledge taken together."""
    rows = [Recovery(**{k: r[k] for k in Recovery.model_fields}) for r in summary["recovery"]]
    found = by_place(rows, "recovery")
    forms = dict.fromkeys(place.form for place in found)
    useful = utilities(summary)
    made = []
    for name in dict.fromkeys(place.model for place in found):
        own = {form: shares(found, name, form) for form in forms}
        both = {form: pooled(values) for form, values in own.items() if values}
        made.append(Arm(name, both, useful[name]))
    return made


def shares(found: Mapping[Place, Sequence[Shares]], model: str, form: str) -> list[Shares]:
    """Of a model under a format: every kind of knowledge and every seed."""
    places = [Place(model, form, metric) for metric in of_role("knowledge")]
    return [share for place in places for share in found.get(place, [])]


def utilities(summary: Mapping[str, Any]) -> dict[str, float]:
    """Utility in full precision as a share of the target's, mean over seeds."""
    metric = next(m for m in of_role("utility") if any(c["metric"] == m for c in summary["cells"]))
    cells = [c for c in summary["cells"] if c["metric"] == metric and c["form"] == "full"]
    target = next(c["value"] for c in cells if c["model"] == "target")
    values: dict[str, list[float]] = {}
    for cell in cells:
        values.setdefault(cell["model"], []).append(cell["value"] / target)
    return {model: sum(found) / len(found) for model, found in values.items()}


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print one table in Markdown."""
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def shown(share: Interval) -> str:
    """A share with its interval."""
    return f"{share.value:.2f} [{share.low:.2f}, {share.high:.2f}]"


def main(name: str = NAME, against: str = PLAIN) -> None:
    """Print the league, every cell of it, and who lasts."""
    summary = kept.read(RESULTS / name / "summary.json.gz")
    found = arms(summary)
    plain = next(arm for arm in found if arm.name == against)
    forms = list(plain.recovery)
    retained = by_place(
        [Recovery(**{k: r[k] for k in Recovery.model_fields}) for r in summary["recovery"]],
        "retained",
    )
    table(
        ("run", "retained in full precision", "utility", "worst format", "recovery there", "lasts"),
        [
            (
                arm.name,
                shown(pooled(shares(retained, arm.name, "full"))),
                f"{arm.utility:.2f}",
                arm.worst,
                shown(arm.recovery[arm.worst]),
                "yes" if arm.lasts(plain.utility) else "no",
            )
            for arm in found
        ],
    )
    table(
        ("format", *(arm.name for arm in found)),
        [(form, *(shown(arm.recovery[form]) for arm in found)) for form in forms],
    )
    print(json.dumps({"lasting": [arm.name for arm in found if arm.lasts(plain.utility)]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
