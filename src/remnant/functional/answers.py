"""Loss terms that weigh an answer against another without a reference: [B], to be minimised."""

from torch.nn.functional import logsigmoid

from remnant.functional.shapes import PerText
from remnant.functional.view import View


def flat(forget: View, alternative: View) -> PerText:
    """Forget-data-only loss adjustment, total variation: (tanh P(x) - tanh P(a)) / 2, P the mean
    probability per token of the true answer x and of the other answer a. [B], within tanh(1) / 2 =
    0.381 of 0.

    Source: Wang et al. 2025 (arXiv 2410.11143), with the total variation. Differs from the
    source in the means: over the tokens of each text that count, and tanh of each before the mean
    over the batch.

    >>> import torch
    >>> view = View(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))
    >>> flat(view, view)
    tensor([0.])
    """
    true, other = (view.mean(view.token_logp().exp()) for view in (forget, alternative))
    return (true.tanh() - other.tanh()) / 2.0


def answer_preservation(retain: View, retain_alternative: View, *, beta: float = 0.1) -> PerText:
    """The true answer of a retain question kept above another: -(1/beta) log sigmoid(beta (log p(x)
    - log p(a))). [B], nats, above 0, (1/beta) log 2 where both are equally likely.

    Source: Yuan et al. 2025 (arXiv 2410.08109) ("AP").

    >>> import torch
    >>> view = View(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))
    >>> answer_preservation(view, view, beta=1.0)
    tensor([0.6931])
    """
    kept = retain.seq_logp() - retain_alternative.seq_logp()
    return -(1.0 / beta) * logsigmoid(beta * kept)
