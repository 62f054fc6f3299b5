"""The deployment matrix as a Markdown table, and how well what survives of the update ranks the formats.

    python scripts/matrix_table.py docs/results/deployment-matrix/summary.json [--store runs]

Per format and unlearned model: recovery of VerMem / KnowMem, and the gain. With a store, also the median seconds of quantizing and
measuring one model. Last line: JSON.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from scipy.stats import spearmanr

from remnant.functional.stats import auc
from remnant.methods import quantizer_spec

METRICS = ("verbmem", "knowmem_forget")
# More than this has come back: the judge's limit.
CAME_BACK = 0.2


def seconds(store: Path) -> dict[str, float]:
    """Median seconds of quantizing one model and measuring it, per quantizer's identity."""
    perturbed, measured = {}, defaultdict(list)
    for path in store.glob("objects/perturb-*/manifest.json"):
        m = json.loads(path.read_text(encoding="utf-8"))
        perturbed[path.parent.name] = json.dumps([m["spec"]["use"], m["spec"]["params"]], sort_keys=True), m["seconds"]
    for path in store.glob("objects/measure-*/manifest.json"):
        m = json.loads(path.read_text(encoding="utf-8"))
        if m["inputs"]["model"] in perturbed:
            key, took = perturbed[m["inputs"]["model"]]
            measured[key].append(took + m["seconds"])
    return {key: median(found) for key, found in measured.items()}


def main() -> None:
    """Print the table and the ranking."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("summary", type=Path)
    arguments.add_argument("--store", type=Path)
    given = arguments.parse_args()
    summary: dict[str, Any] = json.loads(given.summary.read_text(encoding="utf-8"))
    gains = {(s["model"], s["quantizer"]): s["gain"] for s in summary["survival"]}
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for r in summary["recovery"]:
        if r["recovery"] is not None and r["metric"] in METRICS:
            found[r["model"], r["quantizer"]][r["metric"]] = r["recovery"][0]
    models = sorted({m for m, _ in gains})
    formats = list(dict.fromkeys(q for _, q in gains))
    took = seconds(given.store) if given.store else {}
    print("| format | " + " | ".join(f"{m}: recovery | gain" for m in models) + (" | s |" if took else " |"))
    print("|---|" + "---|---|" * len(models) + ("---|" if took else ""))
    for q in formats:
        cells = [" / ".join(f"{found[m, q][k]:.2f}" for k in METRICS) + f" | {gains[m, q]:.2f}" for m in models]
        spec = quantizer_spec(q)
        key = json.dumps([spec.use, dict(spec.params)], sort_keys=True)
        print(f"| {q} | " + " | ".join(cells) + (f" | {took[key]:.1f} |" if key in took else " |"))
    pairs = [(gains[k], sum(v.values()) / len(v)) for k, v in found.items() if k in gains]
    back = [-g for g, r in pairs if r > CAME_BACK]
    stayed = [-g for g, r in pairs if r <= CAME_BACK]
    result = {
        "cells": len(pairs),
        "came_back": len(back),
        "gain_separates": auc(back, stayed),
        "largest_gain_that_came_back": round(max(-g for g in back), 3),
        "smallest_gain_that_stayed": round(min(-g for g in stayed), 3),
        "spearman": round(float(spearmanr([-g for g, _ in pairs], [r for _, r in pairs]).statistic), 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
