"""Tables and figures of docs/why.md, from the results under docs/results/catastrophic-failure/ and
from the grids themselves.

python scripts/why.py                prints the tables in Markdown and writes docs/figures/why-*.svg
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import kept
import numpy as np
from matplotlib import pyplot

from remnant.corpus import of_role, short_title
from remnant.forecast.forecast import calibration, forecast
from remnant.functional.stats import pooled
from remnant.functional.survival import Survival
from remnant.records import Recovery
from remnant.report.pooled import by_place

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
SWEEPS = ("catastrophic-failure", "sure-ablation", "gptq-against-rounding", "deployment-matrix")
FIGURES = ROOT / "docs" / "figures"
REGIMES = ("bf16", "fp32", "bf16 large rate", "sure")
COLOURS = {"bf16": "#c8501e", "fp32": "#0b6fb8", "bf16 large rate": "#8a4fbf", "sure": "#2f8f5b"}


def regime(model: str) -> tuple[str, str]:
    """The method and the regime in a model's name."""
    method, _, rest = model.partition(" ")
    return method, rest


def recoveries(summary: dict[str, Any]) -> list[Recovery]:
    """All recoveries of a summary, which says of which corpus and seed they are besides."""
    rows = summary["recovery"]
    return [Recovery(**{k: row[k] for k in Recovery.model_fields}) for row in rows]


def shown(intervals: Sequence[Sequence[float]] | None) -> str:
    """A pooled share, or a dash."""
    return "-" if not intervals else "{:.2f} [{:.2f}, {:.2f}]".format(*pooled(intervals))


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print one table in Markdown."""
    print(f"\n### {title}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def tables(summary: dict[str, Any]) -> None:
    """Retained shares per grid, recovery, what survives, and utility, on one corpus."""
    every = recoveries(summary)
    retained, recovery = by_place(every, "retained"), by_place(every, "recovery")
    models = list(dict.fromkeys(r["model"] for r in summary["recovery"]))
    grids = list(dict.fromkeys(r["form"] for r in summary["recovery"]))
    known = [m for m in of_role("knowledge") if any(r.metric == m for r in every)]
    for metric in known:
        table(
            f"{metric}: share of the target's at the same precision that is retained",
            ("run", *grids),
            [(m, *(shown(retained.get((m, q, metric))) for q in grids)) for m in models],
        )
        table(
            f"{metric}: recovery, the part of what was unlearned that is there again",
            ("run", *grids[1:]),
            [(m, *(shown(recovery.get((m, q, metric))) for q in grids[1:])) for m in models],
        )
    both = {
        (m, q): [shares for k in known for shares in retained.get((m, q, k), [])]
        for m in models
        for q in grids
    }
    table(
        (
            f"mean of {' and '.join(map(short_title, known))}, as the paper counts: share of the "
            "target's at the same precision that is retained"
        ),
        ("run", *grids),
        [(m, *(shown(both[m, q]) for q in grids)) for m in models],
    )
    there = {place: mean_retained(found) for place, found in retained.items()}
    apart = {
        (m, q, k): [[x * (1 - there[m, "full", k]) for x in v] for v in found]
        for (m, q, k), found in recovery.items()
    }
    for title, metrics in ({m: [m] for m in known} | {"mean of both": known}).items():
        differences = {
            (m, q): [v for k in metrics for v in apart.get((m, q, k), [])]
            for m in models
            for q in grids[1:]
        }
        table(
            (
                f"{title}: what is retained behind the grid less what is retained in full "
                "precision, both as shares of the target's"
            ),
            ("run", *grids[1:]),
            [(m, *(shown(differences[m, q]) for q in grids[1:])) for m in models],
        )
    kept = utility(summary)
    table(
        "utility: share of the target's at the same precision",
        ("run", *grids),
        [(m, *(kept.get((m, q), "-") for q in grids)) for m in models],
    )
    survival: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for s in summary["survival"]:
        survival.setdefault((s["model"], s["form"]), []).append(s)
    for field in (
        "gain",
        "cosine",
        "signal_to_noise",
        "in_zero_bin",
        "same_codes",
        "update_over_scale",
    ):
        mean = {
            place: np.mean([s[field] or 0.0 for s in found]) for place, found in survival.items()
        }
        rows = [
            (m, *(f"{mean[m, q]:.2f}" if (m, q) in mean else "-" for q in grids[1:]))
            for m in models
        ]
        table(f"what survives: {field}", ("run", *grids[1:]), rows)


def mean_retained(found: Sequence[Sequence[float]]) -> float:
    """The middle of some intervals' middles."""
    return sum(v for v, _, _ in found) / len(found)


