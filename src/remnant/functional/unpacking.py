"""What GPTQ, AWQ and NVFP4 pack into words and bytes, and the weights that they stand for."""

import torch
from torch import Tensor

from remnant.functional.shapes import Indices, Integers, Matrix, Vector

WORD = 32
# In which order AWQ puts eight columns into a word, the lowest bits first. Source: AutoAWQ,
# modules/linear/gemm.py.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
# The levels of 4-bit floats by their codes. Source: OCP Microscaling Formats 1.0, table 5.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def unpack_rows(packed: Integers, bits: int) -> Integers:
    """[rows, columns] words -> [rows * 32 / bits, columns] integers, the lowest bits first.

    >>> unpack_rows(torch.tensor([[0x21]]), 4).flatten().tolist()
    [1, 2, 0, 0, 0, 0, 0, 0]
    """
    shifts = torch.arange(0, WORD, bits, device=packed.device)
    fields: Tensor = (packed[:, None, :] >> shifts[None, :, None]) & (2**bits - 1)
    return fields.reshape(-1, packed.shape[1])


def unpack_columns(packed: Integers, bits: int) -> Integers:
    """[rows, columns] words -> [rows, columns * 32 / bits] integers, the lowest bits first."""
    return unpack_rows(packed.T, bits).T


def gptq(
    qweight: Integers, scales: Matrix, zeros: Integers, groups: Indices, *, bits: int = 4
) -> Matrix:
    """The weight [out, in] of a layer in GPTQ's files, in float32.

    Args:
        qweight: [in * bits / 32, out] words.
        scales: [groups, out].
        zeros: [groups, out] the code that stands for 0.
        groups: [in] the group of every input.
        bits: 2, 4 or 8.

    Source: Frantar et al. 2022 (arXiv 2210.17323); AutoGPTQ's files.

    >>> half = torch.tensor([[0.5]])
    >>> gptq(torch.tensor([[0x93]]), half, torch.tensor([[8]]), torch.zeros(8, dtype=torch.long))
    tensor([[-2.5000,  0.5000, -4.0000, -4.0000, -4.0000, -4.0000, -4.0000, -4.0000]])
    """
    codes = unpack_rows(qweight, bits)
    return ((codes - zeros[groups]).float() * scales.float()[groups]).T.contiguous()


def awq(qweight: Integers, scales: Matrix, qzeros: Integers) -> Matrix:
    """The weight [out, in] of a layer in AWQ's files of 4 bits (version "gemm"), in float32.

    Args:
        qweight: [in, out / 8] words.
        scales: [groups, out].
        qzeros: [groups, out / 8] words, the code that stands for 0.

    Source: Lin et al. 2023 (arXiv 2306.00978); AutoAWQ's files.

    >>> words = torch.tensor([[0x93]])
    >>> awq(words, torch.ones(1, 8), torch.zeros_like(words)).flatten().tolist()
    [3.0, 0.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    codes, zeros = (_in_order(unpack_columns(words, 4)) for words in (qweight, qzeros))
    each = codes.shape[0] // scales.shape[0]
    zeros, wide = (rows.repeat_interleave(each, 0) for rows in (zeros, scales.float()))
    return ((codes - zeros).float() * wide).T.contiguous()


def nvfp4(packed: Integers, scales: Matrix, shared: Vector) -> Matrix:
    """The weight [out, in] of a layer in NVFP4 as compressed-tensors keeps it, in float32.

    Args:
        packed: [out, in / 2] bytes of two codes each, the first one in the lower bits.
        scales: [out, in / 16] of 8-bit floats, ``shared`` times too large.
        shared: [1].

    Differs from the source in: nothing is rounded to bfloat16 on the way, as the library does.
    Source: compressed-tensors, compressors/nvfp4.

    >>> nvfp4(torch.full((1, 8), 0x21).byte(), torch.tensor([[4.0]]), torch.tensor([2.0]))[0, :2]
    tensor([1., 2.])
    """
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()
    values = torch.tensor(E2M1, device=packed.device)[codes]
    each = values.shape[-1] // scales.shape[-1]
    return values * (scales.float() / shared.float()).repeat_interleave(each, -1)


def _in_order(columns: Integers) -> Integers:
    """Columns as they were before AWQ put them into words."""
    back = torch.tensor(AWQ_ORDER, device=columns.device).argsort()
    found: Tensor = columns.unflatten(1, (-1, len(AWQ_ORDER)))[:, :, back].flatten(1)
    return found
