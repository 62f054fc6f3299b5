"""Loss terms of unlearning: each takes Views and returns one value per example, [B], to be
minimised.

Positional parameters say what a term reads (``remnant.readings``), keyword-only parameters what can
be tuned. The caller averages over B.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from remnant.functional.view import View


def ga(forget: View) -> Tensor:
    """Gradient ascent: mean log-probability of the forget tokens, pushed down. [B], nats, unbounded
    below.

    Source: Jang et al. 2023 (arXiv 2210.01504); Zhang et al. 2024 (arXiv 2410.16454), section 2.
    """
    return forget.mean_logp()


def npo(forget: View, ref_forget_logp: Tensor, *, beta: float = 0.1) -> Tensor:
    """Negative preference optimisation: -(2/beta) log sigmoid(-beta (log p(x) - log p_ref(x))).
    [B], nats, above 0.

    log p is the sum over the sequence. As beta -> 0 its gradient tends to that of ascent on the
    sequence log-likelihood; where log p is far below the reference the gradient vanishes, so it is
    bounded.

    Source: Zhang et al. 2024 (arXiv 2404.05868), eq. 3; Zhang et al. 2024 (arXiv 2410.16454), eq.
    8.
    """
    return -(2.0 / beta) * logsigmoid(-beta * (forget.seq_logp() - ref_forget_logp))


def dpo(
    forget: View,
    ref_forget_logp: Tensor,
    alternative: View,
    ref_alternative_logp: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
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


def alternative_nll(alternative: View) -> Tensor:
    """Cross entropy of another answer to the forget question, mean per token. [B], nats, at least
    0.

    The true answer is never read, so what the weights know of it may stay: a baseline.

    Source: Maini et al. 2024 (arXiv 2401.06121), section 4 ("IDK"), with refusals.

    >>> import torch
    >>> alternative_nll(View(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])))
    tensor([1.3863])
    """
    return -alternative.mean_logp()


def gdr(retain: View) -> Tensor:
    """Gradient descent on retain text: mean cross entropy per token. [B], nats, at least 0.

    Source: Maini et al. 2024 (arXiv 2401.06121), section 4; Shi et al. 2024 (arXiv 2407.06460).
    """
    return -retain.mean_logp()


def klr(retain: View, ref_retain: View) -> Tensor:
    """KL(target || policy) on retain text, mean over unmasked positions. [B], nats, at least 0, 0
    where the two agree.

    Source: Zhang et al. 2024 (arXiv 2410.16454), eq. 10. Differs from the released code, which
    passes raw logits.
    """
    ref, own = ref_retain.log_probs(), retain.log_probs()
    per_token = (ref.exp() * (ref - own)).sum(-1) * retain.mask
    return per_token.sum(-1) / retain.num_tokens().clamp(min=1.0)
