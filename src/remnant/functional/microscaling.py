"""4-bit floats (e2m1) in small blocks whose scales are narrow floats too: NVFP4 and MXFP4.

Levels are 0, 0.5, 1, 1.5, 2, 3, 4 and 6 with either sign; codes are their bits, the sign in the
fourth. Ties go to the level whose mantissa is even. For a weight that is not finite, and where the
result would not be, ValueError is raised; `Indivisible` where the blocks do not divide the rows.
"""

import torch

from remnant.functional.quantized import Quantized, blocks_of, numbers, sound
from remnant.functional.shapes import Blocks, PerBlock, Vector, Weight
from remnant.levels import E2M1

LEVELS = E2M1
# The largest e4m3 (arXiv 2209.05433, table 1), and what a scale that e4m3 rounds to zero becomes.
# Source of the second: compressed-tensors 0.19, quantization/utils/helpers.py.
LARGEST_SCALE, LEAST_SCALE = 448.0, 0.125
# Half of the distance of two neighbours with one bit of mantissa, at the place of float32's bits:
# from 1.75 times a power of two on the next power is taken.
HALF_UP = 1 << 21
EXPONENT = 0x7F800000


def nvfp4(weight: Weight) -> Quantized:
    """e2m1 with a scale per 16 columns, kept as e4m3 relative to one float32 number of the weight.

    That number is g = 448 * 6 * (1 / amax) of the matrix (``shared``), the scale of a block
    e4m3(g * amax / 6) / g. Codes, scales and decoded values equal those of compressed-tensors
    (NVFP4A16) bit for bit.

    Args:
        weight: [..., rows, columns], any float type; arithmetic in float32. Of stacked matrices
            each has a number of its own.

    Source: NVIDIA 2025, Pretraining Large Language Models with NVFP4 (arXiv 2509.25149), and
    compressed-tensors 0.19. *Differs from the paper in* what becomes of a scale that e4m3 rounds to
    zero: 1/8, as in the library, so that the block becomes zeros. llm-compressor gives matrices
    that vLLM fuses (query, key and value; gate and up) one g together.

    >>> nvfp4(torch.tensor([[0.3, -1.1, 6.0] + [0.0] * 13])).weight[0, :3].tolist()
    [0.5, -1.0, 6.0]
    """
    wide = numbers(weight)
    blocks = blocks_of(wide, "group", 16)
    largest = blocks_of(wide, "tensor", 0).abs().amax(-1)
    # The product with a reciprocal, as torch divides a number by a tensor: not the quotient's bits.
    inverse = largest.clamp(min=torch.finfo(torch.float32).tiny).reciprocal()
    shared = LARGEST_SCALE * LEVELS[-1] * inverse
    # Of a weight of almost nothing the number is no float32; it then stays out of the game.
    shared = torch.where(shared.isfinite(), shared, 1.0)
    of_block = shared.repeat_interleave(len(blocks) // len(shared))[:, None]
    scale = of_block * (blocks.abs().amax(-1, keepdim=True) / LEVELS[-1])
    kept = scale.clamp(max=LARGEST_SCALE).to(torch.float8_e4m3fn).float()
    kept = torch.where(kept == 0, LEAST_SCALE, kept)
    return _rounded(weight, blocks, kept / of_block, shared)


def mxfp4(weight: Weight) -> Quantized:
    """e2m1 with a power of two per 32 columns (e8m0).

    The power is that of the block's largest magnitude over 4, the next one from 1.75 times it on,
    and at least 2^-127. Codes, scales and decoded values equal those of compressed-tensors
    (MXFP4A16) bit for bit.

    Args:
        weight: [..., rows, columns], any float type; arithmetic in float32.

    Raises:
        ValueError: a magnitude from 1.75 * 2^127 on, of which the library makes NaN.

    Source: OCP Microscaling Formats 1.0 (2023), as in compressed-tensors 0.19. *Differs from the
    specification in* the next power from 1.75 on: there the largest magnitude is clipped from 7 and
    more to 6.

    >>> mxfp4(torch.tensor([[0.3, -1.1, 7.0] + [0.0] * 29])).weight[0, :3].tolist()
    [0.0, -1.0, 8.0]
    """
    blocks = blocks_of(numbers(weight), "group", 32)
    bits = blocks.abs().amax(-1, keepdim=True).view(torch.int32)
    power = ((bits + HALF_UP) & EXPONENT).view(torch.float32)
    return _rounded(weight, blocks, (power / 4).clamp(min=2.0**-127), None)


def _rounded(weight: Weight, blocks: Blocks, scale: PerBlock, shared: Vector | None) -> Quantized:
    """Blocks over their scales, rounded to the nearest level, ties to even mantissas."""
    scaled = (blocks / scale).clamp(-LEVELS[-1], LEVELS[-1])
    size = scaled.abs()
    apart = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    level = (size / apart).round() * apart
    code = torch.bucketize(level, torch.tensor(LEVELS, device=weight.device))
    code += 8 * ((scaled < 0) & (level > 0))
    decoded = torch.where(scaled < 0, -level, level) * scale
    return sound(
        Quantized(
            code.to(torch.int8).view(weight.shape), scale, None, decoded.view(weight.shape), shared
        )
    )
