"""Means over a batch that lean to the texts that are worst at."""

import math

from remnant.functional.shapes import Number, PerText


def leaning_mean(losses: PerText, temperature: float) -> Number:
    """Log-mean-exp, t log mean exp(loss / t), t the temperature: from the mean (as t grows) to the
    greatest (as t goes to 0).

    Its gradient is the mean of the texts' gradients, each weighed by exp(loss / temperature): what
    is forgotten least is pushed most.

    Source: BalDRO 2026 (arXiv 2601.09172), the dual of a KL ball ("BalDRO-DV").

    Args:
        losses: [B].
        temperature: above 0, in the unit of the losses.

    >>> import torch
    >>> leaning_mean(torch.tensor([1.0, 1.0]), temperature=0.5)
    tensor(1.)
    """
    return temperature * ((losses / temperature).logsumexp(0) - math.log(len(losses)))
