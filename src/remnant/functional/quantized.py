"""A quantized weight, and what every quantizer does before and after it rounds.

A weight is [rows, columns] with the input dimension last; more leading axes (experts) count as
rows. Codes are int8 of the weight's shape. Decoding is ``(codes - zero) * scale`` on integer grids
and ``level[codes] * scale`` on float grids.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from remnant.functional.shapes import AnyWeight, Blocks, Weight


class Indivisible(ValueError):
    """The blocks of a grid do not divide the rows of a weight."""


def check_divides(weight: Weight, group_size: int) -> None:
    """Refuse a weight whose rows are no whole number of groups; 0 is one group per row.

    Raises:
        Indivisible: with both numbers.
    """
    if group_size and weight.shape[-1] % group_size:
        raise Indivisible(
            f"the group size {group_size} does not divide the row length {weight.shape[-1]}"
        )


class Quantized(NamedTuple):
    """A quantized weight.

    ``scale`` and ``zero`` have one entry per block, [blocks, 1]; ``weight`` is float32, decoded.

    ``codes`` are empty where a library keeps them packed in a form of its own, and the bits of the
    weight where it is only cast. ``shared`` [1]: what the scales are multiplied with to be kept in
    a narrower float, where a format has such a number per weight; it does not enter the decoding.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    weight: Tensor
    shared: Tensor | None = None


def numbers(weight: AnyWeight) -> AnyWeight:
    """The weight as float32.

    Raises:
        ValueError: it holds infinities, or what is no number.
    """
    wide = weight.float()
    if not _all_finite(wide):
        raise ValueError("it holds values that are not finite")
    return wide


def sound(found: Quantized) -> Quantized:
    """A result that is finite.

    Raises:
        ValueError: a scale or a decoded value left the range of its float.
    """
    if not (_all_finite(found.weight) and _all_finite(found.scale)):
        raise ValueError(
            "the result is not finite: its values or scales are beyond the range of the format"
        )
    return found


def _all_finite(values: Tensor) -> bool:
    """Whether all are finite, by one sum; only where that overflows is every value looked at."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def blocks_of(weight: Weight, granularity: str, group_size: int) -> Blocks:
    """[blocks, entries] with one scale per row."""
    columns = weight.shape[-1]
    if granularity == "tensor":
        return weight.reshape(-1, weight.shape[-2] * columns)
    if granularity == "channel":
        return weight.reshape(-1, columns)
    if granularity == "group":
        check_divides(weight, group_size)
        return weight.reshape(-1, group_size)
    raise ValueError(f"unknown granularity '{granularity}'; known: tensor, channel, group")


def not_zero(scale: AnyWeight) -> AnyWeight:
    """A scale of zero (a block of zeros) becomes one, so that nothing is divided by zero."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))
