"""Metrics on strings: ROUGE-L, the cut of an answer, and signs that a model has collapsed.

No torch.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import regex

from remnant.errors import Unscorable
from remnant.functional.segments import fold, is_latin, ngrams, unicode_words, words

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

# Functions of metrics that read a text by its script, and what is said of a row that was read
# otherwise than published.
BY_SCRIPT = ("overlap", "recall", "leak_at_k", "rouge_recall")
OVER_WORDS = "ROUGE over Unicode words"
# What is no part of an answer, as SQuAD has it.
ARTICLES = ("a", "an", "the")
_ACCENTS = regex.compile(r"(\p{Latin})\p{M}+")
STOPS = ("\n\n", "\nQuestion", "Question:")


@cache
def _scorer() -> "RougeScorer":
    from rouge_score import (
        rouge_scorer,
    )  # brings nltk and pandas: more than a second that only scoring needs

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)


class _Words:
    """What the scorer takes in the place of its own tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return unicode_words(text)


@cache
def _unicode_scorer() -> "RougeScorer":
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words())


def rouge_l(truth: str, generated: str) -> float:
    """ROUGE-L F1 of one text against the truth, 0 to 1; low when forgotten.

    Lower case; everything outside a-z and 0-9 separates words; no stemmer. An answer without such a
    character scores 0.

    Raises:
        Unscorable: the truth has no such character.

    Source: Lin 2004, as in the package rouge-score and in MUSE (arXiv 2407.06460), which gives 0
    for a truth that cannot be scored. Differs from open-unlearning, which stems.
    """
    if not truth.strip():
        raise Unscorable("the truth is empty")
    if not any(c.isascii() and c.isalnum() for c in truth.lower()):
        raise Unscorable("the truth has no letter a-z and no digit")
    return float(_scorer().score(truth, generated)["rougeL"].fmeasure)


def rouge_l_unicode(truth: str, generated: str) -> float:
    """ROUGE-L F1 over Unicode words, 0 to 1, for texts of any script; low when forgotten.

    Words are those of UAX #29 without case, in Unicode's compatibility form; characters where a
    script puts no space between words.

    Raises:
        Unscorable: the truth has no letter and no digit.

    Source: Lin 2004, by the package rouge-score; the words by the package regex.
    """
    return _over_words(truth, generated).fmeasure


def rouge_recall_unicode(truth: str, generated: str) -> float:
    """ROUGE-L recall over the same words, 0 to 1, not stemmed.

    Raises and source as ``rouge_l_unicode``.
    """
    return _over_words(truth, generated).recall


class _Score(NamedTuple):
    recall: float
    fmeasure: float


def _over_words(truth: str, generated: str) -> _Score:
    if not truth.strip():
        raise Unscorable("the truth is empty")
    if not unicode_words(truth):
        raise Unscorable("the truth has no letter and no digit")
    found = _unicode_scorer().score(truth, generated)["rougeL"]
    return _Score(float(found.recall), float(found.fmeasure))


def overlap(truth: str, generated: str) -> float:
    """ROUGE-L F1 as MUSE has it (``rouge_l``) where the truth is Latin, over Unicode words
    (``rouge_l_unicode``) where it is not.

    Raises Unscorable as these do. Source: theirs.

    >>> overlap("the tall lamp", "the lamp"), overlap("высокая лампа", "лампа")
    (0.8, 0.6666666666666666)
    """
    return rouge_l(truth, generated) if is_latin(truth) else rouge_l_unicode(truth, generated)


def recall(truth: str, generated: str, answers: Sequence[str]) -> float:
    """ROUGE-L recall of the best of a truth and other accepted answers, 0 to 1; low when forgotten.

    What is said around an answer does not lower it, as it lowers F1. Words as in ``overlap``.

    Raises Unscorable as ``overlap`` does. Source: Lin 2004, as in the package rouge-score; TOFU
    (arXiv 2401.06121), section 2.2.1. Differs from TOFU in that nothing is stemmed.

    >>> recall("the tall lamp", "It was, they say, the lamp.", ())
    0.6666666666666666
    """
    others = filter(unicode_words, answers)
    return max(_recall(accepted, generated) for accepted in (truth, *others))


def _recall(truth: str, generated: str) -> float:
    if not is_latin(truth):
        return rouge_recall_unicode(truth, generated)
    rouge_l(truth, "")  # which refuses what has no words
    return float(_scorer().score(truth, generated)["rougeL"].recall)


def contained(truth: str, generated: str, answers: Sequence[str]) -> float:
    """Whether a truth or another accepted answer stands whole in what was said, 0 or 1; low when
    forgotten.

    Words are compared without case, accents of Latin letters, punctuation and articles, in
    Unicode's compatibility form; in scripts without spaces characters are.

    Raises:
        Unscorable: the truth has no word.

    Source: SQuAD (arXiv 1606.05250), section 6.1, for the normalisation. Differs from the source,
    which asks for equality, in that an answer may stand in a sentence, and in the accents.

    >>> contained("Charlotte Brontë", "It was the charlotte bronte!", ())
    1.0
    >>> contained("Mars", "Venus", ["the Red Planet"])
    0.0
    """
    if not _plain_words(truth):
        raise Unscorable("the truth has no word")
    said = _plain_words(generated)
    return float(any(_stands_in(_plain_words(one), said) for one in (truth, *answers)))


def _stands_in(answer: list[str], said: list[str]) -> bool:
    """Whether an answer is a run of what was said, articles of both left out where it has other
    words.
    """
    bare = [w for w in answer if w not in ARTICLES]
    if bare:
        answer, said = bare, [w for w in said if w not in ARTICLES]
    return bool(answer) and tuple(answer) in ngrams(said, len(answer))


def _plain_words(text: str) -> list[str]:
    """The words of a text without what may differ between two answers that say the same, whatever
    other scripts stand beside them.
    """
    bare = _ACCENTS.sub(r"\1", unicodedata.normalize("NFD", fold(text)))
    return words(unicodedata.normalize("NFC", bare))


def way_of(function: str, truth: str) -> str:
    """By which ROUGE a metric with this function reads a truth, where that is not the published
    one; else empty.
    """
    return OVER_WORDS if function in BY_SCRIPT and truth.strip() and not is_latin(truth) else ""


def cut_answer(text: str, stops: Sequence[str] = STOPS) -> str:
    r"""The answer up to the first blank line, "\nQuestion" or "Question:", not stripped.

    Source: MUSE's KnowMem.
    """
    for stop in stops:
        text = text.split(stop)[0]
    return text


class Signs(NamedTuple):
    """Signs of collapse in a set of generated texts, each a mean over texts.

    ``empty``: share without a word. ``repetition``: 1 - distinct / all 3-grams, 0 to 1, high is
    bad. ``entropy``: entropy of 2-grams of a text in bits, low is bad. ``unknown``: share of words
    never seen in the corpus, 0 to 1, high is bad. ``script``: share of letters in scripts that the
    corpus does not use (the language has switched), 0 to 1, high is bad.
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
        unknown=mean([_unknown(w, vocabulary) for w in full]),
        script=mean([_foreign("".join(w), scripts) for w in full]),
    )


@cache
def _script(letter: str) -> str:
    """The script of a letter, by the first word of its name.

    Empty for digits and nameless characters.
    """
    return unicodedata.name(letter, "").split(" ")[0] if letter.isalpha() else ""


def _unknown(tokens: list[str], vocabulary: Collection[str]) -> float:
    return sum(x not in vocabulary for x in tokens) / len(tokens)


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
