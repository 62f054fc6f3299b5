"""score: generations and scores made anywhere -> the same cells as a measured model. No torch."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from remnant.errors import UserError, unknown
from remnant.flow.digests import digest_path
from remnant.foreign.find import OWN, Found, Run, cells_of, find, reference
from remnant.foreign.logs import Reference, parse_json, read_text, rouge, shown, usable
from remnant.functional.stats import auc, bootstrap_auc, privleak
from remnant.functional.text import cut_answer
from remnant.metrics import MEMBERS, OTHERS, Column
from remnant.records import AS_GIVEN, Cell, Rule, Variant
from remnant.stages import cells as sheets
from remnant.stages.cells import Sheet

# PrivLeak divides by it; of as many texts as there are no AUC but 0 is smaller.
LEAST_AUC = 1e-6
TEXT_METRICS = ("verbmem", "knowmem_forget", "knowmem_retain")
PRIVLEAK, SIDES = "privleak", (Column("privleak", MEMBERS), Column("privleak", OTHERS))
_SHAPES = (
    'Each line is {"metric": "verbmem" | "knowmem_forget" | "knowmem_retain", "id", "truth", '
    '"generated"} or '
    '{"metric": "privleak", "split": "forget" | "holdout", "id", "value"}.'
)


def score_file(
    path: Path,
    auc_retrain: float | None = None,
    rule: Rule | None = None,
    retrain: Path | None = None,
) -> list[Cell]:
    """The cells of ``scored`` alone."""
    return scored(path, auc_retrain, rule, retrain).cells


def scored(
    path: Path,
    auc_retrain: float | None = None,
    rule: Rule | None = None,
    retrain: Path | None = None,
) -> Found:
    """The cells of one file of JSON lines, or of another tool's logs, x100, with bootstrap
    intervals where there are items.

    Of a folder with the logs of several models every model's cells bear its name; they are never
    mixed.

    Args:
        path: the file or folder. Answers of knowmem are cut at the first blank line or next
            question; values of privleak are Min-40%.
        auc_retrain: AUC of a model that never saw the forget text, in (0, 1]; without it PrivLeak
            has no value.
        rule: resamples and seed of the intervals.
        retrain: the same tool's log of that model.

    Raises:
        UserError: missing file, a line of another shape, an id given twice, a reference outside (0,
            1] or that is the log itself, nothing that can be read, no number at all.
    """
    if auc_retrain is not None and not LEAST_AUC <= auc_retrain <= 1:
        raise UserError(
            f"The reference AUC must be {LEAST_AUC:g} to 1, not {auc_retrain:g}.",
            "Llama-2-7B on MUSE-NEWS: 0.4772.",
        )
    rule = rule or Rule()
    runs, notes = find(path)
    against = _reference(auc_retrain, retrain, {r.tool for r in runs})
    if retrain is not None and digest_path(retrain) == digest_path(path):
        raise UserError(
            f"{shown(retrain)} is the log that is scored: against itself every model seems never "
            "to have read the text.",
            "Give the log of a model that never read it.",
        )
    found: list[Cell] = []
    for run in runs:
        cells, said = _of_run(run, path, rule, against)
        found += cells
        notes += [f"{run.name}: {s}" if len(runs) > 1 else s for s in said]
    if all(c.value is None and not c.status.startswith("no ") for c in found):
        reasons = Counter(c.status for c in found).most_common(1)
        raise UserError(
            f"{shown(path)} holds no number that can be "
            f"read{f': {reasons[0][0]}' if reasons else ''}.",
            " ".join(notes),
        )
    return Found(found, notes)


def _of_run(run: Run, path: Path, rule: Rule, against: Reference) -> Found:
    """The cells of one model; of a single file its folder names the model."""
    single = not path.is_dir()
    if run.tool == OWN:
        return Found(_own(run.logs[0].file, run.name, rule, against), [])
    model = (path.resolve().parent.name or path.stem) if single else run.name
    return cells_of(run, shown(path.stem), shown(model), rule, against)


def _reference(auc_retrain: float | None, retrain: Path | None, tools: set[str]) -> Reference:
    """What is known of the retrain model.

    Its log must be of the same tool as the logs that are read.
    """
    if retrain is None:
        return reference(auc_retrain, None)
    others, _ = find(retrain)
    strange = {r.tool for r in others} - tools
    if strange:
        raise UserError(
            f"{shown(retrain)} is a log of {' and '.join(sorted(strange))}, not of "
            f"{' and '.join(sorted(tools))}.",
            "Two tools count otherwise: give the same tool's log of the retrain model.",
        )
    if [r.tool for r in others] == [OWN]:
        sheet = _read(others[0].logs[0].file)
        forget, holdout = (sheet.column(side) for side in SIDES)
        if not len(forget) or not len(holdout):
            raise UserError(f"{shown(retrain)} holds no privleak values of both splits.", _SHAPES)
        return Reference(
            auc_retrain
            if auc_retrain is not None
            else usable(shown(retrain), auc(forget, holdout)),
            None,
            retrain,
        )
    return reference(auc_retrain, retrain)


def _own(path: Path, name: str, rule: Rule, against: Reference) -> list[Cell]:
    """The cells of a file of JSON lines."""
    sheet = _read(path)
    variant = Variant(corpus=shown(path.stem), model=shown(name), steps=(AS_GIVEN,))
    cells = [c for c in sheets.cells_of(variant, sheet, rule, None) if c.metric != PRIVLEAK]
    if any(len(sheet.column(side)) for side in SIDES):
        cells.append(_privleak(variant, sheet, against.auc, rule))
    return cells


def _privleak(variant: Variant, sheet: Sheet, reference: float | None, rule: Rule) -> Cell:
    forget, holdout = (sheet.column(side) for side in SIDES)
    status, found = "ok", None
    if not len(forget) or not len(holdout):
        status = f"no values for the {'forget' if not len(forget) else 'holdout'} split"
    elif reference is None:
        status = "no reference: give the retrain model's AUC with --auc-retrain"
    else:
        found = bootstrap_auc(
            forget, holdout, rule.resamples, rule.seed, lambda a: privleak(a, reference)
        )
    value, low, high = (100 * x for x in found) if found else (None, None, None)
    n = len(forget) + len(holdout)
    return Cell(
        **dict(variant),
        metric=PRIVLEAK,
        value=value,
        low=low,
        high=high,
        n=n,
        status=status,
    )


def _read(path: Path) -> Sheet:
    values: dict[Column, dict[str, float]] = {}
    unscorable: dict[Column, dict[str, str]] = {}
    seen: set[tuple[Column, str]] = set()
    # A line ends at a line feed and nowhere else: JSON texts may hold other characters that end
    # lines (U+2028, U+0085).
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"Line {number} of {shown(path)}"
        column, item, value = _line(where, line)
        if (column, item) in seen:
            raise UserError(
                f"{where} gives the id '{shown(item)}' of {' '.join(column).strip()} a second "
                f"time.",
                "Every item counts once.",
            )
        seen.add((column, item))
        scores = values.setdefault(column, {})
        if isinstance(value, str):
            unscorable.setdefault(column, {})[item] = value
        else:
            scores[item] = value
    if not seen:
        raise UserError(f"{shown(path)} holds no line.", _SHAPES)
    return Sheet(values, unscorable)


def _line(where: str, line: str) -> tuple[Column, str, float | str]:
    """The column, the item, and its value or why it has none."""
    try:
        record: Any = parse_json(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {shown(error)}.", _SHAPES) from error
    if not isinstance(record, dict) or not isinstance(record.get("metric"), str):
        raise UserError(f"{where} names no metric.", _SHAPES)
    metric, item = record["metric"], record.get("id")
    if metric not in (*TEXT_METRICS, PRIVLEAK):
        fault = unknown("metric", shown(metric)[:80], (*TEXT_METRICS, PRIVLEAK))
        raise UserError(f"{where}: {fault.message}", fault.remedy)
    if not isinstance(item, str | int) or isinstance(item, bool):
        raise UserError(f"{where} has no id.", _SHAPES)
    if metric == PRIVLEAK:
        return _side(where, record, str(item))
    truth, generated = record.get("truth"), record.get("generated")
    if not isinstance(truth, str) or not isinstance(generated, str):
        raise UserError(f"{where} needs truth and generated, both texts.", _SHAPES)
    return (
        Column(metric),
        str(item),
        rouge(truth, generated if metric == "verbmem" else cut_answer(generated)),
    )


def _side(where: str, record: dict[str, Any], item: str) -> tuple[Column, str, float]:
    split, value = record.get("split"), record.get("value")
    if split not in (MEMBERS, OTHERS):
        raise UserError(f"{where} has no split 'forget' or 'holdout'.", _SHAPES)
    # An integer beyond all floats is no number to rank either.
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value if abs(value) < 1e300 else math.inf)
    ):
        raise UserError(f"{where} has no finite number as value.", _SHAPES)
    return Column(PRIVLEAK, split), item, float(value)
