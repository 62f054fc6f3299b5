"""What tells better whether a grid brings back what was unlearned: the share of the update that it
leaves on the weights, or on the outputs that the forget text makes?

    python scripts/on_text_forecast.py STORE NAME of a finished run in it

For every unlearned model of the run and every grid that it was put on: what is left of the update
by both, and the recovery that was measured (mean over VerMem and KnowMem). Foretold is the recovery
of the runs of one name by a curve that is fitted to all others: "weights" as `remnant predict` does
it, "text" from the one gain on text; "shipped" is what `remnant predict` says today. Gains on text
are kept in STORE/on_text.json, so that a run that was cut off goes on.

The last line is one JSON object: runs, cases, most (the highest recovery), and by way the rank
correlation of what was foretold with what was measured and the mean error of it.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import kept
import numpy as np
from calibrate_forecast import Case, cases, curve, foresee, rank
from scipy.optimize import least_squares

from remnant.corpus.prepared import raw_texts
from remnant.durable import write_text
from remnant.flow import plan as planning
from remnant.flow.node import Node
from remnant.flow.store import Store
from remnant.forecast.forecast import calibration
from remnant.methods import grid
from remnant.model.load import open_model, open_tokenizer
from remnant.model.on_text import survival_on_text
from remnant.records import SweepSpec
from remnant.report.on_text import batches

KEPT = "on_text.json"


def on_text(store: Store, node: Node, grids: Sequence[str]) -> dict[str, float]:
    """The gains of an unlearned model on the forget documents that it was made from, by grid."""
    target, corpus = (store.path(node.inputs[role].name) for role in ("target", "corpus"))
    unlearned = str(store.path(node.name))
    before, after = open_model(str(target)), open_model(unlearned)
    pieces = batches(open_tokenizer(unlearned), after, raw_texts(corpus, "forget"))
    found = survival_on_text(before, after, {name: grid(name) for name in grids}, pieces)
    return {name: left.gain for name, left in found.items()}


def gains(store: Store, name: str, wanted: Mapping[str, set[str]]) -> dict[str, dict[str, float]]:
    """By run and grid; what was found is kept at once."""
    file = store.root / KEPT
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    held = json.loads((store.root / "names" / f"{name}.json").read_text(encoding="utf-8"))
    nodes = planning.plan(SweepSpec.model_validate(held["sweep"]))
    for node in (n for n in nodes if n.stage == "unlearn"):
        run = f"{node.label.corpus} {node.label.model}"
        if run in wanted and run not in found:
            found[run] = on_text(store, node, sorted(wanted[run]))
            write_text(file, json.dumps(found))
            print(run, {g: round(gain, 3) for g, gain in found[run].items()}, flush=True)
    return found


def by_text(known: Mapping[Case, float]) -> dict[Case, float]:
    """The recovery of every case by a curve through the others' gains on text."""
    told = {}
    for name in {c.name for c in known}:
        others = [c for c in known if c.name != name]
        gain = np.array([known[c] for c in others])
        wanted = np.clip([c.recovery for c in others], 0, 1)

        def residuals(x: Sequence[float], gain=gain, wanted=wanted):  # type: ignore[no-untyped-def]
            return np.concatenate([_curve(x, gain) - wanted, 0.01 * np.asarray(x)])

        x = least_squares(residuals, (2.0, -5.0)).x
        told |= {c: float(_curve(x, np.array(known[c]))) for c in known if c.name == name}
    return told


def _curve(x, gain):  # type: ignore[no-untyped-def]
    return 1 / (1 + np.exp(-(x[0] + x[1] * gain)))


def shipped(found: Sequence[Case]) -> dict[Case, float]:
    """What the forecast says with the numbers that it ships with."""
    by = calibration()
    x = (by.intercept, by.early, by.late)
    return {c: float(curve(x, c.early, c.late)) for c in found}


def told(found: Sequence[Case], way: Mapping[Case, float]) -> dict[str, float]:
    """How well a way foretells."""
    error = np.mean([abs(way[c] - np.clip(c.recovery, 0, 1)) for c in found])
    return {"spearman": round(rank(found, dict(way)), 3), "error": round(float(error), 3)}


def main() -> None:
    """Print all cases and, last, how well each way foretells."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("store", type=Path)
    asked.add_argument("name")
    given = asked.parse_args()
    store = Store(given.store).open()
    found = cases(kept.read(store.root / "reports" / given.name / "summary.json"))
    wanted: dict[str, set[str]] = {}
    for case in found:
        wanted.setdefault(case.name, set()).add("+".join(case.steps))
    left = gains(store, given.name, wanted)
    text = {c: left[c.name]["+".join(c.steps)] for c in found}
    for case, gain in text.items():
        print(f"{case.name:32} {case.steps[0]:12} weights {case.gain:.2f} text {gain:.2f} "
              f"recovery {case.recovery:.2f}")  # fmt: skip
    ways = {"shipped": shipped(found), "weights": foresee(found), "text": by_text(text)}
    most = max(c.recovery for c in found)
    counts = {"runs": len(wanted), "cases": len(found), "most": round(most, 3)}
    print(json.dumps(counts | {name: told(found, way) for name, way in ways.items()}))


if __name__ == "__main__":
    main()
