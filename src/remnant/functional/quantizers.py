"""Quantizers as pure functions: weight -> codes, scale, zero and the decoded weight.

A weight is [rows, columns] with the input dimension last; more leading axes (experts) count as
rows. Codes are int8 of the weight's shape. Decoding is ``(codes - zero) * scale`` on integer grids
and ``level[codes] * scale`` on float grids.

Every function here raises ValueError for a weight that is not finite, and where its result would
not be: nothing broken becomes a number.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from remnant.levels import FP4_LEVELS, NF4_LEVELS

# Entries that are rounded at once.
PIECE = 1 << 16


class Indivisible(ValueError):
    """The blocks of a grid do not divide the rows of a weight."""


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


def rtn(
    weight: Tensor,
    *,
    bits: int = 4,
    granularity: str = "channel",
    group_size: int = 128,
    scheme: str = "sym",
) -> Quantized:
    """Round to nearest (ties to even) on an integer grid of 2 to 8 bits.

    Args:
        weight: [..., rows, columns], any float type; arithmetic in float32.
        bits: 2 to 8.
        granularity: one scale per "tensor", per "channel" (row) or per "group" of ``group_size``
            columns.
        group_size: columns per group; must divide the columns.
        scheme: the scale. "sym": amax / (2^(b-1) - 1), nothing is clipped. "half-step": amax /
            ((2^b - 1) / 2), as in compressed-tensors and torchao, where the largest value is
            clipped by half a step. "paper": amax / 2^(b-1), where the largest positive value is
            clipped by a whole step (arXiv 2410.16454, section 4). "asym": the range from min to
            max, zero included, in 2^b - 1 steps.

    Error: at most half a step for every value inside the grid. A block of zeros decodes to zeros.

    Raises:
        ValueError: bits out of range, unknown granularity or scheme, group size that does not
            divide the columns.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2 to 8, not {bits}")
    blocks = _blocks(_numbers(weight), granularity, group_size)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if scheme == "asym":
        return _asymmetric(weight, blocks, low, high)
    divisors = {"sym": float(high), "half-step": (2**bits - 1) / 2, "paper": float(-low)}
    if scheme not in divisors:
        raise ValueError(f"unknown scheme '{scheme}'; known: asym, {', '.join(divisors)}")
    smallest, largest = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    scale = _safe(torch.maximum(-smallest, largest) / divisors[scheme])
    return _on_grid(weight, blocks, scale, None, -high if scheme == "sym" else low, high)


def _asymmetric(weight: Tensor, blocks: Tensor, low: int, high: int) -> Quantized:
    smallest, largest = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    smallest, largest = smallest.clamp(max=0.0), largest.clamp(min=0.0)
    scale = _safe((largest - smallest) / (high - low))
    zero = (low - (smallest / scale).round()).clamp(low, high)
    return _on_grid(weight, blocks, scale, zero, low, high)


