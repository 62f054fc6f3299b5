"""Values per token from hidden states, with the logits of some positions at a time: made in the
forward pass, thrown away where they are many, and made again in the backward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from remnant.functional.shapes import (
    AnyLogits,
    AnyStates,
    HeadBias,
    HeadWeight,
    Logits,
    PerRow,
    RowLogits,
    TimeMask,
)

# Logits in float32 of at most so many bytes exist at a time. Batches with fewer are computed whole,
# without making anything twice.
PIECE_BYTES = 64 * 2**20
# Logits of a batch that take no more than this are kept for its backward pass, a piece after the
# other, rather than made twice: a thirtieth of a step of 135 million weights, for 0.1 GB a side.
KEPT_BYTES = 256 * 2**20

# From logits [n, V] float32 and the places of these rows among all to a value per row, [n].
RowFunction = Callable[[RowLogits, slice], PerRow]


@dataclass(frozen=True)
class Head:
    """The linear map from hidden states [..., H] to logits [..., V], soft-capped where ``cap``."""

    weight: HeadWeight
    bias: HeadBias | None
    cap: float | None

    def __call__(self, states: AnyStates) -> AnyLogits:
        """The logits."""
        return self.capped(linear(states, self.weight, self.bias))

    def capped(self, plain: AnyLogits) -> AnyLogits:
        """What the linear map gave, behind the cap."""
        return torch.tanh(plain / self.cap) * self.cap if self.cap else plain

    def frozen(self) -> "Head":
        """A copy that later steps do not change."""
        bias = self.bias.detach().clone() if self.bias is not None else None
        return Head(self.weight.detach().clone(), bias, self.cap)


class Unmade(NamedTuple):
    """Logits [B, T, V] that are not made yet: hidden states [B, T, H] and the head over them."""

    states: AnyStates
    head: Head

    def made(self) -> Logits:
        """All of them at once."""
        return self.head(self.states)

    def rows(self, mask: TimeMask) -> "Unmade":
        """Those of the positions that a mask [B, T] picks, [n, V]."""
        return Unmade(self.states[mask], self.head)


def is_large(tokens: int, vocabulary: int) -> bool:
    """Whether so many tokens are to be computed in pieces.

    >>> is_large(512, 1024), is_large(512, 49152)
    (False, True)
    """
    return 4 * tokens * vocabulary > PIECE_BYTES


def is_kept(tokens: int, vocabulary: int) -> bool:
    """Whether the logits of so many tokens are kept for the backward pass.

    >>> is_kept(1024, 49152), is_kept(2048, 49152)
    (True, False)
    """
    return 4 * tokens * vocabulary <= KEPT_BYTES


def per_row(function: RowFunction, rows: Unmade) -> PerRow:
    """A function of the logits of every row, equal to that of all logits at once up to rounding.

    Args:
        function: gives a row's value from its logits alone; what else it reads gets no gradient.
        rows: [n, H] and their head.

    Returns:
        [n], with gradients for the states and the head's weights.
    """
    apply: Any = _PerRow.apply
    head = rows.head
    values: Tensor = apply(rows.states, head.weight, head.bias, head.cap, function)
    return values


def pieces(count: int, vocabulary: int) -> list[slice]:
    """Places of rows whose logits may exist side by side; nearly equal in size.

    >>> pieces(5, PIECE_BYTES // 8)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    most = max(1, PIECE_BYTES // (4 * vocabulary))
    number = -(-count // most)
    size = -(-count // number) if number else 1
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class _PerRow(torch.autograd.Function):
    """``per_row``: the gradient of the head's weights is summed in place, in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        cap: float | None,
        function: RowFunction,
    ) -> Tensor:
        ctx.save_for_backward(states, weight, bias)
        ctx.cap, ctx.function, ctx.kept = cap, function, {}
        head, found = Head(weight, bias, cap), []
        keep = any(ctx.needs_input_grad) and is_kept(len(states), len(weight))
        for places in pieces(len(states), len(weight)):
            plain = linear(states[places], weight, bias)
            found.append(function(head.capped(plain).float(), places))
            if keep:
                ctx.kept[places.start] = plain
        return torch.cat(found) if found else states.new_zeros(0, dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_states = torch.empty_like(states) if wanted[0] else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if wanted[2] else None
        for places in pieces(len(states), len(weight)):
            plain = ctx.kept.pop(places.start, None)
            if plain is None:
                plain = linear(states[places], weight, bias)
            plain.requires_grad_()
            with torch.enable_grad():
                logits = Head(weight, bias, ctx.cap).capped(plain).float()
                values = ctx.function(logits, places)
            (own,) = torch.autograd.grad(values, plain, above[places])
            if of_states is not None:
                of_states[places] = own @ weight
            if of_weight is not None:
                of_weight.addmm_(own.T.float(), states[places].float())
            if of_bias is not None:
                of_bias += own.sum(0, dtype=torch.float32)
        return (
            of_states,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None else of_bias.to(weight.dtype),
            None,
            None,
        )
