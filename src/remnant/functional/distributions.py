"""Loss terms that move what the model says of forget text, whole distributions over the vocabulary,
somewhere else: [B], at least 0, to be minimised.
"""

from torch import Tensor

from remnant.functional.shapes import PerText
from remnant.functional.view import View


def undial(forget: View, ref_forget: View, *, beta: float = 10.0) -> PerText:
    """Self-distillation: KL(q || p), q the target's distribution with the logit of the true token
    lowered by beta; mean over tokens. [B], nats, at least 0, 0 iff p = q.

    At the optimum the odds of the true token are exp(-beta) times the target's.

    Source: Dong et al. 2025 (arXiv 2402.10052), the adjusted teacher. Differs from the
    source in the entropy of q, which is taken off so that the least value is 0.

    >>> import torch
    >>> view = View(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))
    >>> undial(view, view, beta=0.0)
    tensor([0.])
    """
    lowered = ref_forget.log_probs()
    place = forget.targets()[..., None]
    lowered = lowered.scatter(-1, place, lowered.gather(-1, place) - beta).log_softmax(-1)
    gap = lowered - forget.log_probs()
    return forget.mean((lowered.exp() * gap).sum(-1))


def whp(
    forget: View, ref_forget: View, reinforced_forget: View, *, strength: float = 5.0
) -> PerText:
    """Cross entropy against generic labels, mean over tokens: each the greatest of log p_ref -
    strength relu(log p_plus - log p_ref), p_plus of the target trained once more on the text.
    [B], nats, at least 0.

    What the text's own training raised is no label; where it raised nothing the labels are what the
    target says.

    Source: Eldan and Russinovich 2023 (arXiv 2310.02238), eq. 1 and section 2.2. Differs from the
    source in: log-probabilities stand for logits, so that a constant does not matter; names in the
    text are not replaced by generic ones first; the reference is the target as it is.

    >>> import torch
    >>> labels = torch.tensor([[0, 1]])
    >>> even, known = torch.zeros(1, 2, 2), torch.tensor([[[-9.0, 9.0], [0.0, 0.0]]])
    >>> whp(View(known, labels), View(even, labels), View(known, labels))
    tensor([18.])
    """
    before, behind = ref_forget.log_probs(), reinforced_forget.log_probs()
    generic = (before - strength * (behind - before).relu()).argmax(-1, keepdim=True)
    return forget.mean(-forget.log_probs().gather(-1, generic)[..., 0])


def unlikelihood(forget: View, *, skip: int = 1) -> PerText:
    """-log(1 - p) of the true tokens, mean over all but the first ``skip`` of each text. [B], nats,
    at least 0; 0 where a text has no more.

    Its gradient is that of CE-U, the cross entropy against the model's own distribution without the
    true token: in the logits p on the true token and -p_v p / (1 - p) on others, so it is bounded.
    Summed over the other tokens of the vocabulary, since 1 - p is 0 in float32 where p is nearly 1.

    Source: Yang 2025 (arXiv 2503.01224), "CE-U"; Welleck et al. 2020 (arXiv 1908.04319).
    Differs from the source in the value, by the entropy of that distribution, which has no
    gradient.

    >>> import torch
    >>> unlikelihood(View(torch.zeros(1, 3, 2), torch.tensor([[0, 1, 1]])))
    tensor([0.6931])
    """
    counted = forget.without_first(skip)
    place = forget.targets()[..., None]
    others = forget.log_probs().scatter(-1, place, float("-inf")).logsumexp(-1)
    return counted.mean(-others)


def max_entropy(forget: View) -> PerText:
    """KL(uniform || p), mean over tokens. [B], nats, at least 0, 0 iff every next token is equally
    probable; its slope in a logit is p - 1/V.

    Source: Yuan et al. 2025 (arXiv 2410.08109) ("ME").

    >>> import torch
    >>> max_entropy(View(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])))
    tensor([0.])
    """
    logp = forget.log_probs()
    uniform = -Tensor.log(logp.new_tensor(float(logp.shape[-1])))
    return forget.mean(uniform - logp.mean(-1))


def logit_margin(forget: View) -> PerText:
    """(greatest - mean logit)^2, mean over tokens. [B], at least 0, 0 iff all logits are equal.

    Source: Reisizadeh et al. 2025 (arXiv 2506.05314), the flattening of logit margins. The
    bound on the retain loss that belongs to it is the method's (``pdu``), not the term's.

    >>> import torch
    >>> logit_margin(View(torch.tensor([[[1.0, 3.0], [0.0, 0.0]]]), torch.tensor([[0, 1]])))
    tensor([1.])
    """
    logp = forget.log_probs()
    return forget.mean((logp.amax(-1) - logp.mean(-1)).square())
