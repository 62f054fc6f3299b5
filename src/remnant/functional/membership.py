"""Membership scores from token log-probabilities."""

import torch
from torch import Tensor

from remnant.functional.view import View


def min_k(view: View, *, ratio: float = 0.4) -> Tensor:
    """Min-k%: minus the mean of the lowest ``int(n * ratio)`` token log-probabilities. [B], nats, at least 0; low for known text.

    At least one token is taken; NaN for a sequence without counted tokens.

    Source: Shi et al. 2024 (arXiv 2310.16789), section 4. Differs from the source for texts so short that int() gives 0.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must be in (0, 1], not {ratio}")
    ordered = view.token_logp().masked_fill(~view.mask, torch.inf).sort(-1).values
    taken = (view.num_tokens() * ratio).floor().clamp(min=1.0)
    lowest = torch.arange(ordered.shape[-1], device=ordered.device) < taken[:, None]
    mean = -ordered.masked_fill(~lowest, 0.0).sum(-1) / taken
    return mean.masked_fill(view.num_tokens() == 0, torch.nan)
