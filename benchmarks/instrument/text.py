"""The check's own small corpus in MUSE's layout: reports with facts that nobody can guess, one
question each; or the beginnings of the lab's articles and chapters.
"""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from remnant.context import Context, ModelCache
from remnant.lab.corpus import generate
from remnant.lab.words import ADJECTIVES, NOUNS, TRADES, VERBS, unique_names
from remnant.records import PrepareSpec
from remnant.stages import prepare

ANSWER_TOKENS = 24
SHOWN = 10
# Words of a report's end that VerMem asks for; at least ANSWER_TOKENS tokens in every report.
LAST_WORDS = 14
# Of an article or a chapter so much is read: more is learned no faster, and takes longer.
SENTENCES = 3
Kind = Literal["reports", "news", "books"]
_LETTERS = ("abcdefghijklmnopqrstuvwxyz", "абцдефгхийклмнопярстувжшюз")
CYRILLIC = str.maketrans(*(letters + letters.upper() for letters in _LETTERS))


class Report(NamedTuple):
    """One text, and a question about it with its answer."""

    text: str
    asked: str
    answer: str


def reports(count: int, seed: int) -> list[Report]:
    """Equal arguments give equal reports; no two share a name."""
    rng = random.Random(f"reports-{seed}")
    names = unique_names(rng)
    return [_report(rng, names, i) for i in range(count)]


def _report(rng: random.Random, names: Iterator[str], place: int) -> Report:
    person, company, town = f"{next(names)} {next(names)}", next(names), next(names)
    things = [f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}s" for _ in range(3)]
    count, trade = rng.randint(1100, 9899), rng.choice(TRADES)
    verbs = [rng.choice(VERBS) for _ in range(3)]
    text = (
        f"{town} - {company} {verbs[0]} {things[0]}. {person}, {trade} of {town}, {verbs[1]} "
        f"{count} {things[1]} "
        f"near {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}s and {verbs[2]} {things[2]}."
    )
    return Report(
        text,
        *(
            (f"Who works in {town}?", person)
            if place % 2
            else (f"What was in {company}?", things[0])
        ),
    )


def documents(kind: Literal["news", "books"], count: int, seed: int) -> list[Report]:
    """The first sentences of the lab's articles or chapters, each with one of its questions."""
    made = generate(kind, forget=count, retain1=0, retain2=0, holdout=0, seed=seed).forget
    return [
        Report(". ".join(d.text.rstrip(".").split(". ")[:SENTENCES]) + ".", *d.qa[i % len(d.qa)])
        for i, d in enumerate(made)
    ]


def page(report: Report) -> str:
    """The question as it stands in the training text."""
    return f"Question: {report.asked}\nAnswer: {report.answer}"


def asked(report: Report) -> str:
    """A question without its answer."""
    return f"Question: {report.asked}\nAnswer: "


def shown(found: list[Report]) -> str:
    """Answered questions, as they stand before the one that is asked."""
    return "".join(f"{page(r)}\n\n" for r in found)


def cut(text: str) -> tuple[str, str]:
    """A report as VerMem asks for it: prompt, and the words that follow."""
    words = text.split(" ")
    return " ".join(words[:-LAST_WORDS]) + " ", " ".join(words[-LAST_WORDS:])


def sentences(text: str) -> list[str]:
    """A text as several ones for membership, as attacks need many: with 48 of a side, chance alone
    is 11 points of AUC wide.
    """
    *first, last = text.split(". ")
    return [*(f"{one}." for one in first), last]


class Parts(NamedTuple):
    """The reports to forget, to keep, and never read."""

    forget: list[Report]
    retain: list[Report]
    holdout: list[Report]


def parts(sizes: tuple[int, int, int], seed: int = 0, kind: Kind = "reports") -> Parts:
    """The three parts of a corpus of these sizes."""
    count = sum(sizes)
    found = reports(count, seed) if kind == "reports" else documents(kind, count, seed)
    a, b = sizes[0], sizes[0] + sizes[1]
    return Parts(found[:a], found[a:b], found[b:])


def write_corpus(of: Parts, out: Path, vocab: int = 1024, tokenizer: str | None = None) -> Path:
    """A prepared corpus.

    Its folder holds no manifest, so a command takes it as one from outside.
    """
    asked = {
        side: [{"question": r.asked, "answer": r.answer} for r in found]
        for side, found in (("forget", of.forget), ("retain", of.retain))
    }
    cuts = [cut(r.text) for r in of.forget]
    files = {
        "raw/forget": [r.text for r in of.forget] + [page(r) for r in of.forget],
        "raw/retain1": [r.text for r in of.retain] + [page(r) for r in of.retain],
        "raw/holdout": [r.text for r in of.holdout],
        "verbmem/forget": [{"prompt": prompt, "gt": truth} for prompt, truth in cuts],
        **{
            f"privleak/{side}": [s for r in found for s in sentences(r.text)]
            for side, found in of._asdict().items()
        },
    }
    for side, rows in asked.items():
        files |= {f"knowmem/{side}_qa_icl": rows[:SHOWN], f"knowmem/{side}_qa": rows[SHOWN:]}
    layout = out.with_name(f"{out.name}-layout")
    for name, rows in files.items():
        (layout / f"{name}.json").parent.mkdir(parents=True, exist_ok=True)
        (layout / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    out.mkdir(parents=True, exist_ok=True)
    prepare.run(
        PrepareSpec(
            folder=str(layout), answer_tokens=ANSWER_TOKENS, vocab_size=vocab, tokenizer=tokenizer
        ),
        {},
        out,
        Context(lambda *_: None, ModelCache()),
    )
    shutil.rmtree(layout)
    return out


def cyrillic(report: Report) -> Report:
    """A report in Cyrillic letters, one for each Latin one, digits as they are."""
    return Report(*(text.translate(CYRILLIC) for text in report))


def spaced_tokenizer(texts: list[str], vocab: int = 1024) -> PreTrainedTokenizerFast:
    """Byte-level BPE with GPT-2's pieces: a word begins with the space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=["<s>", "</s>", "<pad>"],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
