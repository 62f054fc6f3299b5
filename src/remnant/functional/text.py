"""Metrics on strings: ROUGE-L, the cut of an answer, n-grams, and signs that a model has collapsed. No torch."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from remnant.errors import Unscorable

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

STOPS = ("\n\n", "\nQuestion", "Question:")


@cache
def _scorer() -> "RougeScorer":
    from rouge_score import rouge_scorer  # brings nltk and pandas: more than a second that only scoring needs

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)


def rouge_l(truth: str, generated: str) -> float:
    """ROUGE-L F1 of one text against the truth, 0 to 1; low when forgotten.

    Lower case; everything outside a-z and 0-9 separates words; no stemmer. An answer without such a character scores 0.

    Raises:
        Unscorable: the truth has no such character.

    Source: Lin 2004, as in the package rouge-score and in MUSE (arXiv 2407.06460), which gives 0 for a truth that cannot be scored.
    Differs from open-unlearning, which stems.
    """
    if not truth.strip():
        raise Unscorable("the truth is empty")
    if not any(c.isascii() and c.isalnum() for c in truth.lower()):
        raise Unscorable("the truth has no letter a-z and no digit")
    return float(_scorer().score(truth, generated)["rougeL"].fmeasure)


def cut_answer(text: str, stops: Sequence[str] = STOPS) -> str:
    r"""The answer up to the first blank line, "\nQuestion" or "Question:", not stripped. Source: MUSE's KnowMem."""
    for stop in stops:
        text = text.split(stop)[0]
    return text


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits of any script."""
    return re.findall(r"[^\W_]+", text.lower())


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens; none if there are fewer."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


class Signs(NamedTuple):
    """Signs of collapse in a set of generated texts, each a mean over texts.

    ``empty``: share without a word. ``repetition``: 1 - distinct / all 3-grams, 0 to 1, high is bad. ``entropy``: entropy of 2-grams
    of a text in bits, low is bad. ``unknown``: share of words never seen in the corpus, 0 to 1, high is bad. ``script``: share of letters
    in scripts that the corpus does not use (the language has switched), 0 to 1, high is bad.
    """

    empty: float
    repetition: float
    entropy: float
    unknown: float
    script: float


def signs_of_collapse(texts: Sequence[str], vocabulary: Collection[str]) -> Signs:
    """Measure the signs; raises ValueError without texts."""
    if not texts:
        raise ValueError("no texts")
    split = [words(t) for t in texts]
    full = [w for w in split if w]
    if not full:
        return Signs(1.0, 0.0, 0.0, 0.0, 0.0)

    scripts = {_script(c) for word in vocabulary for c in word}

    def mean(values: list[float]) -> float:
        return math.fsum(values) / len(values)

    return Signs(
        empty=1 - len(full) / len(split),
        repetition=mean([_repetition(w) for w in full]),
        entropy=mean([_entropy(w) for w in full]),
        unknown=mean([sum(x not in vocabulary for x in w) / len(w) for w in full]),
        script=mean([_foreign("".join(w), scripts) for w in full]),
    )


@cache
def _script(letter: str) -> str:
    """The script of a letter, by the first word of its name; empty for digits and nameless characters."""
    return unicodedata.name(letter, "").split(" ")[0] if letter.isalpha() else ""


def _foreign(letters: str, scripts: Collection[str]) -> float:
    found = [s for s in map(_script, letters) if s]
    return sum(s not in scripts for s in found) / len(found) if found else 0.0


def _repetition(tokens: list[str]) -> float:
    grams = ngrams(tokens, 3)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _entropy(tokens: list[str]) -> float:
    counts = Counter(ngrams(tokens, 2))
    total = sum(counts.values())
    return -sum(c / total * math.log2(c / total) for c in counts.values()) if total else 0.0