def _on_grid(
    weight: Tensor, blocks: Tensor, scale: Tensor, zero: Tensor | None, low: int, high: int
) -> Quantized:
    """Round blocks to codes and back, in pieces that stay in the cache: temporaries of a whole
    weight cost more than the arithmetic.
    """
    codes, decoded = torch.empty_like(blocks, dtype=torch.int8), torch.empty_like(blocks)
    rows = max(1, PIECE // blocks.shape[-1])
    for start in range(0, blocks.shape[0], rows):
        here = slice(start, start + rows)
        piece = torch.div(blocks[here], scale[here], out=decoded[here]).round_()
        if zero is not None:
            piece += zero[here]
        codes[here] = piece.clamp_(low, high)
        if zero is not None:
            piece -= zero[here]
        piece *= scale[here]
    return _sound(
        Quantized(codes.reshape(weight.shape), scale, zero, decoded.reshape(weight.shape))
    )


def _numbers(weight: Tensor) -> Tensor:
    """The weight as float32.

    Raises:
        ValueError: it holds infinities, or what is no number.
    """
    wide = weight.float()
    if not _all_finite(wide):
        raise ValueError("it holds values that are not finite")
    return wide


def _sound(found: Quantized) -> Quantized:
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


def _blocks(weight: Tensor, granularity: str, group_size: int) -> Tensor:
    """[blocks, entries] with one scale per row."""
    columns = weight.shape[-1]
    if granularity == "tensor":
        return weight.reshape(-1, weight.shape[-2] * columns)
    if granularity == "channel":
        return weight.reshape(-1, columns)
    if granularity == "group":
        if columns % group_size:
            raise Indivisible(
                f"the group size {group_size} does not divide the row length {columns}"
            )
        return weight.reshape(-1, group_size)
    raise ValueError(f"unknown granularity '{granularity}'; known: tensor, channel, group")


def _safe(scale: Tensor) -> Tensor:
    """A scale of zero (a block of zeros) becomes one, so that nothing is divided by zero."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _over(weights: Tensor, scale: Tensor) -> Tensor:
    """The product of weights and 1 / scale, zeros where the scale is zero.

    Of blocks so small that 1 / scale is no float32 a multiple is taken, by a power of two, which
    changes no quotient.
    """
    lift = torch.where(scale.abs() < 2.0**-60, 2.0**90, 1.0)
    inverse = 1 / torch.where(scale == 0, torch.ones_like(scale), scale * lift)
    return (weights * lift) * torch.where(scale == 0, torch.zeros_like(scale), inverse)


def _quantized(
    weight: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, decoded: Tensor
) -> Quantized:
    return _sound(
        Quantized(
            codes.to(torch.int8).reshape(weight.shape), scale, zero, decoded.reshape(weight.shape)
        )
    )


def nf4(weight: Tensor, *, block: int = 64) -> Quantized:
    """4-bit NormalFloat: the nearest of 16 fixed levels times the largest magnitude of a block of
    consecutive entries.

    Codes and decoded weights equal those of bitsandbytes bit for bit where the block divides the
    row length.

    Source: Dettmers et al. 2023 (arXiv 2305.14314), section 3 and appendix E.
    """
    return _float_grid(weight, NF4_LEVELS, block)


def fp4(weight: Tensor, *, block: int = 64) -> Quantized:
    """4-bit float (sign, two exponent bits, one of mantissa.

    Smallest step 1/192) times the block's largest magnitude.

    Codes and decoded weights equal those of bitsandbytes bit for bit where the block divides the
    row length.
    """
    return _float_grid(weight, FP4_LEVELS, block)


def _float_grid(weight: Tensor, levels: tuple[float, ...], block: int) -> Quantized:
    flat = _numbers(weight).flatten()
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % block)).view(-1, block)
    scale = _safe(padded.abs().amax(-1, keepdim=True))
    table = torch.tensor(levels, dtype=torch.float32, device=weight.device)
    ordered, code_of = table.sort(stable=True)
    edges = (ordered[1:] + ordered[:-1]) / 2
    # bitsandbytes multiplies whole blocks by a reciprocal and divides the last, cut one; on a tie
    # the two differ.
    scaled = _over(padded, scale)
    if flat.numel() % block:
        scaled[-1] = padded[-1] / scale[-1]
    index = torch.bucketize(scaled, edges)
    codes = code_of[index]
    decoded = (ordered[index] * scale).flatten()[: flat.numel()].view(weight.shape)
    return _sound(
        Quantized(
            codes.to(torch.int8).flatten()[: flat.numel()].view(weight.shape), scale, None, decoded
        )
    )


def fp8(weight: Tensor, *, block: int = 0) -> Quantized:
    """8-bit float e4m3 (four significant bits, largest 448) times amax / 448 of a row (``block`` 0)
    or of a block of entries.

    Codes are the bits of torch's float8_e4m3fn. Source: Micikevicius et al. 2022 (arXiv
    2209.05433), table 1.
    """
    blocks = _blocks(_numbers(weight), "group" if block else "channel", block)
    scale = _safe(blocks.abs().amax(-1, keepdim=True) / 448)
    rounded = (blocks / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    return _quantized(weight, rounded.view(torch.int8), scale, None, rounded.float() * scale)


def q8_0(weight: Tensor, *, block: int = 32) -> Quantized:
    """GGUF's Q8_0: codes round(w / s) with s = amax / 127 of a block, decoded with s kept as
    float16.

    Source: llama.cpp, quantize_row_q8_0_ref (rounds halves away from zero).
    """
    blocks = _blocks(_numbers(weight), "group", block)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    scaled = _over(blocks, scale)
    codes = scaled.sign() * (scaled.abs() + 0.5).floor()
    kept = scale.half().float()
    return _quantized(weight, codes, kept, None, codes * kept)


def q4_0(weight: Tensor, *, block: int = 32) -> Quantized:
    """GGUF's Q4_0: the entry of largest magnitude m of a block gets code -8, s = m / -8 is kept as
    float16 and may be negative.

    Source: llama.cpp, quantize_row_q4_0_ref (codes there are 0 to 15, here less 8).
    """
    blocks = _blocks(_numbers(weight), "group", block)
    at = blocks.abs().argmax(-1, keepdim=True)
    scale = blocks.gather(-1, at) / -8
    codes = (_over(blocks, scale) + 8.5).trunc().clamp(max=15) - 8
    kept = scale.half().float()
    return _quantized(weight, codes, kept, None, codes * kept)


def cast(weight: Tensor, *, dtype: str = "bfloat16") -> Quantized:
    """A narrower float without any scale: what happens to float32 weights that are stored for
    deployment.

    Args:
        weight: any shape.
        dtype: "bfloat16" (8 significant bits) or "float16" (11, largest 65504).

    Codes are the 16 bits of the value; ``scale`` is the largest magnitude. Source: torch's
    rounding, ties to even.

    Raises:
        ValueError: another dtype.
    """
    if dtype not in ("bfloat16", "float16"):
        raise ValueError(f"the dtype is bfloat16 or float16, not {dtype}")
    kept, largest = weight.to(getattr(torch, dtype)), _numbers(weight).abs().amax().view(1, 1)
    return _sound(Quantized(kept.view(torch.int16), _safe(largest), None, kept.float()))
