"""Manifests, cells and verdicts of a run as tidy tables, and the story that they tell in words."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import JsonValue

from remnant.corpus import METRICS, headlines, of_role, short_title
from remnant.flow.store import Store
from remnant.forecast.forecast import Forecast, calibration, forecast, verdict
from remnant.functional.survival import Survival
from remnant.records import (
    FULL,
    NOT_RUN,
    AuditResult,
    Cell,
    ElicitResult,
    Evidence,
    ExplainResult,
    Manifest,
    Piece,
    Recovery,
    Rule,
    SweepSpec,
    Variant,
    Verdict,
)
from remnant.remotecode import FLAG
from remnant.transforms.table import told_by_weights

SUMMARY_SCHEMA = 1
# Stages whose files the report reads.
READ = ("measure", "explain", "audit")
# Plain asking stays below its limits; what a stronger test says is another matter.
QUIET = ("gone", "hidden")
# How a cell of PrivLeak is coloured, in points; all else by the shares of the verdict's rule.
MOST_APART = 20
# So many failed checks are told in the story; the report lists all.
SHOWN = 3
# A collapsed model shows one of these; the last three are compared with the target's own values.
LIMITS = {"empty": 0.5, "repetition": 0.3, "unknown": 0.3, "script": 0.2}


class Surviving(NamedTuple):
    """What one form left of the update of one unlearned model."""

    variant: Variant
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
    rule: Rule = field(default_factory=Rule)

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
    def unlearned(self) -> list[str]:
        """Models that are judged, in the order of the sweep."""
        return list(dict.fromkeys(c.model for c in self.cells if not c.is_reference))

    @property
    def forms(self) -> list[str]:
        """Forms in the order of the sweep."""
        return list(dict.fromkeys(c.form for c in self.cells))

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

    def cell(self, model: str, form: str, metric: str) -> Cell | None:
        """One cell, or None."""
        return self._placed.get((model, form, metric))

    @cached_property
    def _placed(self) -> dict[tuple[str, str, str], Cell]:
        """The cells by their places; of several of one place the first."""
        return {(c.model, c.form, c.metric): c for c in reversed(self.cells)}

    def verdict(self, model: str, form: str) -> Verdict | None:
        """One verdict, or None."""
        return next((v for v in self.verdicts if (v.model, v.form) == (model, form)), None)

    def share(self, cell: Cell) -> float | None:
        """Where a number stands from what knows nothing (0) to the target (1) in the same form;
        None where the target itself shows too little for that.
        """
        target = self.cell("target", cell.form, cell.metric)
        lacking = self.lacking(cell.form, cell.metric)
        if cell.value is None or target is None or target.value is None or lacking:
            return None
        start, _ = self._start(cell.form, cell.metric)
        return (cell.value - start) / (target.value - start)

    def lacking(self, form: str, metric: str) -> str:
        """Why nothing can be measured as a share of the target's number, as in the verdict: it is
        missing, or is no ``min_gap`` points and not certainly above what knows nothing. Empty where
        something can.
        """
        target = self.cell("target", form, metric)
        if target is None or target.value is None:
            return f"the target has no number: {target.status}" if target else "it was not measured"
        start, whose = self._start(form, metric)
        if METRICS[metric].known == "apart":
            known = abs(target.value) > MOST_APART
        else:
            room, least = target.value - start, target.value if target.low is None else target.low
            known = room >= self.rule.min_gap and room > 0 and least > start
        return "" if known else f"the target itself scores {target.value:.1f}, {whose} {start:.1f}"

    def _start(self, form: str, metric: str) -> tuple[float, str]:
        """What knows nothing scores, and who that is: of forget text the never-read model, where
        there is one.
        """
        unread = self.cell("retrain", form, metric)
        if METRICS[metric].known == "apart":
            return 0.0, "where never read is"
        if METRICS[metric].role != "utility" and unread and unread.value is not None:
            return unread.value, "a model that never read the text"
        return 100 * METRICS[metric].chance, "guessing"

    @property
    def unmeasured(self) -> list[str]:
        """A sentence for every headline number that is no measure of anything in some forms."""
        told = []
        for metric in self.metrics if "target" in self.models else ():
            why = {form: self.lacking(form, metric) for form in self.forms}
            if forms := [form for form, reason in why.items() if reason]:
                where = "in any form" if len(forms) == len(why) else f"in {', '.join(forms)}"
                told.append(
                    f"{short_title(metric)}: not measured against the target {where} "
                    f"({why[forms[0]]})."
                )
        return told


@dataclass(frozen=True)
class Results:
    """Everything that the report shows of one run."""

    sweep: SweepSpec
    groups: list[Group]
    manifests: dict[str, Manifest]
    labels: dict[str, Variant]
    failures: dict[str, str]
    # Pieces that verdicts wait for, neither made nor failed.
    unmade: tuple[str, ...] = ()


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
                seed=next((c.seed for c in cells if not c.is_reference), None),
                cells=cells,
                recoveries=[Recovery.model_validate(r) for r in _read(folder / "recovery.json")],
                verdicts=[Verdict.model_validate(v) for v in _read(folder / "verdicts.json")],
                auc_retrain=done[piece.name].of(AuditResult).auc_retrain,
                evidence=[Evidence.model_validate(e) for e in _read(folder / "evidence.json")],
                rule=sweep.rule,
            )
        )
    for name, manifest in done.items():
        if manifest.stage == "explain":
            _file(groups, pieces_by_name[name].label, manifest.of(ExplainResult))
    waited = [p.name for p in pieces if p.stage in ("measure", "audit")]
    unmade = tuple(name for name in waited if name not in done and name not in failures)
    return Results(sweep, groups, done, {p.name: p.label for p in pieces}, failures, unmade)


def others(name: str, cells: list[Cell]) -> Group:
    """The numbers of another tool's log as a group of its own: they were measured on other
    items.
    """
    return Group(name, None, [c.model_copy(update={"corpus": name}) for c in cells], [], [], None)


def _file(groups: Sequence[Group], about: Variant, said: ExplainResult) -> None:
    """Put what is left of one update into the group that it belongs to.

    A group that is not judged yet has none.
    """
    for group in groups:
        if (group.corpus, group.seed) == (about.corpus, about.seed):
            group.surviving.append(Surviving(about, Survival(**said.survival)))


def _flat(found: Surviving) -> dict[str, Any]:
    return _row(found.variant) | found.ratios._asdict()


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def summary(results: Results) -> dict[str, JsonValue]:
    """The content of summary.json; its fields are described in docs/summary.md."""
    lost: list[JsonValue] = [
        _row(results.labels[name]) | {"status": f"failed: {why}"}
        for name, why in results.failures.items()
        if name in results.labels
    ]
    lost += [_row(results.labels[name]) | {"status": "not made"} for name in results.unmade]
    records: dict[str, list[Variant]] = {
        "cells": [c for g in results.groups for c in g.cells],
        "recovery": [r for g in results.groups for r in g.recoveries],
        "verdicts": [v for g in results.groups for v in g.verdicts],
        "evidence": [e for g in results.groups for e in g.evidence],
    }
    return {
        "schema": SUMMARY_SCHEMA,
        "name": results.sweep.name,
        **{name: list(map(_row, rows)) for name, rows in records.items()},
        "checks": [_row(variant) | check for variant, check in checks(results)],
        "survival": [_flat(s) for g in results.groups for s in g.surviving],
        "failed": lost,
        "audits": [name for name, m in results.manifests.items() if m.stage == "audit"],
        "rule": results.sweep.rule.told(),
    }


def _row(of: Variant) -> dict[str, JsonValue]:
    """A record as a row of the summary, with its form as tables show it."""
    return {"form": of.form} | of.model_dump(mode="json")


def scored_summary(cells: Iterable[Cell]) -> dict[str, JsonValue]:
    """The same form for cells that were scored from a file."""
    return {
        "schema": SUMMARY_SCHEMA,
        "name": "score",
        "cells": list(map(_row, cells)),
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

    Knowledge is bad near the target's, utility far from it; where the target shows nothing that
    could be lost, neither is.
    """
    if cell is None or cell.is_reference or (share := group.share(cell)) is None:
        return "plain"
    metric, most = METRICS[cell.metric], group.rule.max_retained
    if metric.known == "apart":
        return "good" if abs(cell.value or 0.0) <= MOST_APART else "bad"
    if metric.role == "utility":
        return "good" if share >= group.rule.utility_floor else "bad"
    return "good" if share <= most else "bad" if share >= 1 - most else "plain"


