"""A part of a parameter: what may move, while the rest of the tensor stands still bit for bit."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from remnant.ranks import local


class Part(NamedTuple):
    """All of a parameter (``index`` None) or what an index picks: slices, rows by a mask, or single
    weights by a mask.

    Of a parameter in shards it is what this rank holds of it, and the index is one of those rows.
    """

    parameter: nn.Parameter
    index: Any = None

    def read(self) -> Tensor:
        """The present values; a copy unless the part is the whole or made of slices."""
        values = local(self.parameter.data)
        return values if self.index is None else values[self.index]

    def size(self) -> int:
        """How many numbers it has."""
        return self.read().numel()

    def gradient(self) -> Tensor | None:
        """The gradient of this part, or None where there is none."""
        if self.parameter.grad is None:
            return None
        grad = local(self.parameter.grad)
        return grad if self.index is None else grad[self.index]

    def slope(self) -> Tensor:
        """The gradient of this part, zero where there is none."""
        found = self.gradient()
        return torch.zeros_like(self.read()) if found is None else found

    def write_gradient(self, values: Tensor) -> None:
        """Replace the gradient of this part; that of its parameter is made if there is none."""
        if self.parameter.grad is None:
            self.parameter.grad = torch.zeros_like(self.parameter)
        grad = local(self.parameter.grad)
        if self.index is None:
            grad.copy_(values)
        else:
            grad[self.index] = values.to(grad.dtype)

    def write(self, values: Tensor) -> None:
        """Replace the values of this part and of nothing else."""
        own = local(self.parameter.data)
        if self.index is None:
            own.copy_(values)
        else:
            # A mask, unlike slices, takes no values of another dtype.
            own[self.index] = values.to(own.dtype)
