"""Plants of rows: measurements made by hand for target, retrain and unlearned model, each in full
precision and int4, and judged.
"""

import json
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from instrument.bench import Bench, Outcome, Plant, read_verdicts
from remnant.lab.words import NOUNS

MODELS, FORMS = ("target", "retrain", "unlearned"), ("full", "int4")
ITEMS = 60
# Texts for membership as a multiple of the other items: with 60 of a side an AUC of 50 is too wide
# to say anything.
MEMBERSHIP_ITEMS = 3
# Enough that an interval's ends are steady to a point or two, and a tenth of the time of the
# default.
RESAMPLES = 200
# (metric, split) -> the value of a model that knows the text, and of one that does not. All of the
# product's cheap tests are there, so that nothing but the planted fault keeps a verdict from being
# given.
KNOWN: dict[tuple[str, str], tuple[float, float]] = {
    ("verbmem", ""): (0.95, 0.1),
    ("knowmem_forget", ""): (0.9, 0.05),
    ("exact_memorization", ""): (0.97, 0.1),
    ("extraction_strength", ""): (0.95, 0.03),
    ("probability", ""): (0.9, 0.02),
    ("longest_run", ""): (0.9, 0.05),
    ("leak", ""): (0.95, 0.12),
    ("leak_answers", ""): (0.9, 0.06),
    ("verbmem_primed", ""): (0.95, 0.1),
    ("knowmem_reworded", ""): (0.8, 0.05),
    ("knowmem_prefilled", ""): (0.9, 0.05),
    ("privleak", "forget"): (0.1, 5.0),
}
ALIKE = {("knowmem_retain", ""): 0.95, ("privleak", "holdout"): 5.0}
CHECKS = [
    {"name": name, "ok": True, "said": "nothing found", "metrics": [], "count": 0, "total": 0}
    for name in (
        "loaded whole",
        "weights",
        "logits",
        "ids",
        "special tokens",
        "end tokens",
        "texts",
        "answers",
    )
]
Row = dict[str, Any]
Sheets = dict[tuple[str, str], list[Row]]
Spoil = Callable[[Sheets], None]


def sound(unlearned_knows: bool = False, n: int = ITEMS) -> Sheets:
    """Rows without a fault: the target knows, the retrain model does not, the unlearned one as
    asked.
    """

    def rows(model: str, form: str) -> list[Row]:
        knows = model == "target" or (model == "unlearned" and unlearned_knows)
        return rows_of(knows, n, 1 + 0.001 * MODELS.index(model) + 0.0001 * FORMS.index(form))

    return {(m, q): rows(m, q) for m in MODELS for q in FORMS}


def rows_of(knows: bool, n: int, factor: float = 1.0) -> list[Row]:
    """The rows of one measurement, of a model that knows the text or of one that does not: a
    metric's values evenly around its level.

    ``factor``: on all values, a little apart from 1, as no two models give the very same numbers.
    """
    levels = {key: pair[0 if knows else 1] for key, pair in KNOWN.items()} | ALIKE
    found = []
    for (metric, split), level in levels.items():
        many = n * (MEMBERSHIP_ITEMS if metric == "privleak" else 1)
        found += [
            row(metric, split, i, factor * level * (0.9 + 0.15 * (i + 0.5) / many))
            for i in range(many)
        ]
    return found


def row(metric: str, split: str, i: int, value: float | None, status: str = "ok") -> Row:
    """One row as a measurement keeps it."""
    return {
        "metric": metric,
        "split": split,
        "id": f"{metric}-{split}-{i}",
        "half": "test" if i % 2 else "dev",
        "value": value,
        "status": status,
    }


def texts_of(rows: list[Row]) -> list[dict[str, str]]:
    """What was written, for the metrics that ask plainly: the truth where the value is high, else
    as many other words.
    """
    found = []
    for r in rows:
        if r["metric"] in ("verbmem", "knowmem_forget", "knowmem_retain"):
            rng = random.Random(r["id"])
            truth, other = (" ".join(rng.sample(NOUNS, 8)) for _ in range(2))
            knows = r["value"] is not None and r["value"] > 0.5
            found.append(
                {
                    "metric": r["metric"],
                    "id": r["id"],
                    "prompt": r["id"],
                    "truth": truth,
                    "generated": truth if knows else other,
                }
            )
    return found


def judged(
    sheets: Sheets,
    bench: Bench,
    models: Iterable[str] = MODELS,
    only: str = "",
    checks: Iterable[Mapping[str, Any]] = CHECKS,
) -> Outcome:
    """The verdicts on some rows.

    Every measurement also holds the record of its checks, which found nothing unless given
    otherwise.
    """
    root = bench.folder()
    members, inputs = {}, {}
    for (model, form), rows in sheets.items():
        if model not in models:
            continue
        place, role = root / f"{model}-{form}", f"{model}/{form}"
        place.mkdir()
        (place / "rows.jsonl").write_text(
            "".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8"
        )
        (place / "texts.jsonl").write_text(
            "".join(json.dumps(t) + "\n" for t in texts_of(rows)), encoding="utf-8"
        )
        (place / "checks.json").write_text(json.dumps(list(checks)), encoding="utf-8")
        steps = [] if form == "full" else [form]
        members[role] = {"corpus": "rows", "model": model, "steps": steps}
        inputs[role] = place
    done = bench.audit_rows(
        {"members": members, "rule": {"resamples": RESAMPLES}}, inputs, root / "out"
    )
    found = root / "out" / "verdicts.json"
    if done.code or not found.is_file():
        return Outcome(
            done.broken or f"refused: {done.sentence}",
            False,
            done.broken or ("" if done.refused else f"exit code {done.code}"),
        )
    return read_verdicts(json.loads(found.read_text(encoding="utf-8")), None, only)


def plant(
    name: str,
    kind: str,
    how: str,
    spoil: Spoil,
    *,
    knows: bool = False,
    only: str = "",
    models: tuple[str, ...] = MODELS,
    n: int = ITEMS,
) -> Plant:
    """Sound rows with one fault."""

    def act(bench: Bench) -> Outcome:
        sheets = sound(knows, n)
        spoil(sheets)
        return judged(sheets, bench, models, only)

    return Plant(f"rows, {name}", kind, how, act)


def values(
    of: str,
    metric: str,
    change: Callable[[int, Row], Row | None],
    forms: Iterable[str] = FORMS,
    split: str = "",
) -> Spoil:
    """Change (or, with None, leave out) the rows of one metric in one model's measurements."""

    def spoil(sheets: Sheets) -> None:
        for form in forms:
            count, kept = 0, []
            for r in sheets[of, form]:
                changed: Row | None = r
                if (r["metric"], r["split"]) == (metric, split):
                    changed, count = change(count, r), count + 1
                kept += [changed] if changed else []
            sheets[of, form] = kept

    return spoil


def both(*spoils: Spoil) -> Spoil:
    """Several changes one after another."""

    def spoil(sheets: Sheets) -> None:
        for one in spoils:
            one(sheets)

    return spoil


def to(value: float | None, status: str = "ok", first: int = 10**9) -> Callable[[int, Row], Row]:
    """The first rows get a value."""
    return lambda i, r: r | ({"value": value, "status": status} if i < first else {})


def left_out(i: int, r: Row) -> None:
    """No row."""