class Signs(NamedTuple):
    """Signs of collapse of one measured model, and which of them are over their limit."""

    variant: Variant
    found: dict[str, float]
    flags: list[str]


def signs(results: Results) -> list[Signs]:
    """Signs of collapse of every measured model."""
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
        rows.append(Signs(about, found, flags))
    return rows


def _target_signs(results: Results, about: Variant) -> dict[str, float]:
    for name, label in results.labels.items():
        same = (label.corpus, label.model, label.form) == (about.corpus, "target", about.form)
        if same and name in results.manifests and results.manifests[name].stage == "measure":
            return dict(results.manifests[name].summary["signs"])
    return {}


def checks(results: Results) -> list[tuple[Variant, dict[str, JsonValue]]]:
    """The checks of the instrument of every measurement, the failed ones first."""
    found: list[tuple[Variant, dict[str, JsonValue]]] = []
    for name, manifest in results.manifests.items():
        if manifest.stage == "measure":
            about = results.labels[name]
            found += [(about, check) for check in manifest.summary.get("checks", [])]
    return sorted(found, key=lambda made: bool(made[1]["ok"]))


def story(results: Results) -> list[str]:
    """What was found, in plain sentences, one paragraph per corpus and seed."""
    several = len({group.seed for group in results.groups}) > 1
    told = [
        paragraph
        for group in results.groups
        for paragraph in _tell(group, f", seed {group.seed}" if several else "")
    ]
    made = checks(results)
    failed = [f"{v.model} {v.form}: {check['said']}" for v, check in made if not check["ok"]]
    more = f"; and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
    opening = (
        [
            f"Instrument: {len(failed)} of {len(made)} checks failed, and what they concern is not "
            f"measured ({'; '.join(failed[:SHOWN])}{more})."
        ]
        if failed
        else []
    )
    opening += [f"Instrument: all {len(made)} checks passed."] if made and not failed else []
    flagged = _flagged(signs(results))
    return [
        *opening,
        *asking(results),
        *_code_run(results),
        *told,
        *not_run(results.groups),
        *([f"Signs of collapse in what is written: {'; '.join(flagged)}."] if flagged else []),
    ]


