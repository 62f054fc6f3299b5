"""audit: rows of several models -> cells with intervals, recovery, evidence, and a verdict by a
rule fixed before the run. No torch.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remnant.context import Context
from remnant.corpus import needed
from remnant.errors import UserError
from remnant.functional.stats import Interval
from remnant.metrics import MEMBERSHIP, Column
from remnant.records import (
    FULL,
    NOT_RUN,
    AuditResult,
    AuditSpec,
    Evidence,
    Recovery,
    Rule,
    Shares,
    Variant,
    Verdict,
)
from remnant.stages.attacked import with_attacks
from remnant.stages.cells import asked, auc_of, cells_of, read_rows
from remnant.stages.evidence import NOT_YET, weigh
from remnant.stages.lineup import Lineup, mean, ratio, unmeasured
from remnant.stages.verdict import DECIDED, decide

LEAVES = ("cells.json", "recovery.json", "evidence.json", "verdicts.json")


def run(spec: AuditSpec, inputs: Mapping[str, Path], out: Path, work: Context) -> AuditResult:
    """Write cells.json, recovery.json, evidence.json and verdicts.json; count the outcomes."""
    variants = list(spec.members.values())
    places = [(v.model, v.form) for v in variants]
    if len(set(places)) < len(places) or len({v.corpus for v in variants}) > 1:
        raise UserError(
            "An audit compares models of one corpus, each once in every form.",
            "Audit several seeds or corpora apart.",
        )
    sheets = {
        (v.model, v.form): read_rows(inputs[role] / "rows.jsonl", spec.roles)
        for role, v in spec.members.items()
    }
    sheets = with_attacks(sheets, inputs)
    retrain = sheets.get(("retrain", FULL))
    auc_retrain = auc_of(retrain, needed(MEMBERSHIP)[0], spec.rule) if retrain else None
    cells = [c for v in variants for c in cells_of(v, sheets[v.model, v.form], spec.rule, retrain)]
    recoveries: list[Recovery] = []
    evidence: list[Evidence] = []
    verdicts: list[Verdict] = []
    for variant in variants:
        work.progress(len(verdicts), len(variants), f"{variant.model} {variant.form}")
        if variant.is_reference:
            continue
        line = Lineup.of(sheets, variant)
        if line is None:
            reason = "the target, or the model in full precision, was not measured beside it"
            verdicts.append(Verdict(**dict(variant), outcome="not measured", reason=reason))
            continue
        found = [
            recover(line, variant, metric, spec.rule)
            for metric in asked([line.q_unlearned], "knowledge")
        ]
        told = weigh(line.form, variant, spec.rule, line.full, spec.not_run or ())
        verdict = decide(line, variant, found, told, spec.rule)
        recoveries += found
        evidence += [_left_out(e) for e in told] if verdict.outcome in DECIDED else told
        verdicts.append(verdict)
    for name, records in (
        ("cells", cells),
        ("recovery", recoveries),
        ("evidence", evidence),
        ("verdicts", verdicts),
    ):
        text = (
            json.dumps([r.model_dump(mode="json") for r in records], indent=1, allow_nan=False)
            + "\n"
        )
        (out / f"{name}.json").write_text(text, encoding="utf-8")
    outcomes = [v.outcome for v in verdicts]
    return AuditResult(
        auc_retrain=auc_retrain.value if auc_retrain else None,
        outcomes={o: outcomes.count(o) for o in sorted(set(outcomes))},
    )


def _left_out(told: Evidence) -> Evidence:
    """A test that was not made is not wanted any more where the verdict is decided."""
    if told.said != NOT_YET:
        return told
    said = "the verdict was decided without it"
    return told.model_copy(update={"says": NOT_RUN, "said": said})


def recover(line: Lineup, variant: Variant, metric: Column, rule: Rule) -> Recovery:
    """How much of one kind of knowledge is there in a form.

    Shares with paired-bootstrap intervals.

    ``retained``: qU / qT, the same precision; ``retained_of_full_target``: qU / T. ``recovery``:
    (qU - U) / (T - U), the part of the closed gap that is open again. ``recovery_over_retrain``:
    (qU - qR) / (qT - qR), what is left above a model that never knew.
    """
    if reason := next((r for trio in line.trios if (r := unmeasured(trio, metric))), ""):
        nothing: dict[str, Any] = dict.fromkeys(
            ("retained", "retained_of_full_target", "recovery", "recovery_over_retrain")
        )
        return Recovery(**dict(variant), metric=str(metric), **nothing, status=reason)
    gap = 100 * (mean(line.target, metric) - mean(line.unlearned, metric))
    enough = gap >= rule.min_gap
    closed = _ratio(
        rule,
        metric,
        [line.target, line.unlearned, line.q_unlearned],
        lambda t, u, q: (q - u) / (t - u),
    )
    return Recovery(
        **dict(variant),
        metric=str(metric),
        retained=_ratio(rule, metric, [line.q_target, line.q_unlearned], lambda t, u: u / t),
        retained_of_full_target=_ratio(
            rule, metric, [line.target, line.q_unlearned], lambda t, u: u / t
        ),
        recovery=closed if enough and not variant.in_full else None,
        recovery_over_retrain=_ratio(
            rule,
            metric,
            [line.q_target, line.q_unlearned, line.q_retrain],
            lambda t, u, r: (u - r) / (t - r),
        ),
        status="ok"
        if enough
        else (
            f"the gap of {gap:.1f} points is below {rule.min_gap:g}: nothing was forgotten that "
            "could come back"
        ),
    )


def _ratio(*given: Any) -> Shares | None:
    found: Interval | None = ratio(*given)
    return (found.value, found.low, found.high) if found else None
