"""What relearning finds of an unlearned model that is distilled into a shrunk and perturbed copy of
itself (UNDO), and what that costs.

python scripts/undo.py TARGET UNLEARNED UNREAD CORPUS [--runs 0.3x85,0.6x170] [--store runs]

Folders, or artefacts of the store. A run is SHARExSTEPS, or SHARExSTEPSxRATE; the share is what the
weights are shrunk by. The text of retain alone is read. UNLEARNED may be TARGET. Everything is kept
in the store, and a call that was cut off goes on. Prints a row for UNLEARNED itself and for every
run: utility as a share of the target's, and the area under the curves of relearning as multiples of
the never-read model's and as a share of the target's (`scripts/relearning.py`), the worst of all
ways to learn it again. The last line is one JSON object.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from relearning import TARGET, UNREAD, area, curves, in_full, ratio

import remnant

RATE = 4e-3
JUDGED, USEFUL = "unlearned", "knowmem_retain"
# What is distilled, and how: all that the unlearned model says of the text that it keeps.
COMMON: dict[str, Any] = {
    "terms": [{"use": "klr"}], "retain": ["retain1", "retain2"], "train": "all",
    "schedule": "cosine", "warmup": 5, "batch_size": 8, "pack_tokens": 96, "beta2": 0.95,
    "select": "last", "probe_every": 17,
}  # fmt: skip


class Run(NamedTuple):
    """One distillation."""

    share: float
    steps: int
    lr: float = RATE

    @classmethod
    def of(cls, words: str) -> "Run":
        """As it is written."""
        share, steps, *rate = words.split("x")
        return cls(float(share), int(steps), *map(float, rate))


class Found(NamedTuple):
    """What was found of a model: its word, the share of the target's utility that it has, and the
    worst areas under its curves.
    """

    word: str
    utility: float
    over_unread: float
    of_target: float

    @property
    def row(self) -> str:
        """As cells of a table."""
        return f"{self.utility:.2f} | {self.over_unread:.2f} | {self.of_target:.2f} | {self.word}"


class Lab(NamedTuple):
    """The models and the text that a call is about."""

    target: str
    unlearned: str
    unread: str
    corpus: str
    store: str

    def distilled(self, run: Run) -> remnant.Model:
        """The unlearned model behind one distillation."""
        own = {"shrink_perturb": run.share, "steps": run.steps, "lr": run.lr}
        return remnant.unlearn(
            self.unlearned, self.corpus, store=self.store, progress=True, **COMMON, **own
        )

    def found(self, model: Any) -> Found:
        """What an audit with access to weights finds of a model."""
        made = remnant.audit(
            self.target, model, self.corpus, retrain=self.unread, store=self.store,
            progress=True, access="weights",
        )  # fmt: skip
        return told(made)


def told(made: remnant.Audit) -> Found:
    """The numbers of one audit."""
    cells = [cell.model_dump() | {"form": cell.form} for cell in made.group.cells]
    values = in_full(cells)
    known = curves(cells)
    tests = [(known[JUDGED][t], known[TARGET][t], known[UNREAD][t]) for t in known[TARGET]]
    return Found(
        made.verdicts[0].outcome,
        values[JUDGED, USEFUL] / values[TARGET, USEFUL],
        max(ratio(own, unread) for own, _, unread in tests),
        max(area(*test) for test in tests),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Distil, audit and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("target", "unlearned", "unread", "corpus"):
        parser.add_argument(name)
    parser.add_argument("--runs", default="0.3x85,0.6x170", help="SHARExSTEPS[xRATE], with commas")
    parser.add_argument("--store", default="runs")
    asked = vars(parser.parse_args(arguments))
    runs = [Run.of(words) for words in asked.pop("runs").split(",")]
    lab = Lab(**asked)
    print("| shrunk by | steps | utility | area, x unread | of the target's | called |", flush=True)
    print("|---|---|---|---|---|---|")
    rows = {"0x0": lab.found(lab.unlearned)}
    print(f"| not at all | 0 | {rows['0x0'].row} |", flush=True)
    for run in runs:
        found = rows[f"{run.share:g}x{run.steps}"] = lab.found(lab.distilled(run))
        print(f"| {run.share:g} | {run.steps} | {found.row} |", flush=True)
    print(
        json.dumps({name: [round(f.utility, 3), round(f.of_target, 3)] for name, f in rows.items()})
    )


if __name__ == "__main__":
    main()
