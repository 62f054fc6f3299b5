"""TOFU's numbers (arXiv 2401.06121): per question, and over all questions. No torch."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from remnant.errors import Unscorable
from remnant.functional.memory import probability
from remnant.functional.reductions import Draws, Groups, drawn
from remnant.functional.segments import is_latin
from remnant.functional.stats import Interval
from remnant.functional.text import rouge_recall_unicode
from remnant.functional.tokens import Tokens

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

Array = NDArray[np.float64]
# The question sets that the model utility is made of, three numbers of each.
USEFUL = ("retain", "authors", "facts")


@cache
def _scorer() -> "RougeScorer":
    from rouge_score import (
        rouge_scorer,
    )  # brings nltk and pandas: more than a second that only scoring needs

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


def rouge_recall(truth: str, generated: str) -> float:
    """ROUGE-L recall with the Porter stemmer, 0 to 1.

    Where the truth is not Latin, over Unicode words and not stemmed.

    Source: section 2.2.1, as in TOFU's code.

    >>> rouge_recall("he walked home", "walking home")
    0.6666666666666666
    """
    if truth.strip() and not is_latin(truth):
        return rouge_recall_unicode(truth, generated)
    if not any(c.isascii() and c.isalnum() for c in truth):
        raise Unscorable("the truth has no letter a-z and no digit")
    return float(_scorer().score(truth, generated)["rougeL"].recall)


def answer_probability(tokens: Tokens) -> float:
    """Geometric mean probability per token of the true answer, 0 to 1.

    Source: section 2.2.1 (forget and retain set).

    >>> said = Tokens(np.log([0.5, 0.125]), *[np.zeros(2)] * 3)
    >>> round(answer_probability(said), 6)
    0.25
    """
    return probability(tokens)


def choice_probability(tokens: Tokens, wrong: Sequence[Tokens]) -> float:
    """That probability over its sum with those of the wrong answers, 0 to 1.

    Source: section 2.2.1 (real authors, world facts).

    >>> own, other = (Tokens(np.log([p]), *[np.zeros(1)] * 3) for p in (0.6, 0.2))
    >>> round(choice_probability(own, [other]), 6)
    0.75
    """
    if not wrong:
        raise Unscorable("there is no wrong answer")
    own = probability(tokens)
    return own / (own + sum(probability(w) for w in wrong))


def truth_ratio(paraphrased: Tokens, wrong: Sequence[Tokens]) -> float:
    """Geometric mean probability of the wrong answers over that of the paraphrased true one.

    At least 0, low where the truth is known.

    Source: eq. 1. Differs from the source in 1e-10 added to the denominator, as in open-unlearning.

    >>> own, other = (Tokens(np.log([p]), *[np.zeros(1)] * 3) for p in (0.4, 0.2))
    >>> round(truth_ratio(own, [other]), 6)
    0.5
    """
    if not wrong:
        raise Unscorable("there is no wrong answer")
    losses = [-float(w.logp.mean()) for w in wrong if len(w.logp)]
    if len(losses) < len(wrong):
        raise Unscorable("a wrong answer has no token")
    return float(np.exp(-np.mean(losses)) / (probability(paraphrased) + 1e-10))


def forget_truth(ratios: Array) -> float:
    """Mean of min(t, 1 / t), 0 to 1; 1 where wrong answers are as probable as the true one."""
    return float(np.minimum(ratios, 1 / np.maximum(ratios, 1e-300)).mean())


def useful_truth(ratios: Array) -> float:
    """Mean of max(0, 1 - t), 0 to 1; 1 where wrong answers are impossible."""
    return float(np.maximum(0, 1 - ratios).mean())


def model_utility(columns: Mapping[str, Array]) -> float:
    """Harmonic mean of probability, ROUGE and truth of the retain set, real authors and world
    facts, 0 to 1, high is useful.

    Args:
        columns: by set ("retain", ...) the values of its questions, [3, n] in the order of
            ``USEFUL``; truth ratios as they are.
    """
    means = [
        m
        for s in USEFUL
        for m in (columns[s][0].mean(), columns[s][1].mean(), useful_truth(columns[s][2]))
    ]
    from scipy.stats import hmean  # takes most of a second, which only scoring needs

    return float(hmean(means)) if min(means) > 0 else 0.0


def forget_quality(unlearned: Array, retrained: Array) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test of the truth ratios on forget questions, 0
    to 1; high where they are alike.

    Source: section 2.2.2.
    """
    from scipy.stats import ks_2samp  # as above

    return float(ks_2samp(unlearned, retrained).pvalue)


def forget_truths(groups: Groups, draws: Draws) -> Interval | None:
    """``forget_truth`` of one column with its interval.

    >>> forget_truths([np.array([[2.0, 1.0]])], Draws(100, 0)).value
    0.75
    """
    return drawn(groups, draws, lambda ratios: forget_truth(ratios[0]))


def useful_truths(groups: Groups, draws: Draws) -> Interval | None:
    """``useful_truth`` of one column with its interval.

    >>> useful_truths([np.array([[2.0, 0.5]])], Draws(100, 0)).value
    0.25
    """
    return drawn(groups, draws, lambda ratios: useful_truth(ratios[0]))


def utility(groups: Groups, draws: Draws) -> Interval | None:
    """``model_utility`` of a group for each set of ``USEFUL``, in that order, with its interval.

    >>> one = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    >>> round(utility([one, one, one], Draws(100, 0)).value, 6)
    0.5
    """
    return drawn(groups, draws, lambda *g: model_utility(dict(zip(USEFUL, g, strict=True))))


def quality(groups: Groups, draws: Draws) -> float | None:
    """``forget_quality`` of the own truth ratios against those of a never-read model, which is a
    p-value and has no interval; None without such a model's.

    >>> quality([np.array([[1.0, 2.0]]), np.array([[1.0, 2.0]])], Draws(100, 0))
    1.0
    """
    own, *others = (group[0] for group in groups)
    return forget_quality(own, others[0]) if others and len(others[0]) else None
