"""How fast unlearned models learn the forget text again, beside one that never read it.

python scripts/relearning.py SUMMARY...

SUMMARY: summary.json of an audit or a sweep whose rule has access to weights. Prints for each way
of relearning the curve of every model over the steps, x100 of the tokens of forget text that was
not among what is learned; the area under it as a multiple of the never-read model's, and the area
between both as a share of the target's; after how many steps half of what the target knows beyond
it is there, and that as a multiple of the never-read model's steps. Before that what the other
tests on weights find of the same tokens, and the utility as a share of the target's. In Markdown;
the last line is one JSON object: both areas of every run.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from remnant.attacks import ATTACKS, STEPS, UNCHANGED
from remnant.functional.curves import height, steps_until
from remnant.metrics import RELEARNED
from remnant.records import FULL

ALL_STEPS = (0, *STEPS)
TARGET, UNREAD = "target", "retrain"
# Of one corpus and seed: model -> test -> its curve.
Curves = Mapping[str, Mapping[str, Sequence[float]]]


def in_full(cells: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """The numbers in full precision, by model and metric."""
    return {
        (cell["model"], cell["metric"]): cell["value"]
        for cell in cells
        if cell["form"] == FULL and cell["value"] is not None
    }


def curves(cells: Sequence[Mapping[str, Any]]) -> Curves:
    """The curves of all models of one corpus and seed that have every point."""
    values = in_full(cells)
    found: dict[str, dict[str, list[float]]] = {}
    for model in dict.fromkeys(model for model, _ in values):
        for test in (n for n, attack in ATTACKS.items() if attack.kind == RELEARNED):
            points = [(model, name) for name in (UNCHANGED, *ATTACKS[test].behind)]
            if all(point in values for point in points):
                found.setdefault(model, {})[test] = [float(values[point]) for point in points]
    return found


def table(found: Curves, test: str) -> Iterator[str]:
    """One way of relearning: a row for every model."""
    target, unread = found[TARGET][test], found[UNREAD][test]
    level = (target[0] + unread[0]) / 2
    heads = [f"{step} steps" for step in ALL_STEPS]
    heads += ["area, x unread", "of the target's", "half after", "x unread"]
    yield f"| model | {' | '.join(heads)} |"
    yield "|---" * (len(heads) + 1) + "|"
    steps = steps_until(ALL_STEPS, unread, level)
    for model in (UNREAD, *(m for m in found if m not in (UNREAD, TARGET)), TARGET):
        own = found[model][test]
        shown = " | ".join(f"{value:.1f}" for value in own)
        needed = steps_until(ALL_STEPS, own, level)
        half = f"> {STEPS[-1]}" if math.isinf(needed) else f"{needed:.0f}"
        times = "" if math.isinf(needed) or math.isinf(steps) else f"{needed / steps:.2f}"
        areas = f"{ratio(own, unread):.2f} | {area(own, target, unread):.2f}"
        yield f"| {model} | {shown} | {areas} | {half} | {times} |"


def others(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A row for every model: its utility, and what tests on weights that teach nothing find."""
    values = in_full(cells)
    taught = {n for n, attack in ATTACKS.items() if attack.kind == RELEARNED}
    tests = [n for n in ATTACKS if n not in taught and (TARGET, n) in values]
    heads = ["model", "utility", UNCHANGED, *tests]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for model in dict.fromkeys(model for model, _ in values):
        useful = [values.get((m, "knowmem_retain")) for m in (model, TARGET)]
        utility = f"{useful[0] / useful[1]:.2f}" if all(useful) else "-"
        found = (values.get((model, name)) for name in (UNCHANGED, *tests))
        shown = ["-" if value is None else f"{value:.1f}" for value in found]
        yield f"| {' | '.join([model, utility, *shown])} |"


def area(own: Sequence[float], target: Sequence[float], unread: Sequence[float]) -> float:
    """The area between a curve and the never-read model's, over that between the target's and
    it.
    """
    high, full, low = map(under, (own, target, unread))
    return (high - low) / (full - low)


def ratio(own: Sequence[float], unread: Sequence[float]) -> float:
    """The area under a curve as a multiple of that under the never-read model's."""
    return under(own) / under(unread)


def under(curve: Sequence[float]) -> float:
    """The area under a curve, over the length of the axis."""
    return float(height(ALL_STEPS, np.array([curve]).T)[0])


def main(paths: Sequence[str]) -> None:
    """Print all tables."""
    areas: dict[str, tuple[float, float]] = {}
    for path in paths:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        for group in dict.fromkeys((cell["corpus"], cell["seed"]) for cell in cells):
            own = [cell for cell in cells if (cell["corpus"], cell["seed"]) == group]
            found = curves(own)
            if not {TARGET, UNREAD} <= set(found):
                raise SystemExit(f"{path} has no curves of a target and a never-read model.")
            print("\n".join(others(own)))
            for test in found[TARGET]:
                print(f"\n{path}, {group[0]}, seed {group[1]}, {test}: {ATTACKS[test].meaning}\n")
                print("\n".join(table(found, test)))
                target, unread = found[TARGET][test], found[UNREAD][test]
                judged = (m for m in found if m not in (TARGET, UNREAD))
                for model in judged:
                    curve = found[model][test]
                    both = ratio(curve, unread), area(curve, target, unread)
                    areas[f"{group[0]}, {group[1]}, {model}, {test}"] = both
    print(json.dumps({name: [round(v, 3) for v in both] for name, both in areas.items()}))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(sys.argv[1:])
