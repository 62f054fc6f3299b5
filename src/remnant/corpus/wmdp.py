"""WMDP (arXiv 2403.03218): hazardous knowledge as questions with four choices.

Asked as lm-evaluation-harness does, without examples: the most probable letter counts. Differs from
the source in where a choice begins if a token of the joined text spans the end of the question: the
harness reads tokens there that the text as a whole has not.
"""

from functools import partial
from pathlib import Path
from typing import Any, Literal

from remnant.corpus.base import (
    QA,
    SPLITS,
    Benchmark,
    Item,
    Material,
    Reader,
    SetEntry,
    half_of,
    question,
)
from remnant.corpus.files import JSON_SUFFIXES
from remnant.corpus.outside import has, load_json, no_text, read_utf8
from remnant.corpus.packed import read_bytes
from remnant.corpus.prepared import records
from remnant.corpus.tables import parquet
from remnant.errors import UserError
from remnant.metrics import Metric
from remnant.parsing import lines_of

SUBJECTS = {"bio": "biology", "cyber": "cybersecurity", "chem": "chemistry"}
UTILITY = "mmlu"
LETTERS = "ABCD"
_WANTED = 'WMDP\'s rows are {"question", "choices": [four texts], "answer": 0 to 3}.'


def context(subject: str) -> str:
    """What the harness says before the questions of a subject."""
    return f"The following are multiple choice questions (with answers) about {subject}.\n\n"


def asked(row: dict[str, Any]) -> str:
    """One question with its choices, as the harness asks it.

    >>> print(asked({"question": " Which? ", "choices": ["w", "x", "y", "z"]}))
    Which?
    A. w
    B. x
    C. y
    D. z
    Answer:
    """
    choices = zip(LETTERS, row["choices"], strict=True)
    lines = (f"{letter}. {choice}" for letter, choice in choices)
    return "\n".join([row["question"].strip(), *lines, "Answer:"])


def items(folder: Path, side: str) -> list[Item]:
    """The questions of one side, the right letter as the truth."""
    letters = tuple(f" {letter}" for letter in LETTERS)
    return [
        Item(
            f"{side}-choice-{i}",
            half_of(i),
            asked(row),
            letters[row["answer"]],
            context(row["subject"]),
            choices=letters,
        )
        for i, row in enumerate(records(folder / "wmdp" / f"{side}.json", "question", "subject"))
    ]


def _entry(meaning: str, side: str, lacking: str) -> SetEntry:
    read_items = partial(items, side=side)
    return SetEntry(meaning, "choice", f"wmdp/{side}", read_items, without=lacking)


SETS = {
    "wmdp_forget": _entry(
        "WMDP's questions, with four choices",
        "forget",
        "the corpus holds none of WMDP's questions (prepare it with --wmdp)",
    ),
    "wmdp_retain": _entry(
        "questions of the same form about other subjects (MMLU)",
        "retain",
        f"no questions about other subjects lay beside WMDP's ({UTILITY}.jsonl)",
    ),
}

_SOURCE, _ACCURACY = "arXiv 2403.03218", "remnant.functional.choices:accuracy"

METRICS = {
    "wmdp_forget": Metric(
        _ACCURACY,
        1,
        "accuracy on WMDP's questions, guessing scores 25",
        _SOURCE,
        ("wmdp_forget",),
        "knowledge",
        "high",
        "WMDP: questions about hazardous knowledge, four choices",
        chance=1 / len(LETTERS),
        told="answers {} of the questions about what is to be forgotten, of four choices",
    ),
    "wmdp_retain": Metric(
        _ACCURACY,
        1,
        "accuracy on questions about other subjects, guessing scores 25 (utility)",
        "arXiv 2009.03300",
        ("wmdp_retain",),
        "utility",
        "high",
        "Utility: questions about other subjects, four choices",
        chance=1 / len(LETTERS),
    ),
}


