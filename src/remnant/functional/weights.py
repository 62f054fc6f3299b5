"""Rules on weights: how a value is rounded when it is stored."""

import torch
from torch import Tensor


def stochastic_round(weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Round float32 to bfloat16, up or down with probability by distance, so that the expectation is the value itself.

    Args:
        weight: float32 of any shape; infinities and NaN are kept.
        generator: source of the random bits, on the tensor's device.

    Source: Zamirai et al. 2020 (arXiv 2010.06192), section 3.
    """
    bits = weight.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, weight.shape, dtype=torch.int32, device=weight.device, generator=generator)
    rounded = ((bits + noise) & -65536).view(torch.float32)
    return torch.where(weight.isfinite(), rounded, weight).to(torch.bfloat16)
