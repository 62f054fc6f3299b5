"""Evaluation logs that other tools wrote -> the same cells as a measured model. No torch.

Read are open-unlearning's ``*_EVAL.json`` and ``*_SUMMARY.json``, MUSE's ``log.json``, ``agg.json`` and ``auc.json`` (also those of the
code released with arXiv 2410.16454), and TOFU's aggregated evaluation logs. Where a tool defines a number otherwise, the name says so.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from remnant.errors import Unscorable, UserError
from remnant.functional.stats import Interval, bootstrap, bootstrap_mean, privleak
from remnant.functional.text import cut_answer, overlap
from remnant.functional.tofu import USEFUL, forget_quality, forget_truth, model_utility, useful_truth
from remnant.records import CastMember, Cell, Rule, status_of

Array = NDArray[np.float64]


class Name(NamedTuple):
    """How a number of another tool is called here: ``key`` of an item's value, ``unit`` to x100, ``opposite`` where it is 1 - ours."""

    metric: str
    key: str = "score"
    unit: float = 100.0
    opposite: bool = False


# open-unlearning, configs/eval: ROUGE of MUSE is stemmed there, AUCs are 1 - ours, PrivLeak is in percent already.
OPEN_UNLEARNING: Mapping[str, Name] = {
    "forget_verbmem_ROUGE": Name("verbmem_stemmed", "rougeL_f1"),
    "forget_knowmem_ROUGE": Name("knowmem_forget_stemmed", "rougeL_f1"),
    "retain_knowmem_ROUGE": Name("knowmem_retain_stemmed", "rougeL_f1"),
    "privleak": Name("privleak", unit=1.0),
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
    "forget_truth_ratio": Name("tofu_truth_ratio_forget"),
    "forget_Truth_Ratio": Name("tofu_truth_ratio_forget"),
    "retain_Q_A_Prob": Name("tofu_probability_retain", "prob"),
    "retain_Q_A_ROUGE": Name("tofu_rouge_retain", "rougeL_recall"),
    "retain_Truth_Ratio": Name("tofu_truth_ratio_retain"),
    "ra_Q_A_Prob_normalised": Name("tofu_choice_authors", "prob"),
    "ra_Q_A_ROUGE": Name("tofu_rouge_authors", "rougeL_recall"),
    "ra_Truth_Ratio": Name("tofu_truth_ratio_authors"),
    "wf_Q_A_Prob_normalised": Name("tofu_choice_facts", "prob"),
    "wf_Q_A_ROUGE": Name("tofu_rouge_facts", "rougeL_recall"),
    "wf_Truth_Ratio": Name("tofu_truth_ratio_facts"),
    "model_utility": Name("tofu_utility"),
    "forget_quality": Name("tofu_forget_quality"),
}
# What open-unlearning averages of an item's value is not the value itself.
AVERAGED: Mapping[str, Callable[[Array], float]] = {
    "tofu_truth_ratio_forget": forget_truth,
    "tofu_truth_ratio_retain": useful_truth,
    "tofu_truth_ratio_authors": useful_truth,
    "tofu_truth_ratio_facts": useful_truth,
}
MUSE_FOLDERS = {"verbmem_f": "verbmem", "knowmem_f": "knowmem_forget", "knowmem_r": "knowmem_retain"}
MUSE_SCORES = {
    "PPL": "mia_loss",
    "PPL/lower": "mia_lower",
    "PPL/zlib": "mia_zlib",
    "Min-20%": "mia_min20",
    "Min-40%": "auc",
    "Min-60%": "mia_min60",
}
TOFU_FILES = {
    "eval_log_forget.json": "forget",
    "eval_log.json": "retain",
    "eval_real_author_wo_options.json": "authors",
    "eval_real_world_wo_options.json": "facts",
}
TOFU_KEYS = ("avg_gt_loss", "average_perturb_loss", "avg_paraphrased_loss", "rougeL_recall")


def is_foreign(path: Path) -> bool:
    """Whether a file or folder is read here: folders, and files that are one JSON value and not lines of several."""
    if path.is_dir():
        return True
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError):
        return False
    return isinstance(data, list) or (isinstance(data, dict) and "metric" not in data)


