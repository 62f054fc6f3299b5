"""Half-quadratic quantization by its own library, as dense copies with its codes."""

import torch
from torch import Tensor

from remnant.errors import UserError
from remnant.formats.hqq import HQQ
from remnant.functional.quantized import Quantized, check_divides


def hqq(weight: Tensor, *, bits: int = 4, group_size: int = 64) -> Quantized:
    """One weight on an integer grid whose zero is optimised for a robust error, without calibration
    text.

    Args:
        weight: [rows, columns].
        bits: 8, 4, 3 or 2.
        group_size: columns per scale; must divide the columns.

    Raises:
        UserError: hqq is missing.
        ValueError: bits it does not have.
        Indivisible: a group that does not divide the columns.

    Source: Badri and Shaji 2023, as in hqq (20 iterations at most, lp norm 0.7).
    """
    if bits not in (8, 4, 3, 2):
        raise ValueError(f"hqq has 8, 4, 3 and 2 bits, not {bits}")
    check_divides(weight, group_size)
    try:
        from hqq.core.quantize import Quantizer
    except ImportError as error:
        raise UserError("This format needs hqq, which is not installed.", HQQ.install) from error
    plain = weight.float().contiguous()
    packed, meta = Quantizer.quantize(
        plain,
        nbits=bits,
        group_size=group_size,
        axis=1,
        device=str(plain.device),
        optimize=True,
        compute_dtype=torch.float32,
    )
    decoded = Quantizer.dequantize(packed, meta).float()
    scale, zero = meta["scale"].float().reshape(-1, 1), meta["zero"].float().reshape(-1, 1)
    codes = (decoded.reshape(-1, group_size) / scale + zero).round() - 2 ** (bits - 1)
    return Quantized(
        codes.to(torch.int8).view(weight.shape),
        scale,
        zero - 2 ** (bits - 1),
        decoded.view(weight.shape),
    )
