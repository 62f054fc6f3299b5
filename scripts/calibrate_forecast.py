"""Fit the forecast of `remnant predict` to measured recoveries and test it on runs that it has not
seen.

A run is foreseen by a fit to all others but those of its name: other seeds, and other targets, of
one method in one regime.

Reads the summaries of finished sweeps, writes src/remnant/forecast/calibration.json and prints what
it wrote as one JSON line.

    python scripts/calibrate_forecast.py
    docs/results/{catastrophic-failure,mixed-precision,deployment-matrix,real-five}/summary.json.gz
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import kept as results
import numpy as np
from scipy.optimize import least_squares
from scipy.stats import spearmanr

from remnant.forecast.forecast import kept
from remnant.formats.table import decided_by_text, keys_of
from remnant.functional.stats import auc, pooled

OUT = Path(__file__).parent.parent / "src" / "remnant" / "forecast" / "calibration.json"
# A run that forgot less than this has nothing whose return could be measured.
MIN_FORGOTTEN = 0.15
# The audit's limit: more than this has come back.
CAME_BACK = 0.2
# A run can tell degrees apart if some grid brings back at least so much; the others measure noise
# around zero under every grid.
MOST = 0.5


class Case(NamedTuple):
    """One run under one grid: what survives of its update, and the recovery that was measured.

    ``recovery``: against the target behind the same grid, as `forecast.Calibration` defines it;
    ``reopened``: (qU - U) / (T - U), against the target in full precision, as the audit has it;
    ``spread``: its standard error over items, from the audit's intervals.
    """

    name: str
    run: str
    steps: tuple[str, ...]
    early: float
    late: float
    gain: float
    recovery: float
    reopened: float
    spread: float


def cases(summary: dict[str, Any]) -> list[Case]:
    """All grids of all runs that had forgotten something in full precision.

    Means over VerMem and KnowMem.
    """
    retained: dict[tuple[Any, ...], dict[str, float]] = {}
    reopened: dict[tuple[Any, ...], list[list[float]]] = {}
    for r in summary["recovery"]:
        place = (r["corpus"], r["seed"], r["model"], r["form"])
        if r["retained"] is not None:
            retained.setdefault(place, {})[r["metric"]] = r["retained"][0]
            if r["recovery"] is not None:
                reopened.setdefault(place, []).append(r["recovery"])
    found = []
    for s in summary["survival"]:
        place, grid = (s["corpus"], s["seed"], s["model"]), s["form"]
        left, now = (retained.get((*place, form), {}) for form in ("full", grid))
        # A coarse grid may leave the target too little of one kind for it to say anything.
        both = [metric for metric in left if metric in now]
        if not both or (*place, grid) not in reopened or decided_by_text(s["steps"]):
            continue
        before, behind = (sum(r[m] for m in both) / len(both) for r in (left, now))
        if 1 - before >= MIN_FORGOTTEN:
            name = f"{s['corpus']} {s['model']}"
            gains = (
                kept(s["gain"] if s[part] is None else s[part])
                for part in ("early_gain", "late_gain")
            )
            again = pooled(reopened[*place, grid])
            # Sweeps share runs, and name other runs alike; what is left in full precision tells.
            run = f"{name} seed {s['seed']}, {before:.6f} left"
            recovery, spread = (behind - before) / (1 - before), (again.high - again.low) / 3.92
            told = (kept(s["gain"]), recovery, again.value, spread)
            found.append(Case(name, run, tuple(s["steps"]), *gains, *told))
    return found


def plain(steps: Sequence[str]) -> set[str]:
    """The plain grids that a library's formats have the levels of: "ct-fp8" of "fp8"."""
    return keys_of(step.partition("-")[2] for step in steps)


def fit(known: Sequence[Case]) -> tuple[float, float, float]:
    """Intercept and slopes of the logistic curve, by least squares on recoveries cut to 0..1, with
    a weak pull towards 0.
    """
    early, late = (np.array([getattr(c, n) for c in known]) for n in ("early", "late"))
    wanted = np.clip([c.recovery for c in known], 0, 1)

    def residuals(x: Any) -> Any:
        return np.concatenate([curve(x, early, late) - wanted, 0.01 * np.asarray(x)])

    a, b, c = least_squares(residuals, (2.0, -4.0, -1.0)).x
    return float(a), float(b), float(c)


