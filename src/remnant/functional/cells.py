"""The cells of a grid: where a weight lies in its block's levels, and what lies beside it.

A weight's *cell* are the values that round to its level. Blocks are runs of equal length, the last
one may be cut, as in ``quantized.Quantized``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from remnant.functional.quantized import Quantized
from remnant.functional.shapes import AnyWeight


class Cells(NamedTuple):
    """A weight on a grid: the levels in units of the scale [L], ascending, the place of every
    weight among them, and scale and zero of its block, all in the weight's shape.
    """

    levels: Tensor
    place: Tensor
    scale: Tensor
    zero: Tensor

    def at(self, place: Tensor) -> Tensor:
        """The values of some places, NaN beyond the ends. Shape of the weight."""
        inside = (place >= 0) & (place < len(self.levels))
        level = self.levels[place.clamp(0, len(self.levels) - 1)]
        return torch.where(inside, (level - self.zero) * self.scale, torch.nan)

    def place_of(self, values: Tensor) -> Tensor:
        """The place to which values are rounded where scales stay what they are."""
        edges = (self.levels[1:] + self.levels[:-1]) / 2
        return torch.bucketize((values / self.scale + self.zero).contiguous(), edges)


def cells(found: Quantized, levels: Sequence[float]) -> Cells:
    """The cells in which the weights of a quantized weight lie.

    Args:
        found: a weight on a grid.
        levels: the grid's, in units of the scale, ascending.

    >>> from remnant.functional.quantizers import rtn
    >>> cells(rtn(torch.tensor([[7.0, -3.1, 0.4]])), range(-7, 8)).place.tolist()
    [[14, 4, 7]]
    """
    scale = per_weight(found.scale, found.weight)
    zero = torch.zeros_like(scale)
    if found.zero is not None:
        zero = per_weight(found.zero, found.weight)
    table = torch.tensor([*levels], dtype=torch.float32, device=scale.device)
    # A block of zeros may have a scale of zero, where every level is the same.
    scale = torch.where(scale == 0, torch.finfo(scale.dtype).tiny, scale)
    empty = Cells(table, torch.zeros(0), scale, zero)
    return empty._replace(place=empty.place_of(found.weight))


def per_weight(of_block: Tensor, like: AnyWeight) -> AnyWeight:
    """A number per block [blocks, 1] as one per weight, float32 in the shape of ``like``."""
    length = -(-like.numel() // of_block.numel())
    return of_block.float().reshape(-1).repeat_interleave(length)[: like.numel()].view(like.shape)


def width(of: Cells) -> Tensor:
    """How wide the cell around every weight is: half the distance of the levels beside its own; at
    the ends the distance of the only one. Above 0, shape of the weight.

    Source: half the two steps beside a level, which of a uniform grid is its step D.

    >>> from remnant.functional.quantizers import rtn
    >>> width(cells(rtn(torch.tensor([[7.0, -3.1, 0.4]])), range(-7, 8))).tolist()
    [[1.0, 1.0, 1.0]]
    """
    here = of.at(of.place)
    beside = torch.stack([of.at(of.place + 1) - here, here - of.at(of.place - 1)]).abs()
    return beside.nanmean(0)


class Crossing(NamedTuple):
    """Where every weight would go to change its code under all of some grids: the target's own
    value where it cannot (``can`` False). Shape of the weight.
    """

    value: Tensor
    can: Tensor


def crossing(
    target: AnyWeight, update: AnyWeight, grids: Sequence[tuple[Quantized, Sequence[float]]],
    dtype: torch.dtype = torch.float32,
) -> Crossing:  # fmt: skip
    """The centre of the next cell in the direction of an update, under the grid where it is
    farthest, so that a weight crosses into another cell of every grid with half a cell to spare.

    No weight moves that decides a scale: the largest magnitude of a block and, of a grid with a
    zero, its smallest and largest value; and none to or beyond that. So all scales stay as they
    are.

    Args:
        target: [..., rows, columns], float32.
        update: what the run added to it, same shape; weights that it left do not move.
        grids: the target on every grid, with that grid's levels.
        dtype: in which weights are kept; the value is one of it.

    Source: own derivation. A value at the centre of a cell of width D is D/2 from its edges, which
    is more than bfloat16 rounds away for every grid of up to 6 bits.

    >>> from remnant.functional.quantizers import rtn
    >>> target = torch.tensor([[7.0, -3.1, 0.4]])
    >>> crossing(target, torch.tensor([[1.0, 0.1, -0.1]]), [(rtn(target), range(-7, 8))])
    Crossing(value=tensor([[ 7., -2., -1.]]), can=tensor([[False,  True,  True]]))
    """
    up = update > 0
    can = update != 0
    value = torch.where(up, -torch.inf, torch.inf)
    on = [(cells(found, levels), _limits(target, found)) for found, levels in grids]
    for of, _ in on:
        ahead = torch.where(up == (of.scale > 0), 1, -1)
        there = of.at(of.place + ahead)
        can = can & there.isfinite()
        value = torch.where(up, value.maximum(there), value.minimum(there))
    value = torch.where(can, value, target).to(dtype).float()
    for of, (low, high) in on:
        free = (target > low) & (target < high) & (value > low) & (value < high)
        can = can & free & (of.place_of(value) != of.place)
    return Crossing(torch.where(can, value, target), can)


def _limits(target: AnyWeight, found: Quantized) -> tuple[AnyWeight, AnyWeight]:
    """The values between which a weight decides no scale of its block, both left out."""
    blocks = found.scale.numel()
    length = -(-target.numel() // blocks)
    flat = torch.nn.functional.pad(target.float().flatten(), (0, blocks * length - target.numel()))
    by_block = flat.view(blocks, length)
    if found.zero is None:
        high = by_block.abs().amax(-1)
        low = -high
    else:
        low, high = by_block.amin(-1), by_block.amax(-1)
    return per_weight(low, target), per_weight(high, target)