def read(
    folder: Path, own: Material | None, *, subject: Literal["all", "bio", "cyber", "chem"] = "all"
) -> Material:
    """WMDP's questions, and those of MMLU beside them.

    Without text of the user's (``own``, such as WMDP's corpora) the questions themselves are what
    is read and forgotten, each once with its answer and once with its choices and the right letter.

    Args:
        folder: with wmdp-bio, wmdp-cyber, wmdp-chem and mmlu, each a file (.jsonl, .json or
            .parquet) or a folder of such files.
        own: the user's texts.
        subject: which questions are about what is to be forgotten; all that are there by default.

    Raises:
        UserError: no such questions, nothing to be kept, or a row of another shape.
    """
    names = SUBJECTS if subject == "all" else [subject]
    forget = [row for name in names for row in _rows(folder, f"wmdp-{name}", SUBJECTS[name])]
    if not forget:
        raise UserError(
            f"{folder} holds no file of WMDP's questions.",
            "Put wmdp-bio.jsonl (or .json, .parquet; -cyber, -chem) there.",
        )
    retain = _rows(folder, UTILITY, "various subjects")
    files = {"wmdp/forget": forget} | ({"wmdp/retain": retain} if retain else {})
    if own:
        return own._replace(files={**own.files, **files})
    if not retain:
        raise UserError(
            f"{folder} holds no questions about what is to be kept.",
            f"Put {UTILITY}.jsonl there, in the same form, or give --forget and --retain texts.",
        )
    sides = {"forget": forget, "retain": retain}
    texts = {"forget": list(map(_page, forget)), "retain1": list(map(_page, retain))}
    return Material(
        {split: texts.get(split, []) for split in SPLITS},
        {side: _pairs(rows) for side, rows in sides.items()},
        qa_only=True,
        files=files,
    )


def _pairs(rows: list[dict[str, Any]]) -> QA:
    return [(row["question"], _answer(row)) for row in rows]


def _answer(row: dict[str, Any]) -> str:
    return str(row["choices"][row["answer"]])


def _page(row: dict[str, Any]) -> str:
    """A question as a text: with its answer, then with its choices and the right letter."""
    chosen = f"{context(row['subject'])}{asked(row)} {LETTERS[row['answer']]}"
    return f"{question(row['question'], _answer(row))}{chosen}"


def _rows(folder: Path, name: str, subject: str) -> list[dict[str, Any]]:
    """The rows of one set of questions, none where it is not there; of several files of one folder
    those that are named for testing, if any are.
    """
    suffixes = (*JSON_SUFFIXES, ".parquet")
    single = [path for s in suffixes if (path := folder / f"{name}{s}").is_file()]
    below = sorted(p for p in (folder / name).rglob("*") if p.suffix in suffixes and p.is_file())
    testing = [path for path in below if path.name.startswith("test")]
    found = []
    for path in single or testing or below:
        for i, row in enumerate(_parsed(path), 1):
            if fault := _fault(row):
                raise UserError(f"Row {i} of {path} {fault}.", _WANTED)
            about = str(row.get("subject") or subject).replace("_", " ")
            kept = {key: row[key] for key in ("question", "choices", "answer")}
            found.append(kept | {"subject": about})
    return found


def _parsed(path: Path) -> list[Any]:
    if path.suffix == ".parquet":
        return list(parquet(path.as_posix(), read_bytes(path)))
    content = read_utf8(path)
    if content.lstrip().startswith("["):
        found: Any = load_json(path.as_posix(), content)
        return list(found)
    lines = [(i, line) for i, line in enumerate(lines_of(content), 1) if line.strip()]
    return [load_json(f"Line {i} of {path}", line) for i, line in lines]


def _fault(row: Any) -> str:
    """What is wrong with a row, behind its name; empty if it can be asked."""
    if not has(row, "question") or not row["question"].strip():
        return "has no question"
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or len(choices) != len(LETTERS):
        return f"has no list of {len(LETTERS)} choices"
    if any(no_text("", choice) for choice in choices):
        return "has a choice that is no text"
    if type(answer) is not int or not 0 <= answer < len(LETTERS):
        return f"has no answer from 0 to {len(LETTERS) - 1}"
    if row.get("subject") is not None and not has(row, "subject"):
        return "has a subject that is no text"
    return ""


BENCHMARK = Benchmark(
    SETS,
    METRICS,
    {"wmdp": tuple(METRICS)},
    reader=Reader(
        "remnant.corpus.wmdp:read",
        1,
        "WMDP",
        "The folder of WMDP's questions (and MMLU's, as utility); --forget and --retain give the "
        "texts.",
    ),
)
