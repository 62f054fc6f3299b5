"""How fast unlearned models learn the forget text again, beside one that never read it.

python scripts/relearning.py SUMMARY...

SUMMARY: summary.json of an audit or a sweep whose rule has access to weights. Prints for each way
of relearning the curve of every model over the steps, x100 of the tokens of forget text that was
not among what is learned; the area over the never-read model's curve as a share of the target's;
and after how many steps half of what the target knows beyond it is there. In Markdown; the last
line is one JSON object.
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


def curves(cells: Sequence[Mapping[str, Any]]) -> Curves:
    """The curves of all models of one corpus and seed that have every point."""
    values = {
        (cell["model"], cell["metric"]): cell["value"]
        for cell in cells
        if cell["form"] == FULL and cell["value"] is not None
    }
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
    yield f"| model | {' | '.join(heads)} | area | half after |"
    yield "|---" * (len(heads) + 3) + "|"
    for model in (UNREAD, *(m for m in found if m not in (UNREAD, TARGET)), TARGET):
        own = found[model][test]
        shown = " | ".join(f"{value:.1f}" for value in own)
        needed = steps_until(ALL_STEPS, own, level)
        half = f"> {STEPS[-1]}" if math.isinf(needed) else f"{needed:.0f}"
        yield f"| {model} | {shown} | {area(own, target, unread):.2f} | {half} |"


def area(own: Sequence[float], target: Sequence[float], unread: Sequence[float]) -> float:
    """The area between a curve and the never-read model's, over that between the target's and
    it.
    """
    high, full, low = (float(height(ALL_STEPS, np.array([c]).T)[0]) for c in (own, target, unread))
    return (high - low) / (full - low)


def main(paths: Sequence[str]) -> None:
    """Print all tables."""
    areas: dict[str, float] = {}
    for path in paths:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        for group in dict.fromkeys((cell["corpus"], cell["seed"]) for cell in cells):
            own = [cell for cell in cells if (cell["corpus"], cell["seed"]) == group]
            found = curves(own)
            if not {TARGET, UNREAD} <= set(found):
                raise SystemExit(f"{path} has no curves of a target and a never-read model.")
            for test in found[TARGET]:
                print(f"\n{path}, {group[0]}, seed {group[1]}, {test}: {ATTACKS[test].meaning}\n")
                print("\n".join(table(found, test)))
                target, unread = found[TARGET][test], found[UNREAD][test]
                judged = (m for m in found if m not in (TARGET, UNREAD))
                areas |= {
                    f"{path}: {group[0]}, {group[1]}, {m}, {test}": area(
                        found[m][test], target, unread
                    )
                    for m in judged
                }
    print(json.dumps({name: round(value, 3) for name, value in areas.items()}))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(sys.argv[1:])
