"""TOFU's own logs: aggregated or one file per question set, by item key (as now) or as lists (as
first released). No torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from remnant.errors import UserError
from remnant.foreign.logs import Array, Cells, Log, Reference, number, shown
from remnant.foreign.open_unlearning import quality
from remnant.functional.tofu import USEFUL, forget_truth, model_utility, useful_truth
from remnant.records import Cell

FILES = {
    "eval_log_forget.json": "forget",
    "eval_log.json": "retain",
    "eval_real_author_wo_options.json": "authors",
    "eval_real_world_wo_options.json": "facts",
}
TRUE, WRONG, PARAPHRASED, ROUGE = (
    "avg_gt_loss",
    "average_perturb_loss",
    "avg_paraphrased_loss",
    "rougeL_recall",
)
WHOLE, PART = "aggregated", "part"
# Losses of a sum over a long text in bfloat16 stay far below this; e to its minus is 0 in float64.
HIGHEST_LOSS = 1e6


class Table(NamedTuple):
    """One question set: [n] chance of the true answer, ROUGE recall and truth ratio by item, and
    how many items lack one of them.
    """

    keys: list[str]
    columns: Array
    lost: int


def kind_of(file: Path, data: Any) -> str:
    """Which of TOFU's files a JSON value is; empty if it is none."""
    if not isinstance(data, dict):
        return ""
    if any(isinstance(data.get(name), dict) for name in FILES):
        return WHOLE
    return PART if file.name in FILES and any(k in data for k in (TRUE, WRONG, PARAPHRASED)) else ""


def tables(logs: Sequence[Log]) -> dict[str, Table]:
    """The question sets of one model: of its aggregated log, else of the single files.

    Raises:
        UserError: a column is missing, its lists differ in length, or it holds what is no number.
    """
    whole = [log for log in logs if log.kind == WHOLE]
    if len(whole) > 1:
        raise UserError(
            (
                f"{shown(whole[0].file)} and {shown(whole[1].file)} are both aggregated logs of "
                "one model."
            ),
            "Give one of them.",
        )
    found: dict[str, Table] = {}
    for log in whole or logs:
        parts = log.data if log.kind == WHOLE else {log.file.name: log.data}
        for file, name in FILES.items():
            if file in parts:
                where = f"{shown(log.file)}: {file}" if log.kind == WHOLE else shown(log.file)
                found[name] = _table(parts[file], name in ("authors", "facts"), where)
    return found


def _table(data: Any, choice: bool, where: str) -> Table:
    own, wrong, paraphrased, rouge = (
        _column(data, key, where) for key in (TRUE, WRONG, PARAPHRASED, ROUGE)
    )
    keys = [k for k in own if k in wrong and k in paraphrased and k in rouge]
    every = set(own) | set(wrong) | set(paraphrased) | set(rouge)
    if not keys:
        raise UserError(
            f"{where}: no item stands in all of its columns.", "Is it TOFU's evaluation log?"
        )
    rows, kept = [], []
    for key in keys:
        item = f"{where}, item {shown(key)[:40]}"
        answers = wrong[key] if isinstance(wrong[key], list) else [wrong[key]]
        losses = [number(item, v, 0, HIGHEST_LOSS) for v in (own[key], paraphrased[key], *answers)]
        recall = number(item, rouge[key])
        if recall is None or len(losses) < 3 or any(v is None for v in losses):
            continue
        true, like, *others = (float(v) for v in losses if v is not None)
        chance = np.exp(-true)
        if choice:
            # A difference of losses stays finite where all the probabilities are 0.
            chance = 1 / (1 + np.exp(np.clip(true - np.array(others), -700, 700)).sum())
        rows.append([chance, recall, np.exp(np.clip(like - np.mean(others), -700, 700))])
        kept.append(key)
    return Table(kept, np.array(rows, dtype=np.float64).reshape(-1, 3).T, len(every) - len(kept))


def _column(data: Any, key: str, where: str) -> dict[str, Any]:
    """A column by item key; of a list the places are the keys."""
    found = data.get(key) if isinstance(data, dict) else None
    if isinstance(found, list):
        lengths = {
            k: len(data[k])
            for k in (TRUE, WRONG, PARAPHRASED, ROUGE)
            if isinstance(data.get(k), list)
        }
        if len(set(lengths.values())) > 1 or len(lengths) < 4:
            raise UserError(
                f"{where}: its lists have different lengths ({lengths}), so items cannot be told.",
                "Give the whole log.",
            )
        found = {str(i): v for i, v in enumerate(found)}
    if not isinstance(found, dict) or not found:
        raise UserError(f"{where} has no column {key} of numbers.", "Is it TOFU's evaluation log?")
    return {str(k): v for k, v in found.items()}


def cells(make: Cells, logs: Sequence[Log], reference: Reference) -> tuple[list[Cell], list[str]]:
    """Probabilities, ROUGE and truth ratios of every set, utility, and forget quality against a
    retrain model's log.
    """
    found: list[Cell] = []
    sets = tables(logs)
    for name, table in sets.items():
        kind = "choice" if name in ("authors", "facts") else "probability"
        chance, rouge, ratios = ([*column, *[None] * table.lost] for column in table.columns)
        found.append(make.of_items(f"tofu_{kind}_{name}", chance))
        found.append(make.of_items(f"tofu_rouge_{name}", rouge))
        found.append(
            make.of_items(
                f"tofu_truth_ratio_{name}",
                ratios,
                forget_truth if name == "forget" else useful_truth,
            )
        )
    if set(USEFUL) <= set(sets) and all(sets[s].keys for s in USEFUL):
        found.append(
            make.stored("tofu_utility", model_utility({s: sets[s].columns for s in USEFUL}))
        )
    own = ratios_of(sets)
    if reference.ratios is not None and own:
        found.append(quality(make, own, reference.ratios))
    notes = (
        ["The reference AUC was not used: TOFU's own log holds no attack."]
        if reference.auc is not None and not reference.log
        else []
    )
    return found, notes


def ratios_of(sets: Mapping[str, Table]) -> dict[str, float]:
    """Truth ratios of the forget questions by item key."""
    table = sets.get("forget")
    return dict(zip(table.keys, table.columns[2], strict=True)) if table else {}


def reference_of(logs: Sequence[Log]) -> dict[str, float]:
    """Truth ratios of a retrain model; raises UserError where its logs have none."""
    found = ratios_of(tables(logs))
    if not found:
        raise UserError(
            f"{shown(logs[0].file)} holds no forget questions.",
            "Give the retrain model's aggregated log.",
        )
    return found
