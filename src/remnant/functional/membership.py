"""Membership attacks: one number per text that is low where the model knows the text. No torch.

All of them are in nats or ratios of nats, in float64, and raise Unscorable for a text without
counted tokens.
"""

import zlib

import numpy as np

from remnant.errors import Unscorable
from remnant.functional.tokens import Array, Tokens


def _some(tokens: Tokens) -> Array:
    if not len(tokens.logp):
        raise Unscorable("no counted token")
    return tokens.logp


def _lowest(values: Array, ratio: float) -> Array:
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must be in (0, 1], not {ratio}")
    return np.sort(values)[: max(1, int(len(values) * ratio))]


def min_k(tokens: Tokens, *, ratio: float = 0.4) -> float:
    """Min-k%: minus the mean of the lowest ``int(n * ratio)`` token log-probabilities, at least one
    of them; at least 0.

    Source: Shi et al. 2024 (arXiv 2310.16789), section 4. Differs from the source for texts so
    short that int() gives 0.

    >>> said = Tokens(np.array([-1.0, -2.0, -3.0, -6.0]), *[np.zeros(4)] * 3)
    >>> min_k(said, ratio=0.5)
    4.5
    """
    return float(-_lowest(_some(tokens), ratio).mean())


def min_k_plus_plus(tokens: Tokens, *, ratio: float = 0.2) -> float:
    """Min-k%++: minus the mean of the lowest log-probabilities, each in spreads from its mean over
    the vocabulary.

    Source: Zhang et al. 2025 (arXiv 2404.02936), eq. 3. Differs from the source in a std of at
    least 1e-6.

    >>> mean, std = np.array([-2.0, -2.0]), np.array([1.0, 0.5])
    >>> said = Tokens(np.array([-1.0, -4.0]), np.zeros(2), mean, std)
    >>> min_k_plus_plus(said, ratio=0.5), min_k_plus_plus(said, ratio=1.0)
    (4.0, 1.5)
    """
    standing = (_some(tokens) - tokens.mean) / np.maximum(tokens.std, 1e-6)
    return float(-_lowest(standing, ratio).mean())


def mean_loss(tokens: Tokens) -> float:
    """Mean negative log-likelihood per token; at least 0.

    Source: Yeom et al. 2018 (arXiv 1709.01604); "PPL" in MUSE's logs.

    >>> said = Tokens(np.array([-1.0, -2.0]), *[np.zeros(2)] * 3)
    >>> mean_loss(said)
    1.5
    """
    return float(-_some(tokens).mean())


def zlib_ratio(tokens: Tokens, text: str) -> float:
    """Mean loss over the bytes of the zlib-compressed text; at least 0.

    Source: Carlini et al. 2021 (arXiv 2012.07805); "PPL/zlib" in MUSE.

    >>> said = Tokens(np.array([-1.0, -2.0]), *[np.zeros(2)] * 3)
    >>> len(zlib.compress(b"abcd")), zlib_ratio(said, "abcd")
    (12, 0.125)
    """
    return mean_loss(tokens) / len(zlib.compress(text.encode()))


def lower_case_ratio(tokens: Tokens, lowercased: Tokens) -> float:
    """Mean loss over that of the lower-cased text; at least 0.

    Source: Carlini et al. 2021 (arXiv 2012.07805); "PPL/lower" in MUSE.

    >>> said = Tokens(np.array([-1.0, -2.0]), *[np.zeros(2)] * 3)
    >>> lowercased = Tokens(np.array([-3.0]), *[np.zeros(1)] * 3)
    >>> lower_case_ratio(said, lowercased)
    0.5
    """
    other = mean_loss(lowercased)
    if other == 0:
        raise Unscorable("the lower-cased text has no loss")
    return mean_loss(tokens) / other


def reference_gap(tokens: Tokens, reference: Tokens) -> float:
    """Mean loss minus that of a reference model; any sign.

    Source: Carlini et al. 2021 (arXiv 2012.07805).

    >>> said = Tokens(np.array([-1.0, -2.0]), *[np.zeros(2)] * 3)
    >>> reference = Tokens(np.array([-2.0, -3.0]), *[np.zeros(2)] * 3)
    >>> reference_gap(said, reference)
    -1.0
    """
    return mean_loss(tokens) - mean_loss(reference)


def recall(tokens: Tokens, behind_prefix: Tokens) -> float:
    """ReCaLL: minus the ratio of the log-likelihood behind a text that was never read to the one
    without it; at most 0.

    Source: Xie et al. 2024 (arXiv 2406.15968), eq. 1. Differs from the source in the sign, so that
    low means known.

    >>> said = Tokens(np.array([-1.0, -3.0]), *[np.zeros(2)] * 3)
    >>> behind_prefix = Tokens(np.array([-1.0, -1.0]), *[np.zeros(2)] * 3)
    >>> recall(said, behind_prefix)
    -0.5
    """
    alone = mean_loss(tokens)
    if alone == 0:
        raise Unscorable("the text has no loss")
    return -mean_loss(behind_prefix) / alone


def gradient_norm(grad_norm: float) -> float:
    """Norm of the gradient of the mean loss at all weights; at least 0.

    Source: Maini et al. 2021 (arXiv 2104.10706), as in open-unlearning.

    >>> gradient_norm(2.5)
    2.5
    """
    return grad_norm
