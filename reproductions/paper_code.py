"""What the code released with arXiv 2410.16454 computes where it differs from its paper.

For comparison only, and a file of a user's like any other: nothing in Remnant knows of it. In a
sweep (the code also counts the forget gradient twice, hence the weight):

    terms = [{use = "reproductions/paper_code.py:npo", weight = 2.0},
             {use = "reproductions/paper_code.py:klr"}]

Its SURE moves every weight. Where its mask is applied at all, it is on the gradients of rows of one
mini-batch, which momentum and weight decay do not notice: ``masked``.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from remnant.functional.view import View
from remnant.functional.weights import at_least_percentile

Loss = Callable[[int], tuple[Tensor, dict[str, float]]]


def npo(forget: View, ref_forget: View, *, beta: float = 0.1) -> Tensor:
    """NPO on raw logits over the whole vocabulary; the labels are never read. [B].

    Differs from the source (arXiv 2410.16454, eq. 8) in everything but the name: it is no
    likelihood, and changes when a constant is added to the logits.
    """
    per_entry = -(2.0 / beta) * logsigmoid(-beta * (_raw(forget) - _raw(ref_forget)))
    return per_entry.mean((-1, -2))


def klr(retain: View, ref_retain: View) -> Tensor:
    """exp(ref) (ref - own) on raw logits, summed over positions and vocabulary. [B].

    Differs from the source (arXiv 2410.16454, eq. 10): without a softmax it is neither bounded
    below nor flat where the two agree.
    """
    ref, own = _raw(ref_retain), _raw(retain)
    return (ref.exp() * (ref - own)).sum((-1, -2))


def _raw(view: View) -> Tensor:
    """[B, T-1, V] float32 logits, zero where masked."""
    return view.logits[:, :-1].float().masked_fill(~view.mask[..., None], 0.0)


def masked(model: nn.Module, whole: Loss, forget: Loss, percentile: float) -> Loss:
    """A loss for ``remnant.training.loop.fit`` without the gradients of the less salient rows.

    The gradient of the forget loss is left behind for that of the whole loss to be added to, so it
    counts twice.

    Args:
        model: what is trained; whatever wants gradients now is masked.
        whole: micro-step -> the loss of all terms, as ``make_loss`` gives it.
        forget: micro-step -> the loss of the forget terms on the same texts.
        percentile: rows of matrices and entries of vectors whose gradient's norm is below it do not
            move by their gradient.

    Differs from the source (arXiv 2410.16454, eqs. 4-6): rows, one mini-batch, and the mask is on
    gradients.
    """
    moving = [p for p in model.parameters() if p.requires_grad]
    masks: dict[int, Tensor] = {}

    def left(i: int, gradient: Tensor) -> Tensor:
        if i not in masks:
            return gradient
        return gradient.masked_fill(~masks[i].view(-1, *[1] * (gradient.ndim - 1)), 0.0)

    for i, parameter in enumerate(moving):
        parameter.register_hook(lambda gradient, i=i: left(i, gradient))

    def loss_at(micro: int) -> tuple[Tensor, dict[str, float]]:
        masks.clear()
        forget(micro)[0].backward()
        masks.update(_masks(moving, percentile))
        for i, parameter in enumerate(moving):
            if parameter.grad is not None:
                parameter.grad = left(i, parameter.grad)
        return whole(micro)

    return loss_at


def _masks(moving: Iterable[nn.Parameter], percentile: float) -> dict[int, Tensor]:
    """For every weight that has a gradient, which of its rows are at or above the percentile."""
    scores = {i: _rows(p.grad) for i, p in enumerate(moving) if p.grad is not None}
    chosen = at_least_percentile(torch.cat(list(scores.values())), percentile)
    parts = chosen.split([len(score) for score in scores.values()])
    return dict(zip(scores, parts, strict=True))


def _rows(gradient: Tensor) -> Tensor:
    wide = gradient.float()
    return wide.abs() if wide.ndim == 1 else wide.flatten(1).norm(dim=-1)
