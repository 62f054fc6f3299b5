"""A prediction -> prediction.json and one self-contained HTML page with a heat map over layers."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from remnant.durable import write_text
from remnant.errors import UserError, some
from remnant.flow.store import disk_errors
from remnant.forecast.adapter import opened
from remnant.forecast.forecast import Calibration, Forecast, calibration, forecast, verdict
from remnant.forecast.grids import DEFAULT, grid
from remnant.forecast.stream import SAMPLE, scan
from remnant.forecast.zone import Zone, zone
from remnant.functional.survival import Survival, survival, survival_of_model
from remnant.report import notebook
from remnant.report.charts import layer_heat_map

PREDICTION_SCHEMA = 1
# What a forecast does not say.
MEASURE = "Whether anything is forgotten in full precision, only `audit` tells."


class Prediction(NamedTuple):
    """What `remnant predict` found: per grid the survival of the whole update and the forecast, per
    weight and grid the survival.

    ``sampled``: grids were tried on so many entries of every weight of more than twice as many; 0
    for all. ``left_out``: by grid the weights that it leaves as they are, since its groups do not
    divide their rows; a grid that leaves out all is in no other field.
    """

    target: str
    unlearned: str
    whole: dict[str, Survival]
    forecasts: dict[str, Forecast | None]
    layers: dict[str, dict[str, Survival]]
    calibration: Calibration
    sampled: int
    left_out: dict[str, tuple[str, ...]]

    @property
    def verdict(self) -> str:
        """In words."""
        return verdict({(name,): f for name, f in self.forecasts.items()}, self.calibration)

    @property
    def notes(self) -> list[str]:
        """One sentence per grid that leaves weights as they are, with their names."""
        count = len(self.layers)
        return [
            f"{grid} leaves {len(names)} of {count} weights as they are, since its groups do not "
            f"divide their rows: {some(names)}."
            for grid, names in self.left_out.items()
        ]

    def _repr_html_(self) -> str:
        return notebook.forecast(self.verdict, self.whole, self.forecasts)


def predict(
    target: str,
    unlearned: str,
    quantizers: Sequence[str],
    keep: Sequence[str],
    report: Callable[[int, int, str], None],
    *,
    exact: bool = False,
) -> Prediction:
    """Read two checkpoints, or adapters with their models, as a stream.

    Survival and forecast for each quantizer, or for the default set where none is named.

    ``keep``: words; a weight whose name contains one is left as it is. ``exact``: large weights are
    not sampled.

    Raises:
        UserError: as ``survey``, or no grid fits any weight.
    """
    grids = [grid(name) for name in quantizers or DEFAULT]
    sample = 0 if exact else SAMPLE
    sums = scan(opened(target), opened(unlearned), grids, report, keep=keep, sample=sample)
    by = calibration()
    fits = {name for found in sums.values() for name in found}
    used = [g.name for g in grids if g.name in fits]
    if not used:
        raise UserError(
            f"No weight has rows that the groups of {', '.join(g.name for g in grids)} divide.",
            "Name a grid with smaller groups, or with none.",
        )
    whole = {}
    for name in used:
        under = {weight: found[name] for weight, found in sums.items() if name in found}
        whole[name] = survival_of_model(under)
    layers = {}
    for weight, found in sums.items():
        layers[weight] = {name: survival(part) for name, part in found.items()}
    return Prediction(
        target,
        unlearned,
        whole,
        {n: forecast(s, by) for n, s in whole.items()},
        layers,
        by,
        sample,
        left_out(sums, [g.name for g in grids]),
    )


def before(
    target: str,
    rate: float,
    quantizers: Sequence[str],
    keep: Sequence[str],
    report: Callable[[int, int, str], None],
    *,
    exact: bool = False,
) -> Zone:
    """What a rate can reach in a target kept in bfloat16, and what each quantizer leaves of it.

    Raises:
        UserError: an unknown quantizer, a rate that is none, or a target that cannot be read.
    """
    if not 0 < rate < 1:
        raise UserError(f"{rate} is no learning rate.", "Give one between 0 and 1, like 1e-5.")
    grids = [grid(name) for name in quantizers or DEFAULT]
    return zone(opened(target), rate, grids, report, keep=keep, sample=0 if exact else SAMPLE)


def left_out(
    by_weight: Mapping[str, Mapping[str, object]], grids: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """By grid the weights that are missing under it; nothing of a grid under which none is.

    >>> left_out({"a": {"int4": 1, "int4-g8": 1}, "b": {"int4": 1}}, ["int4", "int4-g8"])
    {'int4-g8': ('b',)}
    """
    found = {}
    for name in grids:
        found[name] = tuple(w for w, held in by_weight.items() if name not in held)
    return {name: weights for name, weights in found.items() if weights}


def write(found: Prediction, out: Path) -> Path:
    """Write prediction.json and prediction.html into a folder, which is made if missing.

    Returns the page's path.
    """
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_record(found), indent=1, allow_nan=False) + "\n"
        write_text(out / "prediction.json", text)
        page = (
            notebook.environment()
            .get_template("prediction.html.j2")
            .render(found=found, measure=MEASURE, heat_map=layer_heat_map(found.layers))
        )
        write_text(out / "prediction.html", page)
    return out / "prediction.html"


def _as_dicts(grids: Mapping[str, Survival]) -> dict[str, dict[str, float | None]]:
    return {name: survival._asdict() for name, survival in grids.items()}


def _record(found: Prediction) -> dict[str, Any]:
    return {
        "schema": PREDICTION_SCHEMA,
        "target": found.target,
        "unlearned": found.unlearned,
        "verdict": found.verdict,
        "sampled": found.sampled,
        "left_out": {name: list(weights) for name, weights in found.left_out.items()},
        "grids": {
            n: s._asdict() | {"forecast": f._asdict() if (f := found.forecasts[n]) else None}
            for n, s in found.whole.items()
        },
        "layers": {weight: _as_dicts(grids) for weight, grids in found.layers.items()},
        "calibration": found.calibration._asdict(),
    }
