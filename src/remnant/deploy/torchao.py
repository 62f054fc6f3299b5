"""Integer weights of 2 to 8 bits by torchao, as dense copies with the library's own codes."""

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TorchAoConfig

from remnant.deploy.order import Order, Saved, repack
from remnant.errors import UserError
from remnant.functional.quantizers import Quantized

INSTALL = "Install it with: pip install 'remnant[torchao]'"


def intx(weight: Tensor, *, bits: int = 4, group_size: int = 0, asymmetric: bool = False) -> Quantized:
    """One weight by torchao's IntxWeightOnlyConfig.

    Args:
        weight: [rows, columns].
        bits: 2 to 8.
        group_size: columns per scale; 0 for one scale per row.
        asymmetric: the range from min to max, zero included; else half-steps (amax / ((2^b - 1) / 2)), which clip.

    Raises:
        UserError: torchao is missing.
        ValueError: bits out of range, a group that does not divide the columns.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2 to 8, not {bits}")
    if group_size and weight.shape[-1] % group_size:
        raise ValueError(f"the group size {group_size} does not divide the row length {weight.shape[-1]}")
    layer = nn.Linear(weight.shape[-1], weight.shape[-2], bias=False)
    layer.weight = nn.Parameter(weight.float().reshape(-1, weight.shape[-1]).contiguous())
    holder = nn.Sequential(layer)
    library = _library()
    library["quantize_"](holder, config(bits, group_size, asymmetric))
    kept: Any = layer.weight
    zero = kept.zero_point.float().reshape(-1, 1) if asymmetric else None
    return Quantized(kept.qdata.view(weight.shape), kept.scale.float().reshape(-1, 1), zero, kept.dequantize().float().view(weight.shape))


def config(bits: int, group_size: int, asymmetric: bool) -> Any:
    """The library's own configuration of a format; raises UserError if it is missing."""
    library = _library()
    granularity = library["PerGroup"](group_size) if group_size else library["PerAxis"](0)
    mapping = library["MappingType"].ASYMMETRIC if asymmetric else library["MappingType"].SYMMETRIC
    return library["IntxWeightOnlyConfig"](weight_dtype=getattr(torch, f"int{bits}"), granularity=granularity, mapping_type=mapping)


def save(order: Order, out: Path) -> Saved:
    """Write a folder that transformers opens with torchao; raises UserError if torchao is missing."""
    settings = TorchAoConfig(config(order.params["bits"], order.params["group_size"], order.params["asymmetric"]))
    return Saved({"runtime": "transformers with torchao"}, repack(order, settings, out))


def _library() -> dict[str, Any]:
    logging.getLogger("torchao").setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            from torchao.quantization import IntxWeightOnlyConfig, PerAxis, PerGroup, quantize_
            from torchao.quantization.quant_primitives import MappingType
    except ImportError as error:
        raise UserError("This format needs torchao, which is not installed.", INSTALL) from error
    return {
        "quantize_": quantize_,
        "IntxWeightOnlyConfig": IntxWeightOnlyConfig,
        "PerGroup": PerGroup,
        "PerAxis": PerAxis,
        "MappingType": MappingType,
    }
