"""Loss terms of unlearning: each takes Views and returns one value per example, [B], to be
minimised.

Positional parameters say what a term reads (``remnant.readings``), keyword-only parameters what can
be tuned. The caller averages over B.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from remnant.functional.hidden import Hidden, direction
from remnant.functional.shapes import Number, PerText
from remnant.functional.view import View


def ga(forget: View) -> PerText:
    """Gradient ascent: mean log-probability of the forget tokens, pushed down. [B], nats, unbounded
    below.

    Source: Jang et al. 2023 (arXiv 2210.01504); Zhang et al. 2024 (arXiv 2410.16454), section 2.

    >>> import torch
    >>> view = View(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))
    >>> ga(view)
    tensor([-1.3863])
    """
    return forget.mean_logp()


def npo(forget: View, ref_forget_logp: PerText, *, beta: float = 0.1) -> PerText:
    """Negative preference optimisation: -(2/beta) log sigmoid(-beta (log p(x) - log p_ref(x))).
    [B], nats, above 0.

    log p is the sum over the sequence. As beta -> 0 its gradient tends to that of ascent on the
    sequence log-likelihood; where log p is far below the reference the gradient vanishes, so it is
    bounded.

    Source: Zhang et al. 2024 (arXiv 2404.05868), eq. 3; Zhang et al. 2024 (arXiv 2410.16454), eq.
    8.

    >>> import torch
    >>> view = View(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))
    >>> npo(view, view.seq_logp(), beta=2.0)
    tensor([0.6931])
    """
    return -(2.0 / beta) * logsigmoid(-beta * (forget.seq_logp() - ref_forget_logp))


def simnpo(forget: View, *, beta: float = 4.5, margin: float = 0.0) -> PerText:
    """NPO without a reference, by the length: -(2/beta) log sigmoid(-beta m - margin), m the mean
    log-probability per counted token. [B], nats, above 0.

    Its slope in m is 2 sigmoid(beta m + margin): that of ascent (1) as beta -> 0 without a margin,
    0 where m is far below 0.

    Source: Fan et al. 2025 (arXiv 2410.07163), its objective. The code released with it
    has the margin within beta (-beta (m + margin)), which is the same at margin 0.

    >>> import torch
    >>> simnpo(View(torch.full((1, 3, 1), 5.0), torch.tensor([[0, 0, 0]])), beta=2.0)
    tensor([0.6931])
    """
    return -(2.0 / beta) * logsigmoid(-beta * forget.mean_logp() - margin)


def dpo(
    forget: View,
    ref_forget_logp: PerText,
    alternative: View,
    ref_alternative_logp: PerText,
    *,
    beta: float = 0.1,
) -> PerText:
    """Direct preference optimisation of another answer over the true one: -(2/beta) log
    sigmoid(beta ((log p(a) - log p_ref(a)) - (log p(x) - log p_ref(x)))). [B], nats, above 0, (2 /
    beta) log 2 at the target.

    log p is the sum over what counts of the true answer x and of the other answer a. Without the
    first difference it is NPO.

    Source: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7; with refusals as other answers Maini et
    al. 2024 (arXiv 2401.06121), section 4; with invented ones Mekala et al. 2025 (arXiv
    2409.13474). Differs from the source in the factor 2/beta, which makes NPO its limit and changes
    nothing but the scale.

    >>> import torch
    >>> view = View(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))
    >>> dpo(view, view.seq_logp(), view, view.seq_logp(), beta=2.0)
    tensor([0.6931])
    """
    gained = alternative.seq_logp() - ref_alternative_logp
    lost = forget.seq_logp() - ref_forget_logp
    return -(2.0 / beta) * logsigmoid(beta * (gained - lost))


def alternative_nll(alternative: View) -> PerText:
    """Cross entropy of another answer to the forget question, mean per token. [B], nats, at least
    0.

    The true answer is never read, so what the weights know of it may stay: a baseline.

    Source: Maini et al. 2024 (arXiv 2401.06121), section 4 ("IDK"), with refusals.

    >>> import torch
    >>> alternative_nll(View(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])))
    tensor([1.3863])
    """
    return -alternative.mean_logp()


def rmu(forget_hidden: Hidden, *, layer: int = 7, scale: float = 6.5, seed: int = 0) -> PerText:
    """Representation misdirection: mean squared distance, per coordinate, of the hidden states of
    forget text from a fixed point scale * r / |r|. [B], at least 0, 0 iff every state is there.

    r is drawn once from the seed, uniformly from [0, 1) in every coordinate. ``layer``: the block
    whose output is meant, the first being 0.

    Source: Li et al. 2024 (arXiv 2403.03218), section 4. Differs from the source in the mean,
    which is taken over the tokens of each text that count, not over all positions, padding
    included.

    >>> import torch
    >>> there = 6.5 * direction(4, seed=0).expand(1, 3, 4)
    >>> rmu(Hidden(there, torch.ones(1, 3, dtype=torch.bool)))
    tensor([0.])
    """
    point = direction(forget_hidden.states.shape[-1], seed).to(forget_hidden.states.device)
    return _distance(forget_hidden, scale * point)


def adaptive_rmu(
    forget_hidden: Hidden,
    ref_forget_norm: Number,
    *,
    layer: int = 7,
    scale: float = 5.0,
    seed: int = 0,
) -> PerText:
    """RMU whose point lies ``scale`` times as far out as the target's own states: scale * n * r /
    |r|, n their mean norm at this layer. [B], at least 0.

    Source: Huu-Tien et al. 2024 (arXiv 2408.06223). Differs from the source in n, which is
    the mean over all forget text instead of over the first batch, so that it depends on no order.

    >>> import torch
    >>> there = 5.0 * 2.0 * direction(4, seed=0).expand(1, 3, 4)
    >>> adaptive_rmu(Hidden(there, torch.ones(1, 3, dtype=torch.bool)), torch.tensor(2.0))
    tensor([0.])
    """
    point = direction(forget_hidden.states.shape[-1], seed).to(forget_hidden.states.device)
    return _distance(forget_hidden, scale * ref_forget_norm * point)


def hidden_mse(retain_hidden: Hidden, ref_retain_hidden: Hidden, *, layer: int = 7) -> PerText:
    """Mean squared distance, per coordinate, of the hidden states of retain text from the
    target's. [B], at least 0, 0 at the target.

    Source: Li et al. 2024 (arXiv 2403.03218), section 4, with the mean of ``rmu``.

    >>> import torch
    >>> mask = torch.tensor([[True, True, False]])
    >>> hidden_mse(Hidden(torch.ones(1, 3, 4), mask), Hidden(torch.zeros(1, 3, 4), mask))
    tensor([1.])
    """
    return _distance(retain_hidden, ref_retain_hidden.counted())


def _distance(hidden: Hidden, point: Tensor) -> PerText:
    return hidden.mean((hidden.counted() - point).square().mean(-1))


def gdr(retain: View) -> PerText:
    """Gradient descent on retain text: mean cross entropy per token. [B], nats, at least 0.

    Source: Maini et al. 2024 (arXiv 2401.06121), section 4; Shi et al. 2024 (arXiv 2407.06460).

    >>> import torch
    >>> view = View(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))
    >>> gdr(view)
    tensor([1.3863])
    """
    return -retain.mean_logp()


def klr(retain: View, ref_retain: View) -> PerText:
    """KL(target || policy) on retain text, mean over unmasked positions. [B], nats, at least 0, 0
    where the two agree.

    Source: Zhang et al. 2024 (arXiv 2410.16454), eq. 10. Differs from the released code, which
    passes raw logits.

    >>> import torch
    >>> labels = torch.tensor([[0, 1]])
    >>> even, sure = torch.zeros(1, 2, 2), torch.tensor([[[100.0, 0.0], [0.0, 0.0]]])
    >>> klr(View(even, labels), View(sure, labels))
    tensor([0.6931])
    """
    return retain.mean(retain.divergence(ref_retain))
