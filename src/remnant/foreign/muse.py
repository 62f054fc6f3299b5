"""MUSE's logs, of its code as it is now and as it was first released (jaechan-repo/muse_bench), and
of arXiv 2410.16454's. No torch.

Now: ``verbmem_f``, ``knowmem_f``, ``knowmem_r`` with ``log.json`` and ``agg.json``, ``privleak``
with ``log.json`` and ``auc.json``. First: ``forget`` or ``retain`` with ``history.json`` and
``out.json`` below ``verbmem`` or ``knowmem``; ``auc.json``, nested, beside ``forget.json`` and
``holdout.json`` below ``privleak``.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from remnant.errors import UserError
from remnant.foreign.logs import Array, Cells, Log, Reference, number, rouge, shown
from remnant.functional.text import cut_answer
from remnant.records import Cell

FOLDERS = {"verbmem_f": "verbmem", "knowmem_f": "knowmem_forget", "knowmem_r": "knowmem_retain"}
SIDES = ("forget", "retain")
# Folders that tell the parts of one model's log apart, not models.
PARTS = frozenset({*FOLDERS, "verbmem", "knowmem", "privleak"})
SCORES = {
    "PPL": "mia_loss",
    "PPL/lower": "mia_lower",
    "PPL/zlib": "mia_zlib",
    "Min-20%": "mia_min20",
    "Min-40%": "auc",
    "Min-60%": "mia_min60",
}
PRIVLEAK = "Min-40%"
PAIR = "forget_holdout"
# Texts and values of items before numbers that were made of them.
TEXTS, MEANS, VALUES, AUCS, OUT = "texts", "means", "values", "aucs", "out"


def kind_of(file: Path, data: Any) -> str:
    """Which of MUSE's files a JSON value is; empty if it is none."""
    if isinstance(data, list):
        rows = [r for r in data if isinstance(r, dict)]
        if rows and len(rows) == len(data):
            if all("gt" in r and "response" in r for r in rows):
                return TEXTS
            if all(isinstance(r.get("ppl"), dict) for r in rows) and file.stem in (
                "forget",
                "holdout",
            ):
                return VALUES
        return ""
    if not isinstance(data, dict):
        return ""
    if all(_scored(data.get(side)) for side in ("forget", "holdout")):
        return VALUES
    if any(isinstance(k, str) and k.startswith(PAIR) for k in data):
        return AUCS
    if "mean_rougeL" in data:
        return MEANS
    return OUT if any(k in data and not isinstance(data[k], dict | list) for k in FOLDERS) else ""


def _scored(rows: Any) -> bool:
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(isinstance(r, dict) and not r.keys().isdisjoint(SCORES) for r in rows)
    )


def cells(make: Cells, logs: Sequence[Log], reference: Reference) -> tuple[list[Cell], list[str]]:
    """The cells of one model, and what was left out.

    Raises:
        UserError: two files of one model say the same, or hold what is no number.
    """
    found: dict[str, Cell] = {}
    notes: list[str] = []
    for kind, of in ((TEXTS, _texts), (MEANS, _means)):
        metrics: dict[str, Path] = {}
        for log in (log for log in logs if log.kind == kind):
            metric = metric_of(log)
            if metric is None:
                notes.append(
                    f"Left out: {shown(log.file)}, whose folder does not say which metric it "
                    f"is ({', '.join(FOLDERS)})."
                )
                continue
            if metric in metrics:
                raise UserError(
                    (
                        f"{shown(metrics[metric])} and {shown(log.file)} both hold {metric} of "
                        "one model."
                    ),
                    "Give one of them.",
                )
            metrics[metric] = log.file
            found.setdefault(metric, of(make, metric, log))
    found |= {c.metric: c for c in _attacks(make, logs, reference)}
    for log in (log for log in logs if log.kind == OUT):
        share = number(f"{shown(log.file)}: privleak", log.data.get("privleak"), -100, math.inf)
        if share is not None and "privleak" not in found:
            status = "ok, no interval: against MUSE's own reference"
            found["privleak"] = (
                make.privleak(None, reference)
                if reference.given
                else make.stored("privleak", share / 100, status=status)
            )
        for name, metric in FOLDERS.items():
            value = number(f"{shown(log.file)}: {name}", log.data.get(name), 0, 100)
            if value is not None:
                found.setdefault(metric, make.stored(metric, value / 100))
    return list(found.values()), notes