def read_foreign(path: Path, rule: Rule, retrain: Path | None, auc_retrain: float | None) -> list[Cell]:
    """The cells of another tool's logs.

    Args:
        path: one file, or a folder that is searched for such files.
        rule: resamples and seed of the intervals.
        retrain: the same tool's log of a model that never read the forget text, for TOFU's forget quality and PrivLeak.
        auc_retrain: or that model's AUC with Min-40%, as MUSE counts it.

    Raises:
        UserError: nothing that is known here.
    """
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    cells: dict[str, Cell] = {}
    for file in files:
        for cell in _read_file(file, path, rule, retrain, auc_retrain):
            if cells.get(cell.metric) is None or cells[cell.metric].low is None:
                cells[cell.metric] = cell
    if not cells:
        raise UserError(
            f"{path} holds no evaluation log that is known here.",
            "Known: open-unlearning's EVAL and SUMMARY, MUSE's log, agg and auc, TOFU's aggregated logs, and JSON lines.",
        )
    return list(cells.values())


def _read_file(file: Path, asked: Path, rule: Rule, retrain: Path | None, auc_retrain: float | None) -> list[Cell]:
    data = _json(file)
    member = CastMember(
        corpus=asked.stem, model=asked.parent.name or asked.stem, method=None, weights=None, quantizer="as given", seed=None
    )
    make = _Cells(member, rule)
    if isinstance(data, list):
        return _muse_texts(make, file, data)
    if not isinstance(data, dict):
        return []
    if "eval_log_forget.json" in data:
        return _tofu(make, data, _json(retrain) if retrain else None)
    if any(isinstance(v, dict) and "agg_value" in v for v in data.values()):
        return [c for name, found in sorted(data.items()) if isinstance(found, dict) for c in _open_unlearning(make, name, found)]
    if any(name in OPEN_UNLEARNING for name in data):
        return [c for name, v in sorted(data.items()) for c in _open_unlearning(make, name, {"agg_value": v})]
    if any(key.startswith("forget_holdout_") for key in data):
        return _muse_aucs(make, data, _reference(retrain, auc_retrain))
    if "mean_rougeL" in data and file.parent.name in MUSE_FOLDERS:
        return [make.stored(MUSE_FOLDERS[file.parent.name], 100 * data["mean_rougeL"])]
    return []


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"The file {path} does not exist.") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not JSON in UTF-8: {error}.", "Was it copied in whole?") from error


class _Cells:
    """Cells of one model: from the values of items, with an interval, or from a stored number, without."""

    def __init__(self, member: CastMember, rule: Rule) -> None:
        self._about, self.rule = member.model_dump(), rule

    def stored(self, metric: str, value: float | None, n: int = 0) -> Cell:
        known = value is not None and np.isfinite(value)
        status = "ok, no interval: the log holds no items" if known else "the log holds no number"
        return Cell(
            **self._about,
            metric=metric,
            value=float(value) if known and value is not None else None,
            low=None,
            high=None,
            n=n,
            status=status,
        )

    def of_items(self, metric: str, values: Sequence[float | None], of: Callable[[Array], float] | None = None) -> Cell:
        column = np.array([v for v in values if v is not None], dtype=np.float64)
        found: Interval | None
        if of:
            found = bootstrap(lambda i: of(column[i[0]]), (len(column),), self.rule.resamples, self.rule.seed)
        else:
            found = bootstrap_mean(column, self.rule.resamples, self.rule.seed)
        status = status_of(found is not None, Counter({"the log holds no number": len(values) - len(column)}))
        value, low, high = (100 * x for x in found) if found else (None, None, None)
        return Cell(**self._about, metric=metric, value=value, low=low, high=high, n=len(column), status=status)


def _open_unlearning(make: _Cells, name: str, found: Mapping[str, Any]) -> list[Cell]:
    known = OPEN_UNLEARNING.get(name)
    value = found.get("agg_value")
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        return []
    if known is None:
        return [make.stored(name, value)] if value is not None else []
    items = found.get("value_by_index")
    if isinstance(items, dict) and items and not known.opposite:
        rows = [row if isinstance(row, dict) else {} for row in items.values()]
        column = [row.get(known.key) for row in rows]
        if all(isinstance(v, int | float | None) for v in column) and any(v is not None for v in column):
            cells = [make.of_items(known.metric, column, AVERAGED.get(known.metric))]
            return cells + _unstemmed(make, known.metric, rows)
    if value is None:
        return [make.stored(known.metric, None)]
    return [make.stored(known.metric, known.unit * (1 - value if known.opposite else value))]


