"""From what survives of an update to a forecast of recovery, with its confidence, and to words.

The forecast is a logistic curve in two gains, of the first quarter of the blocks and of the rest,
fitted to measured recoveries: what the early blocks keep of the update decides most. Coefficients,
number of cells and errors come from `calibration.json`, which `scripts/calibrate_forecast.py`
writes from the results under docs/results/.
"""

import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import NamedTuple

from remnant.formats.table import keys_of
from remnant.functional.survival import Survival
from remnant.records import BETWEEN

# Gains beyond this add nothing.
MOST_GAIN = 1.2


class Calibration(NamedTuple):
    """recovery = 1 / (1 + exp(-(intercept + early * early_gain + late * late_gain))).

    Recovery is the part of what was forgotten that is there again against the target behind the
    same grid, (s_q - s) / (1 - s) with s the share that is retained in full precision and s_q that
    behind the grid, each against the target at the same precision and a mean over VerMem and
    KnowMem. (What a grid costs the target itself cannot be told from an update.)

    ``error_low`` and ``error_high`` are the 90th percentiles of |forecast - measured| on left-out
    runs, of forecasts below one half and of the others; ``cells`` and ``runs`` are what it was
    fitted to, ``spearman`` is the rank correlation on left-out runs of which some grid brings back
    at least half (``spearman_cells`` cells of ``spearman_runs`` runs), ``spearman_all`` that on all
    runs, most of which measure noise around zero under every grid; ``separates`` the probability
    that a left-out cell in which more than a fifth came back has a higher forecast than one in
    which less did (1 is perfect, 0.5 is chance). ``formats``: keys of the formats whose grids it
    was fitted to.
    """

    intercept: float
    early: float
    late: float
    error_low: float
    error_high: float
    cells: int
    runs: int
    spearman: float
    spearman_cells: int
    spearman_runs: int
    spearman_all: float
    separates: float
    formats: tuple[str, ...]


class Forecast(NamedTuple):
    """Recovery as in ``Calibration``, 0 (stays forgotten) to 1 (comes back), with the range that
    held 90 % of the left-out cells.
    """

    recovery: float
    low: float
    high: float


def calibration() -> Calibration:
    """The calibration that comes with Remnant."""
    return Calibration(
        **json.loads(
            (resources.files("remnant.forecast") / "calibration.json").read_text(encoding="utf-8")
        )
    )


def kept(gain: float) -> float:
    """A gain within the range in which it matters."""
    return min(max(gain, 0.0), MOST_GAIN)


def forecast(found: Survival, by: Calibration) -> Forecast | None:
    """The recovery that a survival lets expect; None where nothing was updated."""
    if found.gain is None:
        return None
    # A part that was not updated lost nothing.
    early, late = (
        kept(found.gain if part is None else part) for part in (found.early_gain, found.late_gain)
    )
    value = by.intercept + by.early * early + by.late * late
    recovery = 1 / (1 + math.exp(-value))
    error = by.error_low if recovery < 0.5 else by.error_high
    return Forecast(recovery, max(0.0, recovery - error), min(1.0, recovery + error))


def verdict(forecasts: Mapping[tuple[str, ...], Forecast | None], by: Calibration) -> str:
    """One sentence on which grids are expected to bring the text back, and one on those that the
    forecast was not fitted to.

    Args:
        forecasts: by the steps of the form, mostly one grid.
        by: what they were made by.
    """
    named = {steps: BETWEEN.join(steps) for steps in forecasts}
    found = [(named[steps], f) for steps, f in forecasts.items() if f]
    back = [n for n, f in found if f.low > 0.2]
    open_ = [n for n, f in found if f.low <= 0.2 < f.high]
    stay = [n for n, f in found if f.high <= 0.2]
    if not found:
        return (
            "The two checkpoints are equal in every weight that a quantizer touches: nothing was "
            "unlearned there."
        )
    parts = [
        f"expected to come back under {', '.join(back)}" if back else "",
        f"nothing expected to come back under {', '.join(stay)}" if stay else "",
        f"undecided under {', '.join(open_)}; quantize and audit these" if open_ else "",
    ]
    told = "; ".join(p for p in parts if p)
    fitted = set(by.formats)
    beyond = [named[steps] for steps, f in forecasts.items() if f and not keys_of(steps) <= fitted]
    doubt = (
        f" The forecast was fitted to other formats than {', '.join(beyond)}: quantize and audit "
        "these."
    )
    return told[0].upper() + told[1:] + "." + (doubt if beyond else "")
