"""Pruning as pure functions of one weight: what is least important becomes zero."""

import torch

from remnant.functional.quantized import Indivisible, numbers
from remnant.functional.shapes import PerColumn, Weight


def magnitude(weight: Weight, *, percent: int = 20, pattern: str = "") -> Weight:
    """The entries of smallest magnitude of every row become zero.

    Args:
        weight: [..., rows, columns], any float type.
        percent: of the columns, 0 to 99, rounded down; without a pattern.
        pattern: "2:4" or "4:8", so many of every so many consecutive columns are kept; "" for
            none.

    Returns:
        Float32 of the weight's shape; what is kept is the same bit for bit. Among equals the
        first go.

    Raises:
        ValueError: the weight is not finite, or the pattern does not divide the columns.

    Source: Han et al. 2015 (arXiv 1506.02626). Differs from the source in: every row by itself, as
    Wanda compares (arXiv 2306.11695, section 3), and no training afterwards.

    >>> magnitude(torch.tensor([[3.0, -1.0, 2.0, 0.5]]), percent=50)
    tensor([[3., 0., 2., 0.]])
    """
    wide = numbers(weight)
    return _without_least(wide, wide.abs(), percent, pattern)


def wanda(weight: Weight, norms: PerColumn, *, percent: int = 20, pattern: str = "") -> Weight:
    """The entries of every row whose magnitude times the norm of their input is smallest become
    zero.

    Args:
        weight: [..., rows, columns], any float type.
        norms: [columns], the norm of every input over calibration text.
        percent: as for ``magnitude``.
        pattern: as for ``magnitude``.

    Returns:
        As ``magnitude``.

    Raises:
        ValueError: as ``magnitude``.

    Source: Sun et al. 2023 (arXiv 2306.11695), eq. 1. Differs from the source in: all inputs are
    those of the whole model, not of one whose earlier layers are pruned already.

    >>> wanda(torch.tensor([[3.0, 1.0]]), torch.tensor([0.1, 1.0]), percent=50)
    tensor([[0., 1.]])
    """
    wide = numbers(weight)
    return _without_least(wide, wide.abs() * norms, percent, pattern)


def _without_least(weight: Weight, scores: Weight, percent: int, pattern: str) -> Weight:
    """The weight with zeros where a row's (or a block's) scores are smallest."""
    columns = weight.shape[-1]
    kept, block = map(int, pattern.split(":")) if pattern else (0, columns)
    if columns % block:
        raise Indivisible(f"the pattern {pattern} does not divide the row length {columns}")
    gone = block - kept if pattern else columns * percent // 100
    order = scores.reshape(-1, block).argsort(dim=-1, stable=True)
    mask = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order[:, :gone], True)
    return weight.masked_fill(mask.view(weight.shape), 0.0)
