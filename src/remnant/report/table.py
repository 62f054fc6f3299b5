"""Manifests, cells and verdicts of a run as tidy tables, and the story that they tell in words."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import JsonValue

from remnant.corpus import METRICS, headlines, of_role
from remnant.flow.store import Store
from remnant.forecast.forecast import Forecast, calibration, forecast, verdict
from remnant.functional.survival import Survival
from remnant.records import (
    AuditResult,
    Cell,
    Evidence,
    ExplainResult,
    Manifest,
    Piece,
    Recovery,
    SweepSpec,
    Verdict,
)
from remnant.transforms.table import told_by_weights

SUMMARY_SCHEMA = 1
# Stages whose files the report reads.
READ = ("measure", "explain", "audit")
# Plain asking stays below its limits; what a stronger test says is another matter.
QUIET = ("stayed forgotten", "not said")
# How a cell is coloured; the verdict has a rule of its own. Points of PrivLeak, share of utility.
MOST_APART, USEFUL = 20, 0.8
# A collapsed model shows one of these; the last three are compared with the target's own values.
LIMITS = {"empty": 0.5, "repetition": 0.3, "unknown": 0.3, "script": 0.2}


class Surviving(NamedTuple):
    """What one quantizer left of the update of one unlearned model."""

    corpus: str
    model: str
    quantizer: str
    seed: int | None
    ratios: Survival


@dataclass(frozen=True)
class Group:
    """All results of one corpus and seed, or of several seeds taken together (``seeds``)."""

    corpus: str
    seed: int | None
    cells: list[Cell]
    recoveries: list[Recovery]
    verdicts: list[Verdict]
    auc_retrain: float | None
    surviving: list[Surviving] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)
    seeds: int = 1

    @property
    def title(self) -> str:
        """The corpus, with its seed or the number of seeds."""
        if self.seeds > 1:
            return f"{self.corpus}, mean over {self.seeds} seeds"
        return self.corpus if self.seed is None else f"{self.corpus}, seed {self.seed}"

    @property
    def models(self) -> list[str]:
        """Models in the order of the sweep."""
        return list(dict.fromkeys(c.model for c in self.cells))

    @property
    def quantizers(self) -> list[str]:
        """Quantizers in the order of the sweep."""
        return list(dict.fromkeys(c.quantizer for c in self.cells))

    @property
    def metrics(self) -> list[str]:
        """The metrics to show, in their usual order."""
        return headlines(c.metric for c in self.cells)

    @property
    def others(self) -> list[str]:
        """All other metrics that there are numbers of, as they come."""
        shown = self.metrics
        every = dict.fromkeys(c.metric for c in self.cells)
        return [m for m in every if m not in shown]

    def cell(self, model: str, quantizer: str, metric: str) -> Cell | None:
        """One cell, or None."""
        found = (
            c for c in self.cells if (c.model, c.quantizer, c.metric) == (model, quantizer, metric)
        )
        return next(found, None)

    def verdict(self, model: str, quantizer: str) -> Verdict | None:
        """One verdict, or None."""
        return next(
            (v for v in self.verdicts if (v.model, v.quantizer) == (model, quantizer)), None
        )


@dataclass(frozen=True)
class Results:
    """Everything that the report shows of one run."""

    sweep: SweepSpec
    groups: list[Group]
    manifests: dict[str, Manifest]
    labels: dict[str, dict[str, Any]]
    failures: dict[str, str]


def collect(
    store: Store, sweep: SweepSpec, pieces: Sequence[Piece], failures: dict[str, str]
) -> Results:
    """Read what is finished of a run; cells of pieces that failed are kept with their status.

    Raises:
        UserError: something that is read is damaged; names the folder to delete.
    """
    there = [p for p in pieces if store.path(p.name).exists()]
    done = {
        p.name: store.checked(p.name) if p.stage in READ else store.manifest(p.name) for p in there
    }
    pieces_by_name = {p.name: p for p in pieces}
    groups: list[Group] = []
    for piece in pieces:
        if piece.stage != "audit" or piece.name not in done:
            continue
        folder = store.path(piece.name)
        cells = [Cell.model_validate(c) for c in _read(folder / "cells.json")]
        groups.append(
            Group(
                corpus=(cells[0].corpus if cells else None) or "corpus",
                seed=next((c.seed for c in cells if c.model not in ("target", "retrain")), None),
                cells=cells,
                recoveries=[Recovery.model_validate(r) for r in _read(folder / "recovery.json")],
                verdicts=[Verdict.model_validate(v) for v in _read(folder / "verdicts.json")],
                auc_retrain=done[piece.name].of(AuditResult).auc_retrain,
                evidence=[Evidence.model_validate(e) for e in _read(folder / "evidence.json")],
            )
        )
    for name, manifest in done.items():
        if manifest.stage == "explain":
            _file(groups, pieces_by_name[name].label, manifest.of(ExplainResult))
    return Results(sweep, groups, done, {p.name: p.label for p in pieces}, failures)


def others(name: str, cells: list[Cell]) -> Group:
    """The numbers of another tool's log as a group of its own: they were measured on other
    items.
    """
    return Group(name, None, [c.model_copy(update={"corpus": name}) for c in cells], [], [], None)


def _file(groups: Sequence[Group], about: dict[str, Any], said: ExplainResult) -> None:
    """Put what is left of one update into the group that it belongs to.

    A group that is not judged yet has none.
    """
    place = {k: about[k] for k in ("corpus", "model", "quantizer", "seed")}
    ratios = Survival(**said.survival)
    for group in groups:
        if (group.corpus, group.seed) == (about["corpus"], about["seed"]):
            group.surviving.append(Surviving(**place, ratios=ratios))


def _flat(found: Surviving) -> dict[str, Any]:
    return {k: v for k, v in found._asdict().items() if k != "ratios"} | found.ratios._asdict()


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def summary(results: Results) -> dict[str, JsonValue]:
    """The content of summary.json; its fields are described in docs/summary.md."""
    lost: list[JsonValue] = [
        {
            "model": about.get("model", "?"),
            "quantizer": about.get("quantizer", "?"),
            "corpus": about.get("corpus"),
            "status": f"failed: {why}",
        }
        for name, why in results.failures.items()
        if (about := results.labels.get(name, {}))
    ]
    return {
        "schema": SUMMARY_SCHEMA,
        "name": results.sweep.name,
        "cells": [c.model_dump(mode="json") for g in results.groups for c in g.cells],
        "recovery": [
            {"corpus": g.corpus, "seed": g.seed} | r.model_dump(mode="json")
            for g in results.groups
            for r in g.recoveries
        ],
        "verdicts": [
            {"corpus": g.corpus, "seed": g.seed} | v.model_dump(mode="json")
            for g in results.groups
            for v in g.verdicts
        ],
        "evidence": [
            {"corpus": g.corpus, "seed": g.seed} | e.model_dump(mode="json")
            for g in results.groups
            for e in g.evidence
        ],
        "checks": list(checks(results)),
        "survival": [_flat(s) for g in results.groups for s in g.surviving],
        "failed": lost,
        "rule": results.sweep.rule.model_dump(mode="json"),
    }


def scored_summary(cells: Iterable[Cell]) -> dict[str, JsonValue]:
    """The same form for cells that were scored from a file."""
    return {
        "schema": SUMMARY_SCHEMA,
        "name": "score",
        "cells": [c.model_dump(mode="json") for c in cells],
    }


def number(cell: Cell | None) -> str:
    """A cell in a few characters: value and interval, or what is wrong with it."""
    if cell is None:
        return "-"
    if cell.value is None:
        return cell.status
    return (
        f"{cell.value:.1f}"
        if cell.low is None
        else f"{cell.value:.1f} [{cell.low:.1f}, {cell.high:.1f}]"
    )


def tone(group: Group, cell: Cell | None) -> str:
    """How to read a cell: "good", "bad" or "plain".

    Knowledge is bad near the target's, utility far from it.
    """
    if cell is None or cell.value is None or cell.model in ("target", "retrain"):
        return "plain"
    target = group.cell("target", cell.quantizer, cell.metric)
    retrain = group.cell("retrain", cell.quantizer, cell.metric)
    if target is None or target.value is None:
        return "plain"
    metric = METRICS[cell.metric]
    chance = 100 * metric.chance
    if metric.known == "apart":
        return "good" if abs(cell.value) <= MOST_APART else "bad"
    if metric.role == "utility":
        kept = cell.value - chance >= USEFUL * (target.value - chance)
        return "good" if kept else "bad"
    floor = retrain.value if retrain and retrain.value is not None else chance
    left = (cell.value - floor) / max(target.value - floor, 1e-9)
    return "good" if left <= 0.35 else "bad" if left >= 0.65 else "plain"


def signs(results: Results) -> list[dict[str, JsonValue]]:
    """Signs of collapse of every measured model, with the ones over their limit."""
    rows = []
    for name, manifest in results.manifests.items():
        if manifest.stage != "measure" or not manifest.summary.get("signs"):
            continue
        about, found = results.labels[name], manifest.summary["signs"]
        target = _target_signs(results, about)
        flags = [
            sign
            for sign, limit in LIMITS.items()
            if found.get(sign, 0.0) > limit + target.get(sign, 0.0)
        ]
        if target and found["entropy"] < 0.6 * target["entropy"]:
            flags.append("entropy")
        rows.append({**about, **found, "flags": flags})
    return rows


def _target_signs(results: Results, about: dict[str, Any]) -> dict[str, float]:
    for name, label in results.labels.items():
        same = (label.get("corpus"), label.get("model"), label.get("quantizer")) == (
            about["corpus"],
            "target",
            about["quantizer"],
        )
        if same and name in results.manifests and results.manifests[name].stage == "measure":
            return dict(results.manifests[name].summary["signs"])
    return {}


def checks(results: Results) -> list[dict[str, JsonValue]]:
    """The checks of the instrument of every measurement, the failed ones first."""
    found = []
    for name, manifest in results.manifests.items():
        if manifest.stage == "measure":
            label = results.labels[name]
            about = {k: label.get(k) for k in ("corpus", "model", "quantizer", "seed")}
            found += [about | check for check in manifest.summary.get("checks", [])]
    return sorted(found, key=lambda check: bool(check["ok"]))


def story(results: Results) -> list[str]:
    """What was found, in plain sentences, one paragraph per corpus and seed."""
    several = len({group.seed for group in results.groups}) > 1
    told = [
        paragraph
        for group in results.groups
        for paragraph in _tell(group, f", seed {group.seed}" if several else "")
    ]
    made = checks(results)
    failed = [f"{c['model']} {c['quantizer']}: {c['said']}" for c in made if not c["ok"]]
    opening = (
        [f"Instrument: {len(failed)} of {len(made)} checks failed ({'; '.join(failed)})."]
        if failed
        else []
    )
    opening += [f"Instrument: all {len(made)} checks passed."] if made and not failed else []
    flagged = _flagged(signs(results))
    return [
        *opening,
        *told,
        *([f"Signs of collapse in what is written: {'; '.join(flagged)}."] if flagged else []),
    ]


def _flagged(rows: list[dict[str, Any]]) -> list[str]:
    """The models with signs over their limit, each once: in how many of its measurements, and which
    signs.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["corpus"], row["model"]), []).append(row)
    told = []
    for (corpus, model), own in found.items():
        if over := [row for row in own if row["flags"]]:
            where = (
                over[0]["quantizer"]
                if len(over) == 1
                else f"in {len(over)} of {len(own)} measurements"
            )
            told.append(
                f"{corpus} {model} {where} "
                f"({', '.join(dict.fromkeys(flag for row in over for flag in row['flags']))})"
            )
    return told


