"""Loss terms that ascend on forget text with a weight per token that the probability of the token
sets: [B], nats, to be minimised. No gradient goes through the weights.
"""

from remnant.functional.shapes import PerText
from remnant.functional.view import View


def wga(forget: View, *, beta: float = 1.0) -> PerText:
    """Weighted gradient ascent: mean over tokens of p^beta log p. [B], nats, at most 0.

    What is improbable already is left alone: the slope in log p is p^beta. With beta 0 it is
    ascent.

    Source: Wang et al. 2025 (arXiv 2502.19301), "WGA". Differs from the source in the mean,
    which is per text, not over all tokens of a batch.

    >>> import torch
    >>> wga(View(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])))
    tensor([-0.3466])
    """
    logp = forget.token_logp()
    return forget.mean((beta * logp.detach()).exp() * logp)


def tnpo(forget: View, ref_forget: View, *, beta: float = 4.0, power: float = 0.0) -> PerText:
    """NPO token by token: mean over tokens of w log p, w = 2 p^(beta + power) / (p^beta +
    p_ref^beta). [B], nats, at most 0.

    w is 1 at the target, at most 2. ``power`` above 0 is the weighted form of the source (WTNPO,
    there 1.5), which leaves improbable tokens alone as ``wga`` does.

    Source: Wang et al. 2025 (arXiv 2502.19301), "TNPO". Differs from the source in the mean (as
    ``wga``); the code released with it adds 1e-5 below the line, which stops tokens at p near 0.

    >>> import torch
    >>> view = View(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))
    >>> tnpo(view, view)
    tensor([-1.3863])
    """
    logp, ref = forget.token_logp(), ref_forget.token_logp()
    own = logp.detach()
    weight = 2.0 * (beta * (own - ref)).sigmoid() * (power * own).exp()
    return forget.mean(weight * logp)


def satimp(forget: View, *, beta1: float = 5.0, beta2: float = 1.0) -> PerText:
    """Ascent weighted by saturation and importance: mean over tokens of p^beta1 (1 - p)^beta2 log
    p. [B], nats, at most 0.

    The weight is largest at p = beta1 / (beta1 + beta2) and 0 at p = 1, so what is known by heart
    hardly moves at first.

    Source: Yang et al. 2025 (arXiv 2505.11953), section 5. Differs from the source in the mean (as
    ``wga``).

    >>> import torch
    >>> satimp(View(torch.zeros(1, 3, 2), torch.tensor([[0, 1, 1]])), beta1=1.0)
    tensor([-0.1733])
    """
    logp = forget.token_logp()
    known = logp.detach()
    weight = (beta1 * known).exp() * (-known.expm1()).pow(beta2)
    return forget.mean(weight * logp)
