"""open-unlearning's ``*_EVAL.json`` and ``*_SUMMARY.json``. No torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import JsonValue

from remnant.errors import UserError
from remnant.foreign.logs import Array, Cells, Log, Reference, number, rouge, shown
from remnant.functional.tofu import forget_quality, forget_truth, useful_truth
from remnant.records import Cell

# Own numbers and those of the items may differ by rounding, not by more.
SAME = 1e-3


class Name(NamedTuple):
    """How a number is called here: ``key`` of an item's value, whether it is 1 - ours, and the
    largest value that an item has.
    """

    metric: str
    key: str = "score"
    opposite: bool = False
    high: float = 1.0


# configs/eval: ROUGE of MUSE is stemmed there, AUCs are 1 - ours, PrivLeak is in percent already.
NAMES: Mapping[str, Name] = {
    "forget_verbmem_ROUGE": Name("verbmem_stemmed", "rougeL_f1"),
    "forget_knowmem_ROUGE": Name("knowmem_forget_stemmed", "rougeL_f1"),
    "retain_knowmem_ROUGE": Name("knowmem_retain_stemmed", "rougeL_f1"),
    "privleak": Name("privleak"),
    "exact_memorization": Name("exact_memorization"),
    "extraction_strength": Name("extraction_strength"),
    "mia_loss": Name("mia_loss", opposite=True),
    "mia_zlib": Name("mia_zlib", opposite=True),
    "mia_min_k": Name("auc", opposite=True),
    "mia_min_k_plus_plus": Name("mia_min_plus", opposite=True),
    "mia_reference": Name("mia_reference", opposite=True),
    "mia_gradnorm": Name("mia_gradient", opposite=True),
    "forget_Q_A_Prob": Name("tofu_probability_forget", "prob"),
    "forget_Q_A_ROUGE": Name("tofu_rouge_forget", "rougeL_recall"),
    "forget_truth_ratio": Name("tofu_truth_ratio_forget", high=math.inf),
    "forget_Truth_Ratio": Name("tofu_truth_ratio_forget", high=math.inf),
    "retain_Q_A_Prob": Name("tofu_probability_retain", "prob"),
    "retain_Q_A_ROUGE": Name("tofu_rouge_retain", "rougeL_recall"),
    "retain_Truth_Ratio": Name("tofu_truth_ratio_retain", high=math.inf),
    "ra_Q_A_Prob_normalised": Name("tofu_choice_authors", "prob"),
    "ra_Q_A_ROUGE": Name("tofu_rouge_authors", "rougeL_recall"),
    "ra_Truth_Ratio": Name("tofu_truth_ratio_authors", high=math.inf),
    "wf_Q_A_Prob_normalised": Name("tofu_choice_facts", "prob"),
    "wf_Q_A_ROUGE": Name("tofu_rouge_facts", "rougeL_recall"),
    "wf_Truth_Ratio": Name("tofu_truth_ratio_facts", high=math.inf),
    "model_utility": Name("tofu_utility"),
    "forget_quality": Name("tofu_forget_quality"),
}
# What is averaged of an item's value is not the value itself.
AVERAGED: Mapping[str, Callable[[Array], float]] = {
    "tofu_truth_ratio_forget": forget_truth,
    "tofu_truth_ratio_retain": useful_truth,
    "tofu_truth_ratio_authors": useful_truth,
    "tofu_truth_ratio_facts": useful_truth,
}


def is_log(data: Mapping[str, Any]) -> bool:
    """Whether a JSON object is one of open-unlearning's logs."""
    return any(isinstance(v, dict) and "agg_value" in v for v in data.values()) or any(
        name in NAMES and not isinstance(v, dict | list) for name, v in data.items()
    )


def entries(logs: Sequence[Log]) -> dict[str, tuple[Log, Mapping[str, JsonValue]]]:
    """The numbers of one model's logs by name: those with items before those of a summary."""
    found: dict[str, tuple[Log, Mapping[str, JsonValue]]] = {}
    for log in sorted(logs, key=lambda log: (log.file.stem.endswith("_SUMMARY"), log.file)):
        for name, value in sorted(log.data.items()):
            entry = value if isinstance(value, dict) else {"agg_value": value}
            if name not in found and "agg_value" in entry:
                found[name] = (log, entry)
    return found


def cells(make: Cells, logs: Sequence[Log], reference: Reference) -> tuple[list[Cell], list[str]]:
    """The cells of one model, and what was left out.

    Raises:
        UserError: a known number is a text or out of its range.
    """
    found: dict[str, Cell] = {}
    every = entries(logs)
    for name, (log, entry) in every.items():
        if name not in NAMES:
            continue
        for cell in _cells(make, f"{shown(log.file)}: {name}", NAMES[name], entry):
            if cell.metric not in found or found[cell.metric].low is None:
                found[cell.metric] = cell
    if reference.given:
        _against(make, every, found, reference)
    unknown = [shown(name)[:60] for name in every if name not in NAMES]
    return list(found.values()), [
        f"Left out, because it is not known here what they count: {', '.join(unknown)}."
    ] if unknown else []


def _against(
    make: Cells, every: Mapping[str, Any], found: dict[str, Cell], reference: Reference
) -> None:
    """PrivLeak and forget quality made again against the given retrain model.

    What cannot be made again is not shown as if it were.
    """
    own = min_k(every)
    if "privleak" in found or own is not None:
        found["privleak"] = make.privleak(own, reference)
    ratios = truth_ratios(every)
    if reference.log is None or (
        "tofu_forget_quality" not in found and (ratios is None or reference.ratios is None)
    ):
        return
    if ratios is None or reference.ratios is None:
        lacking = "the retrain model's log" if ratios is not None else "the log"
        found["tofu_forget_quality"] = make.stored(
            "tofu_forget_quality", None, status=f"{lacking} holds no truth ratios to compare"
        )
    else:
        found["tofu_forget_quality"] = quality(make, ratios, reference.ratios)