def utility(summary: dict[str, Any]) -> dict[tuple[str, str], str]:
    """The first measure of utility against the target's under the same grid, mean over seeds."""
    metrics = {c["metric"] for c in summary["cells"]}
    first = next(m for m in of_role("utility") if m in metrics)
    cells = [c for c in summary["cells"] if c["metric"] == first and c["value"] is not None]
    target = {(c["corpus"], c["form"]): c["value"] for c in cells if c["model"] == "target"}
    shares: dict[tuple[str, str], list[float]] = {}
    for c in cells:
        if c["model"] not in ("target", "retrain"):
            shares.setdefault((c["model"], c["form"]), []).append(
                c["value"] / target[c["corpus"], c["form"]]
            )
    return {place: f"{np.mean(found):.2f}" for place, found in shares.items()}


def save(figure: Any, name: str) -> None:
    """Write a figure without a date and with fixed names inside, so that equal data give equal
    files.
    """
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / f"why-{name}.svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    path = FIGURES / f"why-{name}.svg"
    path.write_text(re.sub(r"[ \t]+$", "", path.read_text(), flags=re.MULTILINE))


def figure_recovery(summary: dict[str, Any]) -> None:
    """Gain against measured recovery, one dot per run, grid and metric, with the forecast."""
    figure, axes = pyplot.subplots(figsize=(6.4, 4))
    gain = {(s["corpus"], s["seed"], s["model"], s["form"]): s["gain"] for s in summary["survival"]}
    for name in REGIMES:
        dots = [
            (gain[place], r["recovery"][0])
            for r in summary["recovery"]
            if r["recovery"] is not None
            and (place := (r["corpus"], r["seed"], r["model"], r["form"])) in gain
            and regime(r["model"])[1] == name
        ]
        if dots:
            axes.scatter(
                *zip(*dots, strict=True),
                s=12,
                alpha=0.5,
                color=COLOURS[name],
                label=name,
                edgecolors="none",
            )
    line = np.linspace(0, 1.4, 60)
    curve = [
        f.recovery
        for g in line
        if (f := forecast(Survival(float(g), 0.5, None, None, None, None, None), calibration()))
    ]
    axes.plot(line, curve, color="#3b3b3b", linewidth=1, label="forecast at this gain everywhere")
    axes.set_xlabel("gain: part of the update that is left behind the grid")
    axes.set_ylabel("measured recovery")
    axes.set_xlim(-0.05, 1.7)
    axes.set_ylim(-0.6, 1.2)
    axes.legend(frameon=False, fontsize=8)
    save(figure, "gain-and-recovery")


def figure_bins() -> None:
    """Left: an update behind a grid, for a weight anywhere in its bin.

    Right: which weights a bfloat16 step can move.
    """
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2))
    size = np.linspace(0, 1.5, 200)
    rest = np.mod(size, 1)
    left.plot(size, size, color="#0b6fb8", label="expected update behind the grid")
    left.fill_between(
        size,
        size - np.sqrt(rest * (1 - rest)),
        size + np.sqrt(rest * (1 - rest)),
        color="#0b6fb8",
        alpha=0.15,
        label="one sigma of noise",
    )
    left.set_xlabel("update / step, weight anywhere in its bin")
    left.set_ylabel("update behind the grid / step")
    left.legend(frameon=False, fontsize=8)
    exponent = np.arange(-14, 0)
    movable = 2.0**exponent
    for lr, colour in ((1e-5, "#c8501e"), (1e-4, "#8a4fbf"), (1e-3, "#2f8f5b")):
        right.step(
            movable,
            np.where(lr >= movable * 2.0**-8, 1.0, 0.0),
            where="post",
            color=colour,
            label=f"rate {lr:g}",
        )
    right.set_xscale("log", base=2)
    right.set_xlabel("|w|")
    right.set_ylabel("does a step of bfloat16 move it?")
    right.legend(frameon=False, fontsize=8)
    save(figure, "bins-and-bfloat16")


def main() -> None:
    """Everything that the page shows."""
    matplotlib.rcParams["svg.hashsalt"] = "remnant"
    figure_bins()
    summaries = {name: kept.read(RESULTS / name / "summary.json.gz") for name in SWEEPS}
    for i, (name, summary) in enumerate(summaries.items()):
        for corpus in dict.fromkeys(c["corpus"] for c in summary["cells"]):
            print(
                f"{chr(10) * bool(i or corpus != summary['cells'][0]['corpus'])}## {name}, {corpus}"
            )
            tables(
                {
                    part: [row for row in summary[part] if row["corpus"] == corpus]
                    for part in ("cells", "recovery", "survival")
                }
            )
    figure_recovery(summaries["catastrophic-failure"])


if __name__ == "__main__":
    main()
