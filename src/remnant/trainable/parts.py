"""A part of a parameter: what may move, while the rest of the tensor stands still bit for bit."""

from typing import Any, NamedTuple

from torch import Tensor, nn


class Part(NamedTuple):
    """All of a parameter (``index`` None) or what an index picks: slices, rows by a mask, or single
    weights by a mask.
    """

    parameter: nn.Parameter
    index: Any = None

    def read(self) -> Tensor:
        """The present values; a copy unless the part is the whole or made of slices."""
        return self.parameter.data if self.index is None else self.parameter.data[self.index]

    def size(self) -> int:
        """How many numbers it has."""
        return self.read().numel()

    def gradient(self) -> Tensor | None:
        """The gradient of this part, or None where there is none."""
        grad = self.parameter.grad
        return grad if grad is None or self.index is None else grad[self.index]

    def write(self, values: Tensor) -> None:
        """Replace the values of this part and of nothing else."""
        if self.index is None:
            self.parameter.data.copy_(values)
        else:
            # A mask, unlike slices, takes no values of another dtype.
            self.parameter.data[self.index] = values.to(self.parameter.dtype)
