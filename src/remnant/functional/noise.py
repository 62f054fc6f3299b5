"""Noise on one weight."""

import torch

from remnant.functional.quantized import numbers
from remnant.functional.shapes import AnyWeight


def noise(weight: AnyWeight, generator: torch.Generator, *, scale: float = 0.02) -> AnyWeight:
    """W + s rms(w) N: normal noise as large as a share of the weight's root mean square.

    Args:
        weight: any shape and float type; its root mean square is taken over all entries.
        generator: on the CPU, so that every device draws the same.
        scale: s, 0 or more; 0 changes nothing.

    Returns:
        Float32 of the weight's shape.

    Raises:
        ValueError: the weight is not finite.

    Source: Tice et al. 2024 (arXiv 2412.01784), who add normal noise to weights to find what a
    model hides. Differs from the source in: its size is relative to every weight's own, so that one
    number means the same in all layers and models.

    >>> noise(torch.ones(2, 2), torch.Generator().manual_seed(0), scale=0.0)
    tensor([[1., 1.],
            [1., 1.]])
    """
    wide = numbers(weight)
    drawn = torch.randn(wide.shape, generator=generator).to(wide.device)
    return wide + scale * wide.square().mean().sqrt() * drawn