def _tell(group: Group, seed: str) -> list[str]:
    known = next((m for m in group.metrics if m in of_role("knowledge")), "")
    target = group.cell("target", "full", known)
    retrain = group.cell("retrain", "full", known)
    lines = []
    if target and target.value is not None:
        does = METRICS[known].told.format(f"{target.value:.0f} %")
        opening = f"On {group.corpus}{seed}, the target model {does}"
        if retrain and retrain.value is not None:
            opening += f"; a model that never read it reaches {retrain.value:.0f} %"
        lines.append(opening + ".")
    for model in (m for m in group.models if m not in ("target", "retrain")):
        foretold = foretell(group, model)
        lines.append(
            _tell_model(group, model) + (f" From its weights alone: {foretold}" if foretold else "")
        )
    return lines


def expected(found: Surviving) -> Forecast | None:
    """The forecast from the weights alone.

    None where they do not tell, or nothing was updated.
    """
    if not told_by_weights(found.quantizer):
        return None
    return forecast(found.ratios, calibration())


def foretell(group: Group, model: str) -> str:
    """What the weights alone let expect of the quantizers of a model, in words.

    Empty where nothing is known.
    """
    forecasts = {s.quantizer: f for s in group.surviving if s.model == model and (f := expected(s))}
    if not forecasts:
        return ""
    told = verdict(forecasts, calibration())
    return told[0].lower() + told[1:]


def _tell_model(group: Group, model: str) -> str:
    full = group.verdict(model, "full")
    if full is None:
        return f"{model} was not judged."
    after: dict[str, list[str]] = {}
    for quantizer in group.quantizers:
        verdict = group.verdict(model, quantizer)
        if verdict and quantizer != "full":
            after.setdefault(verdict.outcome, []).append(quantizer)
    if full.outcome not in QUIET:
        told = "; ".join(
            f"{o} under {', '.join(names)}"
            for o, names in after.items()
            if o in ("came back", "collapsed") and o != full.outcome
        )
        return (
            f"{model}: {full.outcome} in full precision "
            f"({full.reason}){'; ' if told else ''}{told}."
        )
    told = "; ".join(f"{outcome} under {', '.join(names)}" for outcome, names in after.items())
    return (
        f"{model}: {full.outcome} in full precision ({full.reason}). After quantization: "
        f"{told or 'not measured'}."
    )