def quality(make: Cells, own: Mapping[str, float], other: Mapping[str, float]) -> Cell:
    """TOFU's forget quality of truth ratios by question.

    Both models must have been asked the same questions.
    """
    if set(own) != set(other):
        reason = f"the retrain model's log holds other questions ({len(other)}, here {len(own)})"
        return make.stored("tofu_forget_quality", None, status=reason)
    value = forget_quality(np.array([own[k] for k in own]), np.array([other[k] for k in own]))
    return make.stored("tofu_forget_quality", value, len(own), "ok, no interval")


def _cells(make: Cells, where: str, known: Name, entry: Mapping[str, Any]) -> list[Cell]:
    if known.metric == "privleak":
        value = number(where, entry["agg_value"], -100, math.inf)
        status = "ok, no interval: against the reference of the log's own run"
        return [
            make.stored(
                "privleak",
                None if value is None else value / 100,
                status=status if value is not None else "",
            )
        ]
    value = number(where, entry["agg_value"])
    if known.opposite:
        sides = _sides(where, entry)
        if sides:
            return [
                _checked(make.of_sides(known.metric, *sides), None if value is None else 1 - value)
            ]
        return [make.stored(known.metric, None if value is None else 1 - value)]
    rows = _rows(entry)
    column = [
        number(f"{where}, item {shown(i)[:40]}", row[known.key], 0, known.high)
        for i, row in rows.items()
        if known.key in row
    ]
    if not any(v is not None for v in column):
        return [make.stored(known.metric, value)]
    column += [None] * (len(rows) - len(column))
    cell = _checked(make.of_items(known.metric, column, AVERAGED.get(known.metric)), value)
    return [cell, *_unstemmed(make, known.metric, list(rows.values()))]


def _rows(entry: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Items by their key.

    Those that hold several answers each (lists) are no items of one number.
    """
    items = entry.get("value_by_index")
    rows: dict[str, Mapping[str, Any]] = {}
    for key, row in items.items() if isinstance(items, dict) else ():
        rows[str(key)] = row if isinstance(row, dict) else {}
    return {} if any(isinstance(v, list) for row in rows.values() for v in row.values()) else rows


def _checked(cell: Cell, own: float | None) -> Cell:
    """A cell made of items beside the log's own number (0 to 1): where the two differ, neither can
    be believed.
    """
    if own is None or cell.value is None or abs(cell.value / 100 - own) <= SAME:
        return cell
    status = f"not read: its items give {cell.value:.1f}, the log itself says {100 * own:.1f}"
    return cell.model_copy(update={"value": None, "low": None, "high": None, "status": status})


def _sides(where: str, entry: Mapping[str, Any]) -> tuple[Array, Array] | None:
    """An attack's values on forget and holdout text, low where text is known.

    None where the log has no items.
    """
    columns = []
    for side in ("forget", "holdout"):
        rows = _rows(entry[side]) if isinstance(entry.get(side), dict) else {}
        values = [
            number(f"{where}, {side} item {shown(i)[:40]}", row.get("score"), -math.inf, math.inf)
            for i, row in rows.items()
        ]
        if not values or any(v is None for v in values):
            return None
        columns.append(np.array(values, dtype=np.float64))
    return columns[0], columns[1]


def min_k(every: Mapping[str, tuple[Log, Mapping[str, Any]]]) -> tuple[Array, Array] | float | None:
    """Values of Min-40 % on both sides, or the stored AUC as it counts here, or None."""
    if "mia_min_k" not in every:
        return None
    log, entry = every["mia_min_k"]
    where = f"{shown(log.file)}: mia_min_k"
    stored = number(where, entry["agg_value"])
    return _sides(where, entry) or (None if stored is None else 1 - stored)


def truth_ratios(every: Mapping[str, tuple[Log, Mapping[str, Any]]]) -> dict[str, float] | None:
    """Truth ratios of the forget questions by their key; None where the log has none."""
    for name in ("forget_truth_ratio", "forget_Truth_Ratio"):
        log, entry = every.get(name, (None, {}))
        rows = _rows(entry)
        where = f"{shown(log.file)}: {name}" if log else ""
        found = {k: number(where, row.get("score"), 0, math.inf) for k, row in rows.items()}
        if found and all(v is not None for v in found.values()):
            return {k: v for k, v in found.items() if v is not None}
    return None


def reference_of(
    logs: Sequence[Log],
) -> tuple[float | tuple[Array, Array] | None, dict[str, float] | None]:
    """What a retrain model's logs say: Min-40 % and truth ratios.

    Raises UserError where they say neither.
    """
    every = entries(logs)
    found = min_k(every), truth_ratios(every)
    if found == (None, None):
        raise UserError(
            f"{shown(logs[0].file)} holds no AUC with Min-40% (mia_min_k) and no truth ratios.",
            "Give the retrain model's *_EVAL.json.",
        )
    return found


def _unstemmed(make: Cells, metric: str, rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """The same texts scored as MUSE does, where the log has them."""
    texts = [(row.get("ground_truth"), row.get("generation")) for row in rows]
    if not metric.endswith("_stemmed") or not all(
        isinstance(t, str) and isinstance(g, str) for t, g in texts
    ):
        return []
    return [
        make.of_items(metric.removesuffix("_stemmed"), [rouge(str(t), str(g)) for t, g in texts])
    ]