def metric_of(log: Log) -> str | None:
    """Which metric a file of texts or means is of, by its folder, its questions, and the folders
    above; None where nothing says it.
    """
    folder = log.file.resolve().parent
    if folder.name in FOLDERS:
        return FOLDERS[folder.name]
    if folder.name not in SIDES:
        return None
    above = [p for p in reversed(folder.parts) if p in ("verbmem", "knowmem")]
    asked = any("question" in r for r in log.data) if log.kind == TEXTS else None
    known = "knowmem" if asked else above[0] if above else "verbmem" if asked is False else None
    if known == "knowmem":
        return f"knowmem_{folder.name}"
    return "verbmem" if known == "verbmem" and folder.name == "forget" else None


def _texts(make: Cells, metric: str, log: Log) -> Cell:
    """VerMem or KnowMem, scored again from the texts."""
    values: list[float | str | None] = []
    for i, row in enumerate(log.data):
        truth, said = row["gt"], row["response"]
        if not isinstance(truth, str) or not isinstance(said, str | None):
            raise UserError(
                f"{shown(log.file)}, item {i}: gt and response are no texts.",
                "Is it the log that MUSE wrote?",
            )
        if said is None:
            values.append("there is no answer")
        else:
            values.append(rouge(truth, said if metric == "verbmem" else cut_answer(said)))
    return make.of_items(metric, values)


def _means(make: Cells, metric: str, log: Log) -> Cell:
    return make.stored(metric, number(f"{shown(log.file)}: mean_rougeL", log.data["mean_rougeL"]))


def _attacks(make: Cells, logs: Sequence[Log], reference: Reference) -> list[Cell]:
    """AUCs of forget against holdout text, of items where they are there, and PrivLeak."""
    sides, stored = values_of(logs), aucs_of(logs)
    found = [
        make.of_sides(ours, *sides[theirs]) for theirs, ours in SCORES.items() if theirs in sides
    ]
    found += [
        make.stored(ours, stored[theirs])
        for theirs, ours in SCORES.items()
        if theirs in stored and theirs not in sides
    ]
    own = sides.get(PRIVLEAK) or stored.get(PRIVLEAK)
    return (
        [*found, make.privleak(own, reference)]
        if own is not None or (found and reference.given)
        else found
    )


def values_of(logs: Sequence[Log]) -> dict[str, tuple[Array, Array]]:
    """By attack the values of forget and holdout text.

    An attack that lacks one of a text is left out.

    Raises:
        UserError: more than one log of a model, or a value that is no number.
    """
    split: dict[str, tuple[Path, Sequence[Mapping[str, Any]]]] = {}
    for log in (log for log in logs if log.kind == VALUES):
        rows: Mapping[str, Any] = (
            log.data
            if isinstance(log.data, dict)
            else {log.file.stem: [r["ppl"] for r in log.data]}
        )
        for side in ("forget", "holdout"):
            if side not in rows:
                continue
            if side in split:
                raise UserError(
                    (
                        f"{shown(split[side][0])} and {shown(log.file)} both hold the {side} "
                        "texts of one model."
                    ),
                    "Give one.",
                )
            split[side] = log.file, rows[side]
    if set(split) != {"forget", "holdout"}:
        return {}
    found = {}
    for name in SCORES:
        columns = []
        for side, (file, texts) in split.items():
            where = f"{shown(file)}, {side}: {name}"
            columns.append([number(where, text.get(name), -math.inf, math.inf) for text in texts])
        if not any(v is None for column in columns for v in column):
            by_side = dict(
                zip(split, (np.array(c, dtype=np.float64) for c in columns), strict=True)
            )
            found[name] = by_side["forget"], by_side["holdout"]
    return found


def aucs_of(logs: Sequence[Log]) -> dict[str, float]:
    """By attack the stored AUC of forget against holdout text, of a flat or a nested file.

    Raises UserError for two files.
    """
    files = [log for log in logs if log.kind == AUCS]
    if len(files) > 1:
        raise UserError(
            f"{shown(files[0].file)} and {shown(files[1].file)} both hold AUCs of one model.",
            "Give one of them.",
        )
    found: dict[str, float] = {}
    for log in files:
        nested = log.data.get(PAIR)
        for name in SCORES:
            given = nested.get(name) if isinstance(nested, dict) else log.data.get(f"{PAIR}_{name}")
            value = number(f"{shown(log.file)}: {PAIR} {name}", given)
            if value is not None:
                found[name] = value
    return found


def min_k(logs: Sequence[Log]) -> tuple[Array, Array] | float | None:
    """Values of Min-40 % on both sides, or the stored AUC, or None."""
    return values_of(logs).get(PRIVLEAK) or aucs_of(logs).get(PRIVLEAK)


def reference_of(logs: Sequence[Log]) -> tuple[Array, Array] | float:
    """Min-40 % of a retrain model; raises UserError where its logs have none."""
    found = min_k(logs)
    if found is None:
        raise UserError(
            f"{shown(logs[0].file.parent)} holds no AUC with Min-40%.",
            "Give the retrain model's auc.json.",
        )
    return found
