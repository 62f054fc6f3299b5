"""What the sides of a corpus have in common: text that repeats forget text, holdout text that is
read, items that are there twice.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, filterfalse
from typing import Any

from remnant.corpus.base import QA, pages, question
from remnant.errors import UserError
from remnant.functional.segments import Known, repeated, size, words

OVERLAP_WORDS = 13
# Holdout text counts as retain text, which the model reads, if this share of its runs of words
# stands there; a phrase in common does not.
MOST_READ = 0.5
# Shorter answers (a name, a year, "yes") are often the same by chance.
ANSWER_WORDS = 4
OTHERS = ("retain1", "retain2", "holdout")


def repeats(texts: Sequence[str], qa: QA) -> Callable[[str], float]:
    """From a text to the share of it that known texts say too, 0 to 1.

    1 for the page of a question that is asked of them too.
    """
    known = Known(texts, OVERLAP_WORDS)
    asked = {tuple(words(q)) for q, _ in qa}

    def share(text: str) -> float:
        return 1.0 if _question_of(text) in asked else known.share(text)

    return share


def _question_of(page: str) -> tuple[str, ...]:
    """The words of the question of a page that holds one; none for other texts."""
    head, _, tail = question("\0").partition("\0")
    return (
        tuple(words(page.removeprefix(head).partition(tail)[0]))
        if page.startswith(head) and tail in page
        else ()
    )


def without_overlap(
    texts: Mapping[str, list[str]], qa: Mapping[str, QA], drop: bool
) -> tuple[dict[str, list[str]], QA, dict[str, int]]:
    """Look for texts and questions of the other sides that repeat forget text, and for holdout text
    that is read; leave them out if asked.

    Args:
        texts: by split.
        qa: by side ("forget", "retain").
        drop: leave them out.

    Returns:
        The texts of the other splits, the retain questions, and how many of what overlap.

    Raises:
        UserError: holdout text overlaps, or all retain text does.
    """
    told, read = (
        repeats(texts["forget"], qa["forget"]),
        repeats(texts["retain1"] + texts["retain2"], qa["retain"]),
    )
    kept = {name: list(filterfalse(told, texts[name])) for name in OTHERS}
    kept_qa = [pair for pair in qa["retain"] if not told(*pages([pair]))]
    counts = {name: len(texts[name]) - len(kept[name]) for name in OTHERS} | {
        "questions": len(qa["retain"]) - len(kept_qa)
    }
    unread = [t for t in kept["holdout"] if read(t) < MOST_READ]
    if not drop:
        _refuse(len(texts["holdout"]), counts["holdout"], len(kept["holdout"]) - len(unread))
    if texts["retain1"] and not any(map(words, kept["retain1"])):
        raise UserError(
            "All of the retain text repeats the forget text.",
            "Give retain text that is not to be forgotten.",
        )
    return (
        (kept | {"holdout": unread}, kept_qa, counts)
        if drop
        else ({n: texts[n] for n in OTHERS}, qa["retain"], counts)
    )


def _refuse(holdout: int, told: int, read: int) -> None:
    remedy = (
        "Give holdout text that the model has never seen, or leave those texts out with "
        "--drop-overlap."
    )
    if told:
        raise UserError(
            (
                f"{told} of {holdout} holdout texts share {OVERLAP_WORDS} words in a row with the "
                "forget text (or are short and the same)."
            ),
            remedy,
        )
    if read:
        raise UserError(
            f"{read} of {holdout} holdout texts stand in the retain text, which the model reads.",
            remedy,
        )


def overlap_of(files: Mapping[str, list[Any]]) -> dict[str, int]:
    """The same count for a corpus in MUSE's layout, which is taken as it is."""
    qa = {side: pairs_of(files, side) for side in ("forget", "retain")}
    told = repeats(files["raw/forget"], qa["forget"])

    def count(texts: Iterable[str]) -> int:
        return sum(told(text) > 0 for text in texts)

    counts = {name: count(files.get(f"raw/{name}", [])) for name in OTHERS}
    return counts | {"questions": count(pages(qa["retain"]))}


def pairs_of(files: Mapping[str, list[Any]], side: str) -> QA:
    """All questions of one side of a corpus, the shown ones first."""
    names = (f"knowmem/{side}_qa_icl", f"knowmem/{side}_qa")
    return [(row["question"], row["answer"]) for name in names for row in files.get(name, [])]


def repeated_of(files: Mapping[str, list[Any]]) -> dict[str, int]:
    """How many texts and questions of each side say what another one of that side says.

    Sides without any are left out.
    """
    raw = {"forget": ["forget"], "retain": ["retain1", "retain2"], "holdout": ["holdout"]}
    found = {}
    for side, names in raw.items():
        texts = chain.from_iterable(files.get(f"raw/{name}", []) for name in names)
        found[f"{side} texts"] = repeated(list(texts))
    for side in ("forget", "retain"):
        found[f"{side} questions"] = repeated([q for q, _ in pairs_of(files, side)])
    return {name: n for name, n in found.items() if n}


def same_answers(qa: Mapping[str, QA]) -> int:
    """How many retain questions have an answer of the forget side, of at least ``ANSWER_WORDS``
    words, though they ask something else.
    """
    known = set(_long_answers(qa["forget"]))
    return sum(answer in known for answer in _long_answers(qa["retain"]))


def _long_answers(qa: QA) -> list[tuple[str, ...]]:
    answers = [tuple(words(answer)) for _, answer in qa]
    return [answer for answer in answers if size(answer) >= ANSWER_WORDS]
