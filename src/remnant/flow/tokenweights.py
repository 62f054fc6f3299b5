"""How much each token of the forget text counts, as a user gives it in a file. No torch."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from remnant.corpus.files import read_given
from remnant.errors import MOST_SAID, UserError


class Span(NamedTuple):
    """So much for the tokens of some characters of a text, ``end`` not among them."""

    start: int
    end: int
    weight: float


class OfText(NamedTuple):
    """Of one text: a number for every token, or spans, of which later ones win; 1 elsewhere."""

    tokens: tuple[float, ...] = ()
    spans: tuple[Span, ...] = ()


class TokenWeights(NamedTuple):
    """One entry for each forget text in their order (``each``), or words that weigh the same
    wherever they stand, "" being all else (``words``).
    """

    each: tuple[OfText, ...] = ()
    words: Mapping[str, float] = {}

    def of(self, place: int, text: str) -> OfText:
        """What is said of one text."""
        return OfText(spans=tuple(_found(self.words, text))) if self.words else self.each[place]


# A loss sums and divides by weights in float32; of these no sum over a text overflows or vanishes.
LEAST, MOST = 1e-6, 1e6
_FORM = (
    "It is JSON: an object of words and their weights, or a list with one entry for each forget "
    "text: a list of numbers, one a token, or of [start, end, weight], in characters."
)


def read_token_weights(name: str) -> TokenWeights:
    """The weights in a file.

    Raises:
        UserError: missing, not UTF-8 or JSON, of another form, or a weight that is out of range, or
            0 in all of it.
    """
    data = read_given(name, "token weights", _FORM)
    if not data or not isinstance(data, dict | list):
        raise UserError(f"{name} holds no weights.", _FORM)
    if isinstance(data, dict):
        words = {word: _weight(name, word, weight) for word, weight in data.items()}
        if not any(words.values()) and "" in words:
            raise UserError(f"{name}: with these weights no token counts.", "Raise some above 0.")
        return TokenWeights(words=words)
    return TokenWeights(each=tuple(_of_text(name, i + 1, entry) for i, entry in enumerate(data)))


def _of_text(name: str, number: int, entry: Any) -> OfText:
    where = f"entry {number}"
    if not isinstance(entry, list):
        raise UserError(f"{name}: {where} is no list.", _FORM)
    if all(isinstance(one, list) for one in entry):
        return OfText(spans=tuple(_span(name, where, one) for one in entry))
    tokens = tuple(_weight(name, where, one) for one in entry)
    if not any(tokens):
        raise UserError(f"{name}: no token of {where} counts.", "Give one of them more than 0.")
    return OfText(tokens)


def _span(name: str, where: str, entry: list[Any]) -> Span:
    places = entry[:2]
    whole = all(isinstance(p, int) and not isinstance(p, bool) and p >= 0 for p in places)
    if len(entry) != 3 or not whole or places[0] >= places[1]:
        raise UserError(f"{name}: {where} holds {entry}, which is no [start, end, weight].", _FORM)
    return Span(places[0], places[1], _weight(name, where, entry[2]))


def _weight(name: str, where: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # Of NaN neither is true.
    if not number or not (value == 0 or LEAST <= value <= MOST):
        shown = repr(value) if isinstance(value, float) else str(value)[:MOST_SAID]
        raise UserError(
            f"{name}: '{where}' holds {shown}, which is no weight: 0, or {LEAST:g} to {MOST:g}.",
            _FORM,
        )
    return float(value)


def _found(words: Mapping[str, float], text: str) -> list[Span]:
    """Where words stand in a text, no part of a longer word; longer ones last, so that they win.

    >>> _found({"": 0.0, "red": 2.0, "red lamp": 3.0}, "A red lamp, redder.")
    [Span(start=0, end=19, weight=0.0), Span(start=2, end=5, weight=2.0), \
Span(start=2, end=10, weight=3.0)]
    """
    spans = [Span(0, len(text), words[""])] if "" in words and text else []
    for word in sorted(filter(None, words), key=len):
        places = re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text)
        spans += [Span(*found.span(), words[word]) for found in places]
    return spans
