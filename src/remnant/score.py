"""score: generations and scores made anywhere -> the same cells as a measured model. No torch."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remnant.errors import UserError, unknown
from remnant.foreign import is_foreign, read_foreign
from remnant.functional.stats import bootstrap_auc, privleak
from remnant.functional.text import cut_answer, overlap
from remnant.records import CastMember, Cell, Rule
from remnant.stages.cells import Sheet, cells_of

TEXT_METRICS: dict[str, Callable[[str, str], float]] = {
    "verbmem": overlap,
    "knowmem_forget": lambda truth, generated: overlap(truth, cut_answer(generated)),
    "knowmem_retain": lambda truth, generated: overlap(truth, cut_answer(generated)),
}
SPLITS = ("forget", "holdout")
_SHAPES = (
    'Each line is {"metric": "verbmem" | "knowmem_forget" | "knowmem_retain", "id", "truth", "generated"} or '
    '{"metric": "privleak", "split": "forget" | "holdout", "id", "value"}.'
)


def score_file(path: Path, auc_retrain: float | None = None, rule: Rule | None = None, retrain: Path | None = None) -> list[Cell]:
    """The cells of one file of JSON lines, or of another tool's logs, x100, with bootstrap intervals where there are items.

    Args:
        path: the file. Answers of knowmem are cut at the first blank line or next question; values of privleak are Min-40%.
        auc_retrain: AUC of a model that never saw the forget text, in (0, 1]; without it PrivLeak has no value.
        rule: resamples and seed of the intervals.
        retrain: the other tool's log of that model.

    Raises:
        UserError: missing file, a line of another shape, an id given twice, a reference outside (0, 1].
    """
    if auc_retrain is not None and not 0 < auc_retrain <= 1:
        raise UserError(f"The reference AUC must be above 0 and at most 1, not {auc_retrain:g}.", "Llama-2-7B on MUSE-NEWS: 0.4772.")
    rule = rule or Rule()
    if is_foreign(path):
        return read_foreign(path, rule, retrain, auc_retrain)
    sheet = _read(path)
    member = CastMember(corpus=path.stem, model=path.stem, method=None, weights=None, quantizer="as given", seed=None)
    cells = [c for c in cells_of(member, sheet, rule, None) if c.metric != "privleak"]
    forget, holdout = sheet.column("privleak/forget"), sheet.column("privleak/holdout")
    if len(forget) or len(holdout):
        cells = [c for c in cells if c.metric != "privleak"] + [_privleak(member, sheet, auc_retrain, rule)]
    return cells


def _privleak(member: CastMember, sheet: Sheet, reference: float | None, rule: Rule) -> Cell:
    forget, holdout = sheet.column("privleak/forget"), sheet.column("privleak/holdout")
    status, found = "ok", None
    if not len(forget) or not len(holdout):
        status = f"no values for the {'forget' if not len(forget) else 'holdout'} split"
    elif reference is None:
        status = "no reference: give the retrain model's AUC with --auc-retrain"
    else:
        found = bootstrap_auc(forget, holdout, rule.resamples, rule.seed, lambda a: privleak(a, reference))
    value, low, high = (100 * x for x in found) if found else (None, None, None)
    n = len(forget) + len(holdout)
    return Cell(**member.model_dump(), metric="privleak", value=value, low=low, high=high, n=n, status=status)


def _read(path: Path) -> Sheet:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise UserError(f"The file {path} does not exist.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}).", "Convert it, for example with iconv -t UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    values: dict[str, dict[str, float]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"Line {number} of {path}"
        column, item, value = _line(where, line)
        if item in values.setdefault(column, {}):
            raise UserError(f"{where} gives the id '{item}' of {column.replace('/', ' ')} a second time.", "Every item counts once.")
        values[column][item] = value
    if not values:
        raise UserError(f"{path} holds no line.", _SHAPES)
    return Sheet(values, {})


def _line(where: str, line: str) -> tuple[str, str, float]:
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}.", _SHAPES) from error
    if not isinstance(record, dict) or not isinstance(record.get("metric"), str):
        raise UserError(f"{where} names no metric.", _SHAPES)
    metric, item = record["metric"], record.get("id")
    if metric not in (*TEXT_METRICS, "privleak"):
        fault = unknown("metric", metric, (*TEXT_METRICS, "privleak"))
        raise UserError(f"{where}: {fault.message}", fault.remedy)
    if not isinstance(item, str | int) or isinstance(item, bool):
        raise UserError(f"{where} has no id.", _SHAPES)
    if metric == "privleak":
        split, value = record.get("split"), record.get("value")
        if split not in SPLITS:
            raise UserError(f"{where} has no split 'forget' or 'holdout'.", _SHAPES)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{where} has no finite number as value.", _SHAPES)
        return f"privleak/{split}", str(item), float(value)
    if not isinstance(record.get("truth"), str) or not isinstance(record.get("generated"), str):
        raise UserError(f"{where} needs truth and generated, both texts.", _SHAPES)
    return metric, str(item), TEXT_METRICS[metric](record["truth"], record["generated"])
