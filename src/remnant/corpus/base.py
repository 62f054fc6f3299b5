"""What every benchmark is made of: items and their sets, metrics, and where its text comes from."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from remnant.metrics import Metric, Number
from remnant.records import OwnHalf

# Questions with their answers.
QA = list[tuple[str, str]]
# How an item is asked: text is continued, a question answered, a text read as a whole, one of
# several answers chosen.
Asked = Literal["text", "answer", "whole", "choice"]
# Where the texts of a corpus stand by what is done with them: forgotten, trained on, asked, unread.
SPLITS = ("forget", "retain1", "retain2", "holdout")


class Item(NamedTuple):
    """One prompt with the text that a model which remembers would continue it by.

    ``context`` stands before the prompt and is common to many items; ``paraphrased`` says the truth
    in other words, ``wrong`` something else in these words; ``choices`` are all that may be chosen,
    the truth among them. ``answers``: other answers that are accepted as the truth is.

    Of a question that can be asked in any form: ``question`` alone, the answered ones that are
    ``shown`` before it, and the beginning of the answer that is ``given``. ``framed``: the
    tokenizer puts its special tokens around the text, which holds none itself. ``end``: what a chat
    template puts behind the answer.
    """

    id: str
    half: OwnHalf
    prompt: str
    truth: str
    context: str = ""
    paraphrased: str = ""
    wrong: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    question: str = ""
    shown: tuple[tuple[str, str], ...] = ()
    given: str = ""
    framed: bool = True
    end: str = ""


class ItemSet(NamedTuple):
    """Items, how many tokens are written for each, and where an answer ends (nowhere for text)."""

    items: list[Item]
    max_new: int = 0
    stops: tuple[str, ...] = ()


class Asking(NamedTuple):
    """What a tokenizer and a corpus bring to asking.

    ``answer_tokens``: of a continuation. ``first_tokens``: the beginning of a text, of so many
    tokens. ``token_ends``: where the tokens of a text end, in characters.
    """

    answer_tokens: int
    first_tokens: Callable[[str, int], str]
    token_ends: Callable[[str], list[int]]


def as_they_are(items: list[Item], _: Asking) -> ItemSet:
    """Items that are read and not continued."""
    return ItemSet(items)


class SetEntry(NamedTuple):
    """One set of items.

    ``file``: of the prepared folder, that its ``items`` are read from. ``ask``: how they are turned
    into what a model is asked. ``split``: its name among the sets of one metric. ``absent``: the
    name under which a corpus's card says why it is not there; ``without``: why, where its file is
    not there. ``form``: of asking, whatever form is chosen for the others.
    """

    meaning: str
    asked: Asked
    file: str
    items: Callable[[Path], list[Item]]
    ask: Callable[[list[Item], Asking], ItemSet] = as_they_are
    split: str = ""
    absent: str = ""
    without: str = ""
    form: str = ""


class Material(NamedTuple):
    """What a source gives: texts by split, questions by side, and files that are taken as they are.

    ``beside``: texts that a split has besides, read in training and nothing else. ``qa_only``: the
    questions are the texts. ``cut``: long texts are cut, and retain text is split. ``complete``:
    the files are a whole corpus in MUSE's layout. ``skipped`` and ``notes``: what was not read, for
    the card. ``shapes``: side -> file -> of what shapes its entries are. ``accepted``: answers that
    are right beside that of a question and its answer.
    """

    texts: Mapping[str, list[str]] = {}
    qa: Mapping[str, QA] = {}
    beside: Mapping[str, list[str]] = {}
    qa_only: bool = False
    files: Mapping[str, list[Any]] = {}
    cut: bool = True
    complete: bool = False
    skipped: Mapping[str, Mapping[str, str]] = {}
    notes: tuple[str, ...] = ()
    shapes: Mapping[str, Mapping[str, str]] = {}
    accepted: Mapping[tuple[str, str], tuple[str, ...]] = {}


class Reader(NamedTuple):
    """How a download of a benchmark becomes material: a function that is found as methods are.

    ``path``: "module:function"; of it the positional parameters say what it reads (``folder``, and
    ``own`` for the user's texts beside it), the keyword-only ones what can be set. ``title``: what
    the card of a corpus calls it. ``version``: raise it when what is read changes. ``help``: of its
    option on the command line.
    """

    path: str
    version: int
    title: str
    help: str


class Benchmark(NamedTuple):
    """What one benchmark brings: its sets of items, its metrics, names for some of them together,
    what is made of several metrics, and how a download of it is read.
    """

    sets: Mapping[str, SetEntry]
    metrics: Mapping[str, Metric]
    groups: Mapping[str, tuple[str, ...]] = {}
    combined: tuple[Number, ...] = ()
    reader: Reader | None = None


def half_of(index: int) -> OwnHalf:
    """Items at even places are for development (checkpoint selection), at odd places for the
    report.
    """
    return "test" if index % 2 else "dev"


def question(text: str, answer: str = "") -> str:
    """One question in the form in which it is asked; with an answer, as a shown example."""
    return f"Question: {text}\nAnswer: {answer}\n\n" if answer else f"Question: {text}\nAnswer: "


def pages(qa: Sequence[tuple[str, str]]) -> list[str]:
    """Every question with its answer as a text."""
    return [question(q, a).rstrip("\n") for q, a in qa]
