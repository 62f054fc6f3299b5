"""Fit the forecast of `remnant predict` to measured recoveries and test it on runs that it has not seen.

Reads the summaries of finished sweeps, writes src/remnant/predict/calibration.json and prints what it wrote as one JSON line.

    python scripts/calibrate_forecast.py docs/results/{catastrophic-failure,mixed-precision,deployment-matrix}/summary.json
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import spearmanr

from remnant.functional.stats import auc
from remnant.predict.forecast import kept

OUT = Path(__file__).parent.parent / "src" / "remnant" / "predict" / "calibration.json"
# What these keep depends on calibration text, so weights alone do not tell it.
LEFT_OUT = ("gptq", "awq", "autoround")
# A run that forgot less than this has nothing whose return could be measured.
MIN_FORGOTTEN = 0.15
# The judge's limit: more than this has come back.
CAME_BACK = 0.2
# A run can tell degrees apart if some grid brings back at least so much; the others measure noise around zero under every grid.
MOST = 0.5


class Case(NamedTuple):
    """One run under one grid: what survives of its update, and the recovery that was measured."""

    run: str
    early: float
    late: float
    gain: float
    recovery: float


def cases(summary: dict[str, Any]) -> list[Case]:
    """All grids of all runs that had forgotten something in full precision; recovery is the mean over VerMem and KnowMem."""
    measured: dict[tuple[Any, ...], list[float]] = {}
    for r in summary["recovery"]:
        forgotten = r["retained"] is not None and r["recovery"] is not None
        if forgotten:
            measured.setdefault((r["corpus"], r["seed"], r["model"], r["quantizer"]), []).append(r["recovery"][0])
    left = {
        (r["corpus"], r["seed"], r["model"], r["metric"]): r["retained"][0]
        for r in summary["recovery"]
        if r["quantizer"] == "full" and r["retained"] is not None
    }
    found = []
    for s in summary["survival"]:
        place = (s["corpus"], s["seed"], s["model"], s["quantizer"])
        rest = [v for (*run, _), v in left.items() if tuple(run) == place[:3]]
        if place in measured and not s["quantizer"].startswith(LEFT_OUT) and rest and 1 - sum(rest) / len(rest) >= MIN_FORGOTTEN:
            values = measured[place]
            # Sweeps share runs, and name other runs alike; what is left in full precision tells.
            run = f"{s['corpus']} {s['model']} seed {s['seed']}, {sum(rest):.6f} left"
            gains = (kept(s["gain"] if s[part] is None else s[part]) for part in ("early_gain", "late_gain"))
            found.append(Case(run, *gains, kept(s["gain"]), sum(values) / len(values)))
    return found


def fit(known: Sequence[Case]) -> tuple[float, float, float]:
    """Intercept and slopes of the logistic curve, by least squares on recoveries cut to 0..1, with a weak pull towards 0."""
    early, late = (np.array([getattr(c, n) for c in known]) for n in ("early", "late"))
    wanted = np.clip([c.recovery for c in known], 0, 1)

    def residuals(x: Any) -> Any:
        return np.concatenate([curve(x, early, late) - wanted, 0.01 * np.asarray(x)])

    a, b, c = least_squares(residuals, (2.0, -4.0, -1.0)).x
    return float(a), float(b), float(c)


def curve(x: Sequence[float], early: Any, late: Any) -> Any:
    """The forecast."""
    return 1 / (1 + np.exp(-(x[0] + x[1] * early + x[2] * late)))


def main() -> None:
    """Fit on all runs but one, forecast that one, for every run; then fit on all and write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("summaries", type=Path, nargs="+")
    paths = arguments.parse_args().summaries
    by_sweep = [cases(json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    # One cell that several sweeps share counts once.
    known = list({(c.run, c.early, c.late): c for found in by_sweep for c in found}.values())
    runs = sorted({c.run for c in known})
    returning = {run for run in runs if max(c.recovery for c in known if c.run == run) >= MOST}
    pairs, graded, foreseen = [], [], {}
    for run in runs:
        x = fit([c for c in known if c.run != run])
        foreseen |= {c: float(curve(x, c.early, c.late)) for c in known if c.run == run}
        own = [(foreseen[c], c.recovery) for c in known if c.run == run]
        pairs += own
        graded += own if run in returning else []
    forecasts, measured = np.array(pairs).T
    whole = spearmanr(*np.array([(-c.gain, c.recovery) for c in known if c.run in returning]).T).statistic
    print(f"Rank correlation of the whole gain alone on the {len(returning)} runs that come back: {whole:.2f}")
    for path, found in zip(paths, by_sweep, strict=True):
        told = [c for c in found if c.run in returning and c in foreseen]
        rank = spearmanr([foreseen[c] for c in told], [c.recovery for c in told]).statistic
        print(f"{path.parent.name}: {rank:.2f} on {len(told)} cells of {len({c.run for c in told})} runs")
    errors = np.abs(forecasts - np.clip(measured, 0, 1))
    a, b, c = fit(known)
    result = {
        "intercept": a,
        "early": b,
        "late": c,
        "error_low": float(np.quantile(errors[forecasts < 0.5], 0.9)),
        "error_high": float(np.quantile(errors[forecasts >= 0.5], 0.9)),
        "cells": len(known),
        "runs": len(runs),
        "spearman": float(spearmanr(*np.array(graded).T).statistic),
        "spearman_cells": len(graded),
        "spearman_runs": len(returning),
        "spearman_all": float(spearmanr(forecasts, measured).statistic),
        "separates": auc(forecasts[measured > CAME_BACK], forecasts[measured <= CAME_BACK]),
    }
    result = {k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}
    assert all(math.isfinite(v) for v in result.values())
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