def not_run(groups: Iterable[Group]) -> list[str]:
    """The tests that an audit left out, in a sentence; none where all were made."""
    left = [e.test for group in groups for e in group.evidence if e.says == NOT_RUN]
    names = ", ".join(dict.fromkeys(left))
    return [f"Not run, as the verdict was decided without them: {names}."] if left else []


def _code_run(results: Results) -> list[str]:
    """Whose own code was run, in a sentence; nothing where none was."""
    ran: dict[str, None] = {}
    for name, manifest in results.manifests.items():
        label = results.labels.get(name)
        own = label.model if label else ""
        ran |= dict.fromkeys(own or role for role in manifest.remote_code)
    return [f"Code that came with a model was run ({FLAG}): {', '.join(ran)}."] if ran else []


def asking(results: Results) -> list[str]:
    """In which form the questions of every corpus were asked, and what it brought out."""
    chosen = [(n, m.of(ElicitResult)) for n, m in results.manifests.items() if m.stage == "elicit"]
    told = [f"{results.labels[name].corpus}: {found.said}" for name, found in chosen]
    return list(dict.fromkeys(told))


def _flagged(rows: list[Signs]) -> list[str]:
    """The models with signs over their limit, each once: in how many of its measurements, and which
    signs.
    """
    found: dict[tuple[str | None, str], list[Signs]] = {}
    for row in rows:
        found.setdefault((row.variant.corpus, row.variant.model), []).append(row)
    told = []
    for (corpus, model), own in found.items():
        if over := [row for row in own if row.flags]:
            several = f"in {len(over)} of {len(own)} measurements"
            where = over[0].variant.form if len(over) == 1 else several
            flags = ", ".join(dict.fromkeys(flag for row in over for flag in row.flags))
            told.append(f"{corpus} {model} {where} ({flags})")
    return told


def _tell(group: Group, seed: str) -> list[str]:
    known = next((m for m in group.metrics if m in of_role("knowledge")), "")
    target = group.cell("target", FULL, known)
    retrain = group.cell("retrain", FULL, known)
    lines = []
    if target and target.value is not None:
        does = METRICS[known].told.format(f"{target.value:.0f} %")
        opening = f"On {group.corpus}{seed}, the target model {does}"
        if retrain and retrain.value is not None:
            opening += f"; a model that never read it reaches {retrain.value:.0f} %"
        if group.lacking(FULL, known):
            opening += ", which is too little to measure forgetting by"
        lines.append(opening + ".")
    for model in group.unlearned:
        foretold = foretell(group, model)
        lines.append(
            _tell_model(group, model) + (f" From its weights alone: {foretold}" if foretold else "")
        )
    return lines


def expected(found: Surviving) -> Forecast | None:
    """The forecast from the weights alone.

    None where they do not tell, or nothing was updated.
    """
    if not told_by_weights(found.variant.steps):
        return None
    return forecast(found.ratios, calibration())


def foretell(group: Group, model: str) -> str:
    """What the weights alone let expect of the forms of a model, in words.

    Empty where nothing is known.
    """
    own = [s for s in group.surviving if s.variant.model == model]
    forecasts = {s.variant.steps: f for s in own if (f := expected(s))}
    if not forecasts:
        return ""
    told = verdict(forecasts, calibration())
    return told[0].lower() + told[1:]


def _tell_model(group: Group, model: str) -> str:
    full = group.verdict(model, FULL)
    if full is None:
        return f"{model} was not judged."
    after: dict[str, list[str]] = {}
    for form in group.forms:
        verdict = group.verdict(model, form)
        if verdict and not verdict.in_full:
            after.setdefault(verdict.outcome, []).append(form)
    if full.outcome not in QUIET:
        told = "; ".join(
            f"{o} under {', '.join(names)}"
            for o, names in after.items()
            if o in ("came back", "broken") and o != full.outcome
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
