"""Quantizers as pure functions: weight -> codes, scale, zero and the decoded weight.

Every function here raises ValueError for a weight that is not finite, and where its result would
not be: nothing broken becomes a number.
"""

import torch
from torch import Tensor

from remnant.functional.quantized import Quantized, blocks_of, not_zero, numbers, sound
from remnant.functional.shapes import AnyWeight, Blocks, PerBlock, Weight
from remnant.levels import FP4_LEVELS, NF4_LEVELS

# Entries that are rounded at once.
PIECE = 1 << 16


def rtn(
    weight: Weight,
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

    >>> rtn(torch.tensor([[7.0, -3.1, 0.4]])).weight
    tensor([[ 7., -3.,  0.]])
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2 to 8, not {bits}")
    blocks = blocks_of(numbers(weight), granularity, group_size)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if scheme == "asym":
        return _asymmetric(weight, blocks, low, high)
    divisors = {"sym": float(high), "half-step": (2**bits - 1) / 2, "paper": float(-low)}
    if scheme not in divisors:
        raise ValueError(f"unknown scheme '{scheme}'; known: asym, {', '.join(divisors)}")
    smallest, largest = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    scale = not_zero(torch.maximum(-smallest, largest) / divisors[scheme])
    return _on_grid(weight, blocks, scale, None, -high if scheme == "sym" else low, high)


def _asymmetric(weight: Weight, blocks: Blocks, low: int, high: int) -> Quantized:
    smallest, largest = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    smallest, largest = smallest.clamp(max=0.0), largest.clamp(min=0.0)
    scale = not_zero((largest - smallest) / (high - low))
    zero = (low - (smallest / scale).round()).clamp(low, high)
    return _on_grid(weight, blocks, scale, zero, low, high)


def _on_grid(
    weight: Weight, blocks: Blocks, scale: PerBlock, zero: PerBlock | None, low: int, high: int
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
    return sound(Quantized(codes.reshape(weight.shape), scale, zero, decoded.reshape(weight.shape)))


def _over(weights: Blocks, scale: PerBlock) -> Blocks:
    """The product of weights and 1 / scale, zeros where the scale is zero.

    Of blocks so small that 1 / scale is no float32 a multiple is taken, by a power of two, which
    changes no quotient.
    """
    lift = torch.where(scale.abs() < 2.0**-60, 2.0**90, 1.0)
    inverse = 1 / torch.where(scale == 0, torch.ones_like(scale), scale * lift)
    return (weights * lift) * torch.where(scale == 0, torch.zeros_like(scale), inverse)


def _quantized(
    weight: Weight, codes: Tensor, scale: PerBlock, zero: PerBlock | None, decoded: Blocks
) -> Quantized:
    return sound(
        Quantized(
            codes.to(torch.int8).reshape(weight.shape), scale, zero, decoded.reshape(weight.shape)
        )
    )


def nf4(weight: AnyWeight, *, block: int = 64) -> Quantized:
    """4-bit NormalFloat: the nearest of 16 fixed levels times the largest magnitude of a block of
    consecutive entries.

    Codes and decoded weights equal those of bitsandbytes bit for bit where the block divides the
    row length.

    Source: Dettmers et al. 2023 (arXiv 2305.14314), section 3 and appendix E.

    >>> nf4(torch.tensor([[2.0, -2.0, 1.4, 0.0]])).codes.tolist()
    [[15, 0, 14, 7]]
    """
    return _float_grid(weight, NF4_LEVELS, block)


def fp4(weight: AnyWeight, *, block: int = 64) -> Quantized:
    """4-bit float (sign, two exponent bits, one of mantissa.

    Smallest step 1/192) times the block's largest magnitude.

    Codes and decoded weights equal those of bitsandbytes bit for bit where the block divides the
    row length.

    >>> fp4(torch.tensor([[12.0, -12.0, 2.1, 0.0]])).weight.tolist()
    [[12.0, -12.0, 2.0, 0.0]]
    """
    return _float_grid(weight, FP4_LEVELS, block)


def _float_grid(weight: AnyWeight, levels: tuple[float, ...], block: int) -> Quantized:
    flat = numbers(weight).flatten()
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % block)).view(-1, block)
    scale = not_zero(padded.abs().amax(-1, keepdim=True))
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
    return sound(
        Quantized(
            codes.to(torch.int8).flatten()[: flat.numel()].view(weight.shape), scale, None, decoded
        )
    )


