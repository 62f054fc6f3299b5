"""What a corpus would be made of, said before anything is written."""

import statistics
from collections.abc import Callable, Sequence

from remnant.corpus.base import Material
from remnant.corpus.files import not_read
from remnant.errors import UserError
from remnant.functional.segments import size, words
from remnant.model.load import open_tokenizer
from remnant.records import PrepareResult, PrepareSpec
from remnant.stages.overlap import pairs_of
from remnant.stages.prepare import corpus_of, read

_SIDES = ("forget", "retain", "holdout")


def survey(spec: PrepareSpec, say: Callable[[str], None]) -> PrepareResult:
    """Read the source of a corpus and make all of it but its files, so that nothing is promised
    which ``prepare`` would refuse.

    Args:
        spec: of the corpus.
        say: takes what is found, a line each: of what shapes the entries of each file are, how many
            texts and questions each side has and how long they are; also where the corpus is then
            refused, with what was not read and why.

    Returns:
        The card that the corpus would have.

    Raises:
        UserError: as ``prepare.run``.
    """
    material = read(spec)
    for side, shapes in material.shapes.items():
        for name, shape in shapes.items():
            say(f"{side} {name}: {shape}")
    unit, length = _measure(spec)
    for side in _SIDES:
        texts, asked = _texts(material, side), _questions(material, side)
        counts = [_lengths(texts, "texts", unit, length)] if texts else []
        counts += [_lengths(asked, "questions with answers", unit, length)] if asked else []
        if counts:
            say(f"{side}: {'; '.join(counts)}")
    try:
        return corpus_of(spec, material).card
    except UserError:
        # There will be no card that says it.
        for line in not_read(material.skipped):
            say(line)
        raise


def _measure(spec: PrepareSpec) -> tuple[str, Callable[[str], int]]:
    """A unit of length, and how many of it a text has."""
    if not spec.tokenizer:
        return "words", lambda text: round(size(words(text)))
    tokenizer = open_tokenizer(spec.tokenizer)
    return "tokens", lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _lengths(texts: Sequence[str], what: str, unit: str, length: Callable[[str], int]) -> str:
    found = [length(text) for text in texts]
    middle = statistics.median_low(found)
    return f"{len(texts)} {what} of {min(found)} to {max(found)} {unit}, median {middle}"


def _texts(material: Material, side: str) -> list[str]:
    """The texts of a side as they were read; none of them are pages of questions."""
    if material.qa_only:
        return []
    splits = [name for name in ("forget", "retain1", "retain2", "holdout") if name.startswith(side)]
    if material.complete:
        return [text for split in splits for text in material.files.get(f"raw/{split}", [])]
    return [text for split in splits for text in material.texts.get(split, [])]


def _questions(material: Material, side: str) -> list[str]:
    if material.qa_only and side not in material.qa:
        return list(material.texts.get(side, []))
    pairs = pairs_of(material.files, side) if material.complete else material.qa.get(side, [])
    return [f"{question} {answer}" for question, answer in pairs]
