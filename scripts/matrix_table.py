"""The deployment matrix as a Markdown table, and how well what survives of the update ranks the
formats.

    python scripts/matrix_table.py docs/results/deployment-matrix/summary.json.gz [--store runs]
        [--intervals MODEL ...]

Per format and unlearned model: recovery of VerMem / KnowMem and the gain, means over seeds; then
what the runtimes' own kernels change. With a store, also the median seconds of quantizing and
measuring one model, and how far the kernels' logits are from the dense copy's. Last line: JSON.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import kept
from scipy.stats import spearmanr

from remnant.corpus import of_role
from remnant.functional.stats import auc, pooled
from remnant.methods import step
from remnant.records import Recovery, Shares
from remnant.report.pooled import Place, by_place

# More than this has come back: the audit's limit.
CAME_BACK = 0.2


def seconds(store: Path) -> dict[str, float]:
    """Median seconds of quantizing one model and measuring it, per quantizer's identity."""
    transformed, measured = {}, defaultdict(list)
    for path in store.glob("objects/transform-*/manifest.json"):
        m = json.loads(path.read_text(encoding="utf-8"))
        transformed[path.parent.name] = (
            json.dumps([m["spec"]["use"], m["spec"]["params"]], sort_keys=True),
            m["seconds"],
        )
    for path in store.glob("objects/measure-*/manifest.json"):
        m = json.loads(path.read_text(encoding="utf-8"))
        if m["inputs"]["model"] in transformed:
            key, took = transformed[m["inputs"]["model"]]
            measured[key].append(took + m["seconds"])
    return {key: median(found) for key, found in measured.items()}


def kernels_apart(store: Path) -> dict[str, float]:
    """Per format, relative difference of logits between the runtime's kernels and the dense copy.

    The largest of all deployed models.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for path in store.glob("objects/deploy-*/manifest.json"):
        m = json.loads(path.read_text(encoding="utf-8"))
        if apart := m["summary"].get("against_dense_copy"):
            found[json.dumps([m["spec"]["use"], m["spec"]["params"]], sort_keys=True)].append(
                apart["relative"]
            )
    return {key: max(values) for key, values in found.items()}


def key_of(name: str) -> str:
    """What a quantizer is called in a store's manifests."""
    spec = step(name).spec
    return json.dumps([spec.use, dict(spec.params)], sort_keys=True)


def print_formats(
    found: Mapping[Place, Sequence[Shares]],
    gains: dict[tuple[int, str, str], float],
    took: dict[str, float],
) -> None:
    """Mean recovery over seeds and mean gain, per format and model."""
    models = sorted({m for _, m, _ in gains})
    print(
        "| format | "
        + " | ".join(f"{m}: recovery | gain" for m in models)
        + (" | s |" if took else " |")
    )
    print("|---|" + "---|---|" * len(models) + ("---|" if took else ""))
    for q in dict.fromkeys(q for _, _, q in gains):
        cells = []
        for m in models:
            gain = fmean(g for (_, n, r), g in gains.items() if (n, r) == (m, q))
            there = [found[p] for k in of_role("knowledge") if (p := Place(m, q, k)) in found]
            means = [fmean(value for value, _, _ in seeds) for seeds in there]
            cells.append(" / ".join(f"{x:.2f}" for x in means) + f" | {gain:.2f}")
        print(
            f"| {q} | "
            + " | ".join(cells)
            + (f" | {took[key_of(q)]:.1f} |" if key_of(q) in took else " |")
        )


def print_intervals(found: Mapping[Place, Sequence[Shares]], models: Sequence[str]) -> None:
    """Mean recovery over seeds with 95 % intervals over items, per format, of some models."""
    known = of_role("knowledge")
    shown = [(m, k) for m in models for k in known if any(p.metric == k for p in found)]
    print("\n| format | " + " | ".join(f"{m}: {k}" for m, k in shown) + " |")
    print("|---|" + "---|" * len(shown))
    for form in dict.fromkeys(p.form for p in found):
        places = [Place(m, form, k) for m, k in shown]
        means = [pooled(found[p]) if found.get(p) else None for p in places]
        cells = ["-" if x is None else f"{x.value:.2f} [{x.low:.2f}, {x.high:.2f}]" for x in means]
        if any(means):
            print(f"| {form} | " + " | ".join(cells) + " |")


def print_packed(
    found: dict[tuple[int, str, str], dict[str, float]],
    kernels: Mapping[str, str],
    apart: dict[str, float],
) -> None:
    """Recovery by the runtime's own kernels less that of the dense copy: mean and largest over
    models and seeds.

    ``kernels``: the form that a runtime computes -> that of its dense copy.
    """
    known = [k for k in of_role("knowledge") if any(k in v for v in found.values())]
    print(
        "\n| format | "
        + " | ".join(f"{k}: mean | largest" for k in known)
        + " | logits apart |\n|---|---|---|---|---|---|"
    )
    for packed in dict.fromkeys(q for _, _, q in found if q in kernels):
        q, cells = kernels[packed], list[str]()
        for k in known:
            dense = {(s, m): v[k] for (s, m, r), v in found.items() if r == q and k in v}
            values = [
                v[k] - dense[s, m]
                for (s, m, r), v in found.items()
                if r == packed and k in v and (s, m) in dense
            ]
            cells.append(f"{fmean(values):.3f} | {max(values, key=abs):.3f}")
        print(f"| {q} | " + " | ".join(cells) + f" | {apart.get(key_of(q), float('nan')):.2g} |")


def main() -> None:
    """Print the tables and the ranking."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("summary", type=Path)
    arguments.add_argument("--store", type=Path)
    arguments.add_argument("--intervals", nargs="*", default=[], metavar="MODEL")
    given = arguments.parse_args()
    summary: dict[str, Any] = kept.read(given.summary)
    gains = {(s["seed"], s["model"], s["form"]): s["gain"] for s in summary["survival"]}
    found: dict[tuple[int, str, str], dict[str, float]] = defaultdict(dict)
    for r in summary["recovery"]:
        if r["recovery"] is not None:
            found[r["seed"], r["model"], r["form"]][r["metric"]] = r["recovery"][0]
    recoveries = [Recovery(**{k: r[k] for k in Recovery.model_fields}) for r in summary["recovery"]]
    kernels = {r.form: r.behind(*r.steps).form for r in recoveries if r.packed}
    over_seeds = by_place(recoveries, "recovery")
    print_formats(over_seeds, gains, seconds(given.store) if given.store else {})
    if given.intervals:
        print_intervals(over_seeds, given.intervals)
    print_packed(found, kernels, kernels_apart(given.store) if given.store else {})
    pairs = [(gains[k], sum(v.values()) / len(v)) for k, v in found.items() if k in gains]
    back = [-g for g, r in pairs if r > CAME_BACK]
    stayed = [-g for g, r in pairs if r <= CAME_BACK]
    result = {
        "cells": len(pairs),
        "came_back": len(back),
        "gain_separates": auc(back, stayed),
        "largest_gain_that_came_back": round(max(-g for g in back), 3),
        "smallest_gain_that_stayed": round(min(-g for g in stayed), 3),
        "spearman": round(
            float(spearmanr([-g for g, _ in pairs], [r for _, r in pairs]).statistic), 3
        ),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