def fp8(weight: Weight, *, block: int = 0) -> Quantized:
    """8-bit float e4m3 (four significant bits, largest 448) times amax / 448 of a row (``block`` 0)
    or of a block of entries.

    Codes are the bits of torch's float8_e4m3fn. Source: Micikevicius et al. 2022 (arXiv
    2209.05433), table 1.

    >>> fp8(torch.tensor([[448.0, -1.1, 0.3]])).weight.tolist()
    [[448.0, -1.125, 0.3125]]
    """
    blocks = blocks_of(numbers(weight), "group" if block else "channel", block)
    scale = not_zero(blocks.abs().amax(-1, keepdim=True) / 448)
    rounded = (blocks / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    return _quantized(weight, rounded.view(torch.int8), scale, None, rounded.float() * scale)


def q8_0(weight: Weight, *, block: int = 32) -> Quantized:
    """GGUF's Q8_0: codes round(w / s) with s = amax / 127 of a block, decoded with s kept as
    float16.

    Source: llama.cpp, quantize_row_q8_0_ref (rounds halves away from zero).

    >>> q8_0(torch.tensor([[127.0, -1.4, 0.5] + [0.0] * 29])).codes[0, :3].tolist()
    [127, -1, 1]
    """
    blocks = blocks_of(numbers(weight), "group", block)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    scaled = _over(blocks, scale)
    codes = scaled.sign() * (scaled.abs() + 0.5).floor()
    kept = scale.half().float()
    return _quantized(weight, codes, kept, None, codes * kept)


def q4_0(weight: Weight, *, block: int = 32) -> Quantized:
    """GGUF's Q4_0: the entry of largest magnitude m of a block gets code -8, s = m / -8 is kept as
    float16 and may be negative.

    Source: llama.cpp, quantize_row_q4_0_ref (codes there are 0 to 15, here less 8).

    >>> q4_0(torch.tensor([[-8.0, 3.4, 9.0] + [0.0] * 29])).weight[0, :3].tolist()
    [-7.875, 3.375, 9.0]
    """
    blocks = blocks_of(numbers(weight), "group", block)
    at = blocks.abs().argmax(-1, keepdim=True)
    scale = blocks.gather(-1, at) / -8
    codes = (_over(blocks, scale) + 8.5).trunc().clamp(max=15) - 8
    kept = scale.half().float()
    return _quantized(weight, codes, kept, None, codes * kept)


def cast(weight: AnyWeight, *, dtype: str = "bfloat16") -> Quantized:
    """A narrower float without any scale: what happens to float32 weights that are stored for
    deployment.

    Args:
        weight: any shape.
        dtype: "bfloat16" (8 significant bits) or "float16" (11, largest 65504).

    Codes are the 16 bits of the value; ``scale`` is the largest magnitude. Source: torch's
    rounding, ties to even.

    Raises:
        ValueError: another dtype.

    >>> cast(torch.tensor([[1.0, 1.001, 1.005]])).weight.tolist()
    [[1.0, 1.0, 1.0078125]]
    """
    if dtype not in ("bfloat16", "float16"):
        raise ValueError(f"the dtype is bfloat16 or float16, not {dtype}")
    kept, largest = weight.to(getattr(torch, dtype)), numbers(weight).abs().amax().view(1, 1)
    return sound(Quantized(kept.view(torch.int16), not_zero(largest), None, kept.float()))
