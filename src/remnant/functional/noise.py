"""Noise on one weight, added to it or in the place of a part of it."""

import math

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


def shrink_and_perturb(
    weight: AnyWeight, generator: torch.Generator, *, share: float, scale: float = 0.1
) -> AnyWeight:
    """(1 - a) w + a s X: a weight shrunk, and noise in the place of what it lost.

    X is as large as the weights of a fresh model: uniform between -r and r, r = sqrt(6 / (rows +
    columns)); a vector is shrunk alone.

    Args:
        weight: [rows, columns] or a vector, any float type.
        generator: on the CPU, so that every device draws the same.
        share: a, from 0, which gives the weight, to 1, which leaves nothing of it.
        scale: s, 0 or more.

    Returns:
        Float32 of the weight's shape.

    Raises:
        ValueError: the weight is not finite.

    Source: Lee et al. 2025 (arXiv 2506.06278), "UNDO"; Ash and Adams 2020 (arXiv 1910.08475),
    "shrink and perturb"; Glorot and Bengio 2010 for r.

    >>> shrink_and_perturb(torch.tensor([2.0, 4.0]), torch.Generator(), share=0.25)
    tensor([1.5000, 3.0000])
    """
    kept = (1 - share) * numbers(weight)
    if weight.ndim < 2:
        return kept
    reach = math.sqrt(6 / sum(weight.shape))
    drawn = torch.rand(kept.shape, generator=generator).to(kept.device)
    return kept + share * scale * reach * (2 * drawn - 1)