def _unstemmed(make: _Cells, metric: str, rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """The same texts scored as MUSE does, where the log has them."""
    texts = [(row.get("ground_truth"), row.get("generation")) for row in rows]
    if not metric.endswith("_stemmed") or not all(isinstance(t, str) and isinstance(g, str) for t, g in texts):
        return []
    return [make.of_items(metric.removesuffix("_stemmed"), [_rouge(str(t), str(g)) for t, g in texts])]


def _rouge(truth: str, generated: str) -> float | None:
    try:
        return overlap(truth, generated)
    except Unscorable:
        return None


def _muse_texts(make: _Cells, file: Path, rows: Sequence[Any]) -> list[Cell]:
    """MUSE's log of VerMem or KnowMem, scored again from its texts."""
    metric = MUSE_FOLDERS.get(file.parent.name)
    keys = ("gt", "response")
    if metric is None or not rows or not all(isinstance(r, dict) and all(isinstance(r.get(k), str) for k in keys) for r in rows):
        return []
    said = [r["response"] if metric == "verbmem" else cut_answer(r["response"]) for r in rows]
    return [make.of_items(metric, [_rouge(r["gt"], text) for r, text in zip(rows, said, strict=True)])]


def _muse_aucs(make: _Cells, data: Mapping[str, Any], reference: float | None) -> list[Cell]:
    """MUSE's AUCs of forget against holdout text; they count as here."""
    cells = [make.stored(ours, 100 * data[key]) for theirs, ours in MUSE_SCORES.items() if (key := f"forget_holdout_{theirs}") in data]
    own = data.get("forget_holdout_Min-40%")
    if own is None:
        return cells
    if reference is None:
        nothing = make.stored("privleak", None)
        return [*cells, nothing.model_copy(update={"status": "no reference: give the retrain model's log or AUC"})]
    return [*cells, make.stored("privleak", 100 * privleak(own, reference))]


def _reference(retrain: Path | None, auc_retrain: float | None) -> float | None:
    if auc_retrain is not None or retrain is None:
        return auc_retrain
    files = sorted(retrain.rglob("auc.json")) if retrain.is_dir() else [retrain]
    found = [d["forget_holdout_Min-40%"] for f in files if isinstance(d := _json(f), dict) and "forget_holdout_Min-40%" in d]
    if not found:
        raise UserError(f"{retrain} holds no AUC with Min-40%.", "Give the retrain model's auc.json.")
    return float(found[0])


def _tofu(make: _Cells, data: Mapping[str, Any], retrain: Any) -> list[Cell]:
    """TOFU's aggregated log: probabilities, ROUGE and truth ratios of every set, utility, and forget quality against a retrain model's."""
    cells, columns = [], {}
    for file, name in TOFU_FILES.items():
        if file not in data:
            continue
        own, wrong, paraphrased, rouge = (_column(data[file], key, file) for key in TOFU_KEYS)
        chance = np.exp(-own)
        if name in ("authors", "facts"):
            chance = chance / (chance + np.exp(-wrong).sum(-1))
        ratios = np.exp(paraphrased - wrong.mean(-1))
        columns[name] = np.stack([chance, rouge, ratios])
        kind = "choice" if name in ("authors", "facts") else "probability"
        cells.append(make.of_items(f"tofu_{kind}_{name}", list(chance)))
        cells.append(make.of_items(f"tofu_rouge_{name}", list(rouge)))
        cells.append(make.of_items(f"tofu_truth_ratio_{name}", list(ratios), forget_truth if name == "forget" else useful_truth))
    if set(USEFUL) <= set(columns):
        cells.append(make.stored("tofu_utility", 100 * model_utility({s: columns[s] for s in USEFUL})))
    if isinstance(retrain, dict) and "eval_log_forget.json" in retrain:
        log = retrain["eval_log_forget.json"]
        other = np.exp(_column(log, TOFU_KEYS[2], "the retrain log") - _column(log, TOFU_KEYS[1], "the retrain log").mean(-1))
        cells.append(make.stored("tofu_forget_quality", 100 * forget_quality(columns["forget"][2], other), len(other)))
    return cells


def _column(log: Any, key: str, where: str) -> Array:
    try:
        return np.array(list(log[key].values()), dtype=np.float64)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where} has no column {key} of numbers.", "Is it TOFU's evaluation log?") from error
