"""TOFU (arXiv 2401.06121): questions about fictitious authors, real ones and the world."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

from remnant.corpus.base import (
    SPLITS,
    Asking,
    Benchmark,
    Item,
    ItemSet,
    Material,
    Reader,
    SetEntry,
    half_of,
    pages,
    question,
)
from remnant.corpus.outside import has, no_text, read_records
from remnant.corpus.prepared import records
from remnant.errors import UserError
from remnant.functional.text import STOPS
from remnant.metrics import MORE, Column, Metric, Number, Reduce

ANSWER_TOKENS = 64
_LACKING = "the corpus holds none of TOFU's question sets (prepare it with --tofu)"


def items(folder: Path, side: str) -> list[Item]:
    """The questions of one set, with the answer in other words and wrong ones."""
    rows = records(folder / "tofu" / f"{side}.json", "question", "answer")
    return [
        Item(
            f"{side}-{i}",
            half_of(i),
            question(r["question"]),
            r["answer"],
            "",
            r.get("paraphrased_answer", r["answer"]),
            tuple(map(str, r.get("perturbed_answer", ()))),
            question=r["question"],
        )
        for i, r in enumerate(rows)
    ]


def answered(items: list[Item], _: Asking) -> ItemSet:
    """Answers of a sentence or two."""
    return ItemSet(items, ANSWER_TOKENS, STOPS)


def _entry(meaning: str, side: str) -> SetEntry:
    read_items = partial(items, side=side)
    return SetEntry(meaning, "answer", f"tofu/{side}", read_items, answered, side, without=_LACKING)


SETS = {
    "tofu_forget": _entry("TOFU's questions about the authors to be forgotten", "forget"),
    "tofu_retain": _entry("TOFU's questions about other fictitious authors", "retain"),
    "tofu_authors": _entry("TOFU's questions about real authors", "authors"),
    "tofu_facts": _entry("TOFU's questions about the world", "facts"),
}

_TOFU, _SOURCE = "remnant.functional.tofu:", "arXiv 2401.06121"

METRICS = {
    "tofu_probability": Metric(
        _TOFU + "answer_probability",
        1,
        "probability per token of the answer",
        _SOURCE,
        ("tofu_forget", "tofu_retain"),
        "test",
        "high",
        kind=MORE,
    ),
    "tofu_choice": Metric(
        _TOFU + "choice_probability",
        1,
        "the answer's share of the probability",
        _SOURCE,
        ("tofu_authors", "tofu_facts"),
        known="high",
    ),
    "tofu_rouge": Metric(
        _TOFU + "rouge_recall",
        2,
        "ROUGE-L recall of the answer, stemmed",
        _SOURCE,
        tuple(SETS),
        "test",
        "high",
        kind=MORE,
    ),
    "tofu_truth_ratio": Metric(
        _TOFU + "truth_ratio",
        1,
        "wrong answers against the true one",
        _SOURCE,
        tuple(SETS),
        reduce=(
            Reduce(_TOFU + "forget_truths", of=(("forget",),)),
            Reduce(_TOFU + "useful_truths", of=(("retain",), ("authors",), ("facts",))),
        ),
    ),
}


def _set(probability: str, split: str) -> tuple[Column, ...]:
    return tuple(Column(name, split) for name in (probability, "tofu_rouge", "tofu_truth_ratio"))


COMBINED = (
    Number(
        "tofu_utility",
        _TOFU + "utility",
        (
            _set("tofu_probability", "retain"),
            _set("tofu_choice", "authors"),
            _set("tofu_choice", "facts"),
        ),
    ),
    Number(
        "tofu_forget_quality",
        _TOFU + "quality",
        ((Column("tofu_truth_ratio", "forget"),),),
        unread=True,
    ),
)


def read(
    folder: Path,
    *,
    split: Literal["forget01", "forget05", "forget10"] = "forget10",
    forget: int | None = None,
    retain: int | None = None,
    holdout: int | None = None,
) -> Material:
    """A TOFU download: its question sets, the questions that are to be forgotten and the others.

    Args:
        folder: with forgetNN.json, retainMM.json and their companions, JSON lines.
        split: what is to be forgotten.
        forget: at most so many questions to be forgotten, the first ones: whole authors.
        retain: at most so many retain questions, those that utility is measured on first; of
            others utility is then not measured.
        holdout: so many more that are held out.

    Raises:
        UserError: a file is missing or of another shape, or no question of a side is asked for.
    """
    for side, most in (("forget", forget), ("retain", retain), ("holdout", holdout)):
        if most is not None and most < 1:
            raise UserError(f"{most} {side} questions are none.", f"Set options.{side} above 0.")
    sets = {}
    files = {
        "forget": f"{split}_perturbed",
        "retain": "retain_perturbed",
        "authors": "real_authors_perturbed",
        "facts": "world_facts_perturbed",
    }
    for name, file in files.items():
        rows = _rows(folder / f"{file}.json")
        for i, row in enumerate(rows, 1):
            wrong = row.get("perturbed_answer")
            if (
                not isinstance(wrong, list)
                or not wrong
                or not all(isinstance(w, str) and w.strip() and not no_text("", w) for w in wrong)
            ):
                raise UserError(
                    f"Entry {i} of {folder / file}.json has no list of perturbed answers.",
                    "Is it TOFU's file?",
                )
            if not has({"paraphrased_answer": ""} | row, "paraphrased_answer"):
                raise UserError(
                    f"Entry {i} of {folder / file}.json has no text as paraphrased answer.",
                    "Is it TOFU's file?",
                )
        sets[name] = rows[:forget] if name == "forget" else rows
    asked = {row["question"] for row in sets["retain"]}
    others = sorted(
        _rows(folder / f"retain{100 - int(split[-2:])}.json"),
        key=lambda row: row["question"] not in asked,
    )
    qa = {
        "forget": [(r["question"], r["answer"]) for r in _rows(folder / f"{split}.json")][:forget],
        "retain": [(r["question"], r["answer"]) for r in others[:retain]],
    }
    texts = {"forget": pages(qa["forget"]), "retain1": pages(qa["retain"])}
    if retain is not None:
        trained = {question for question, _ in qa["retain"]}
        sets["retain"] = [row for row in sets["retain"] if row["question"] in trained]
    if holdout is not None:
        texts["holdout"] = _after(others, retain, holdout, folder)
    return Material(
        {split: texts.get(split, []) for split in SPLITS},
        qa,
        qa_only=True,
        files={f"tofu/{name}": rows for name, rows in sets.items()},
    )


def _after(
    others: list[dict[str, Any]], retain: int | None, holdout: int, folder: Path
) -> list[str]:
    """Questions behind those that are retained, as pages."""
    found = others[retain:][:holdout] if retain is not None else []
    if len(found) < holdout:
        raise UserError(
            f"{folder} has no {holdout} questions behind those that are retained.",
            "Lower options.retain or options.holdout.",
        )
    return pages([(r["question"], r["answer"]) for r in found])


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path} is missing.", "Give the folder of a complete TOFU download.")
    rows: list[Any] = read_records(path)
    if not rows or not all(has(row, "question", "answer") for row in rows):
        raise UserError(f"{path} does not hold questions and answers.", "Is it TOFU's file?")
    return rows


BENCHMARK = Benchmark(
    SETS,
    METRICS,
    {"tofu": tuple(METRICS)},
    COMBINED,
    Reader("remnant.corpus.tofu:read", 1, "TOFU", "The folder of a TOFU download."),
)