def curve(x: Sequence[float], early: Any, late: Any) -> Any:
    """The forecast."""
    return 1 / (1 + np.exp(-(x[0] + x[1] * early + x[2] * late)))


def foresee(known: Sequence[Case]) -> dict[Case, float]:
    """The forecast of every case by a fit to the cases of all other names."""
    found = {}
    for name in {c.name for c in known}:
        x = fit([c for c in known if c.name != name])
        found |= {c: float(curve(x, c.early, c.late)) for c in known if c.name == name}
    return found


def rank(cells: Sequence[Case], told: dict[Case, float]) -> float:
    """Rank correlation of forecast and measured recovery; below 0 nothing came back, as at 0."""
    return float(
        spearmanr([told[c] for c in cells], [max(c.recovery, 0.0) for c in cells]).statistic
    )


def ceiling(cells: Sequence[Case], told: dict[Case, float], draws: int = 200) -> float:
    """The rank correlation that a forecast would reach whose every value is right, with recoveries
    as noisy as these: a mean over draws.
    """
    right, spread = np.array([told[c] for c in cells]), np.array([c.spread for c in cells])
    noise = np.random.default_rng(0).normal(size=(draws, len(cells))) * spread
    return float(np.mean([spearmanr(right, np.maximum(right + n, 0)).statistic for n in noise]))


def main() -> None:
    """Forecast every run by a fit to others; then fit on all and write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("summaries", type=Path, nargs="+")
    paths = arguments.parse_args().summaries
    by_sweep = [cases(results.read(path)) for path in paths]
    # One cell that several sweeps share counts once.
    known = list({(c.run, c.steps): c for found in by_sweep for c in found}.values())
    runs = sorted({c.run for c in known})
    returning = {run for run in runs if max(c.recovery for c in known if c.run == run) >= MOST}
    graded = [c for c in known if c.run in returning]
    told = foresee(known)
    print(
        f"Rank correlations on the {len(graded)} cells of the {len(returning)} runs that come back:"
    )
    ranks = {
        "forecast and recovery": rank(graded, told),
        "the same, recoveries below 0 as they are": spearmanr(
            [told[c] for c in graded], [c.recovery for c in graded]
        ).statistic,
        "forecast and what is open again to the target in full precision": spearmanr(
            [told[c] for c in graded], [c.reopened for c in graded]
        ).statistic,
        "a forecast that is right everywhere, with recoveries as noisy as these": ceiling(
            graded, told
        ),
        "the whole gain alone and recovery": rank(graded, {c: -c.gain for c in graded}),
    }
    for name, value in ranks.items():
        print(f"  {value:.3f}  {name}")
    for path, found in zip(paths, by_sweep, strict=True):
        own = [c for c in found if c.run in returning and c in told]
        runs_here = len({c.run for c in own})
        print(
            f"{path.parent.name}: {rank(own, told):.3f} of {ceiling(own, told):.3f} on "
            f"{len(own)} cells of {runs_here} runs"
        )
    forecasts, measured = np.array([told[c] for c in known]), np.array([c.recovery for c in known])
    errors = np.abs(forecasts - np.clip(measured, 0, 1))
    a, b, c = fit(known)
    result: dict[str, Any] = {
        "intercept": a,
        "early": b,
        "late": c,
        "error_low": float(np.quantile(errors[forecasts < 0.5], 0.9)),
        "error_high": float(np.quantile(errors[forecasts >= 0.5], 0.9)),
        "cells": len(known),
        "runs": len(runs),
        "spearman": rank(graded, told),
        "spearman_cells": len(graded),
        "spearman_runs": len(returning),
        "spearman_all": rank(known, told),
        "separates": auc(forecasts[measured > CAME_BACK], forecasts[measured <= CAME_BACK]),
    }
    assert all(math.isfinite(v) for v in result.values())
    result = {k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}
    result["formats"] = sorted({key for c in known for key in keys_of(c.steps) | plain(c.steps)})
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
