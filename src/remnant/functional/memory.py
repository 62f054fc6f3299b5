"""Memorization of a given continuation: what the model would say token by token, or what it wrote.

All but perplexity are 0 to 1 and low when forgotten.
"""

import math
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np

from remnant.errors import Unscorable
from remnant.functional.segments import words
from remnant.functional.text import overlap
from remnant.functional.tokens import Tokens


def _counted(tokens: Tokens) -> int:
    if not len(tokens.logp):
        raise Unscorable("no counted token")
    return len(tokens.logp)


def exact_memorization(tokens: Tokens) -> float:
    """Share of the tokens of the truth that were the greedy choice given all tokens before.

    Source: Tirumala et al. 2022 (arXiv 2205.10770). Differs from open-unlearning, which leaves out
    the last token.

    >>> said = Tokens(np.zeros(4), np.array([0, 5, 0, 0]), np.zeros(4), np.zeros(4))
    >>> exact_memorization(said)
    0.75
    """
    _counted(tokens)
    return float((tokens.rank == 0).mean())


def extraction_strength(tokens: Tokens) -> float:
    """1 - k / n with the smallest k such that from token k on all n tokens were the greedy choice.

    0 where the last one was not.

    Source: Carlini et al. 2021 (arXiv 2012.07805), as in open-unlearning. Differs from it in that 0
    can be reached.

    >>> said = Tokens(np.zeros(4), np.array([0, 5, 0, 0]), np.zeros(4), np.zeros(4))
    >>> extraction_strength(said)
    0.5
    """
    n = _counted(tokens)
    wrong = np.flatnonzero(tokens.rank != 0)
    return 1 - (int(wrong[-1]) + 1) / n if len(wrong) else 1.0


def probability(tokens: Tokens) -> float:
    """Exp of the mean log-probability: the geometric mean probability per token.

    Source: TOFU (arXiv 2401.06121), section 2.2.1.

    >>> said = Tokens(np.log([0.5, 0.125]), *[np.zeros(2)] * 3)
    >>> round(probability(said), 6)
    0.25
    """
    _counted(tokens)
    return float(np.exp(tokens.logp.mean()))


def longest_run(truth: str, generated: str) -> float:
    """The longest run of words that truth and answer have in common, as a share of the words of the
    truth.

    In scripts without spaces its characters.

    >>> longest_run("seven brass lanterns burn", "of brass lanterns")
    0.5
    """
    known, said = words(truth), words(generated)
    if not known:
        raise Unscorable("the truth has no word")
    return SequenceMatcher(None, known, said, autojunk=False).find_longest_match().size / len(known)


def leak_at_k(truth: str, samples: Sequence[str], *, k: int = 4) -> float:
    """Expected ROUGE-L of the best of ``k`` sampled answers, unbiased over all choices of ``k``
    among the given ones.

    Raises ValueError for fewer samples than ``k``. Source: LEAK@k (arXiv 2511.04934); the estimator
    is that of pass@k (arXiv 2107.03374).

    >>> leak_at_k("seven lamps", ["seven lamps", "nothing"], k=1)
    0.5
    >>> leak_at_k("seven lamps", ["seven lamps", "nothing"], k=2)
    1.0
    """
    n = len(samples)
    if not 0 < k <= n:
        raise ValueError(f"k must be between 1 and the {n} samples, not {k}")
    scores = sorted(overlap(truth, s) for s in samples)
    return math.fsum(score * math.comb(i, k - 1) for i, score in enumerate(scores)) / math.comb(
        n, k
    )


def perplexity(reference_on_generated: Tokens) -> float:
    """Exp of the mean loss of what was written, as the reference model sees it.

    At least 1, high where it is no language any more.

    >>> reference_on_generated = Tokens(np.log([0.5, 0.125]), *[np.zeros(2)] * 3)
    >>> round(perplexity(reference_on_generated), 6)
    4.0
    """
    _counted(reference_on_generated)
    return float(np.exp(-reference_on_generated.logp.mean()))
