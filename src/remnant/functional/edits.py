"""A change of one weight that is the solution of a least-squares problem, from sums over text."""

import torch

from remnant.functional.shapes import OfInputs, Weight


def least_squares_edit(
    pull: Weight, forget: OfInputs, retain: OfInputs, *, ridge: float = 0.01
) -> Weight:
    """The change D of a weight that moves its outputs on forget text by what is wanted and moves
    them little elsewhere: the least of mean |D x - c|^2 + mean |D r|^2 + l |D|^2, in closed form D
    = P (F + R + l I)^-1.

    Args:
        pull: P, the mean of c x^T over forget tokens, [out, in]; x is the input of the weight and c
            the change that is wanted of its output.
        forget: F, the mean of x x^T, [in, in].
        retain: R, the same over retain tokens, times what these weigh.
        ridge: l over the mean of F's diagonal, above 0.

    Returns:
        Float64, [out, in]; of no higher rank than there are forget tokens.

    Raises:
        ValueError: a ridge that is not above 0.

    Source: Meng et al. 2022 (arXiv 2210.07229), section 4.2, for the closed form; GROM 2026
    (arXiv 2608.05783) for forgetting by it.

    >>> one = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    >>> least_squares_edit(torch.tensor([[2.0, 0.0]]), one, one, ridge=1e-9).round(decimals=4)
    tensor([[1., 0.]], dtype=torch.float64)
    """
    if not ridge > 0:
        raise ValueError(f"the ridge must be above 0, not {ridge}")
    wide = forget.double()
    size = ridge * wide.diagonal().mean().clamp(min=1e-30)
    held = size * torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    solved: Weight = torch.linalg.solve(wide + retain.double() + held, pull.double().T).T
    return solved
