"""Weights by torchao, integers of 2 to 8 bits and 8-bit floats, as dense copies with the library's
own codes.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TorchAoConfig

from remnant.errors import UserError
from remnant.formats.torchao import INTX
from remnant.functional.quantized import Quantized, check_divides
from remnant.model.load import open_model
from remnant.quiet import hush
from remnant.runtimes.decoding import Decoded, plain
from remnant.runtimes.order import Order, Saved, check_linear, check_rows, repack


def intx(
    weight: Tensor, *, bits: int = 4, group_size: int = 0, asymmetric: bool = False
) -> Quantized:
    """One weight by torchao's IntxWeightOnlyConfig.

    Args:
        weight: [rows, columns].
        bits: 2 to 8.
        group_size: columns per scale; 0 for one scale per row.
        asymmetric: the range from min to max, zero included; else half-steps (amax / ((2^b - 1) /
            2)), which clip.

    Raises:
        UserError: torchao is missing.
        ValueError: bits out of range.
        Indivisible: a group that does not divide the columns.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2 to 8, not {bits}")
    check_divides(weight, group_size)
    return _taken(weight, config(bits, group_size, asymmetric))


def eight(weight: Tensor, *, kind: str = "fp8") -> Quantized:
    """One weight as torchao keeps it in 8 bits, with a scale per row.

    Args:
        weight: [rows, columns].
        kind: "fp8" (Float8WeightOnlyConfig, e4m3) or "int8-dynamic"
            (Int8DynamicActivationInt8WeightConfig, whose kernels also round activations to 8 bits;
            the dense copy does not).

    Raises:
        UserError: torchao is missing.
        ValueError: another kind; a row of zeros, which the library's 8-bit floats turn into NaN in
            silence.
    """
    if kind == "fp8" and not bool(weight.reshape(-1, weight.shape[-1]).any(-1).all()):
        raise ValueError("torchao turns a row of zeros into NaN in 8-bit floats")
    return _taken(weight, config_of_eight(kind))


def _taken(weight: Tensor, settings: Any) -> Quantized:
    """Codes, scales, zeros and decoded values of a weight that the library has quantized in
    float32.
    """
    layer = nn.Linear(weight.shape[-1], weight.shape[-2], bias=False)
    layer.weight = nn.Parameter(weight.float().reshape(-1, weight.shape[-1]).contiguous())
    _library()["quantize_"](nn.Sequential(layer), settings)
    kept: Any = layer.weight
    zero = getattr(kept, "zero_point", None)
    shown = None if zero is None or not bool(zero.any()) else zero.float().reshape(-1, 1)
    return Quantized(
        kept.qdata.view(torch.int8).view(weight.shape),
        kept.scale.float().reshape(-1, 1),
        shown,
        _decoded(kept, weight),
    )


def _decoded(kept: Any, like: Tensor) -> Tensor:
    found: Tensor = kept.dequantize().float().view(like.shape)
    return found


@torch.no_grad()
def decoded(source: str) -> Decoded:
    """A model in the library's layers, made dense.

    Raises:
        UserError: it cannot be opened, or the library is missing.
    """
    _library()
    packed = open_model(source)
    kept = {n: p for n, p in packed.named_parameters() if type(p) is not nn.Parameter}
    return Decoded(plain(packed, {n: _decoded(p, p) for n, p in kept.items()}), packed)


def config(bits: int, group_size: int, asymmetric: bool) -> object:
    """The library's own configuration of a format; raises UserError if it is missing."""
    library = _library()
    granularity = library["PerGroup"](group_size) if group_size else library["PerAxis"](0)
    mapping = library["MappingType"].ASYMMETRIC if asymmetric else library["MappingType"].SYMMETRIC
    return library["IntxWeightOnlyConfig"](
        weight_dtype=getattr(torch, f"int{bits}"), granularity=granularity, mapping_type=mapping
    )


def config_of_eight(kind: str) -> object:
    """The library's own configuration of an 8-bit format.

    Raises UserError if it is missing, ValueError for another kind.
    """
    if kind not in ("fp8", "int8-dynamic"):
        raise ValueError(f"the kind is fp8 or int8-dynamic, not {kind}")
    return _library()[kind]()


def save(order: Order, out: Path) -> Saved:
    """Write a folder that transformers opens with torchao.

    Raises:
        UserError: torchao is missing, a weight is not a linear layer's, which it would leave
            alone in silence, or groups do not divide a weight's rows.
    """
    check_linear(order.model, order.names, "torchao")
    check_rows(order, int(order.params.get("group_size", 0)), "torchao")
    own = (
        config_of_eight(order.params["kind"])
        if order.use == "torchao-8"
        else config(**order.params)
    )
    settings = TorchAoConfig(own)
    return Saved("transformers with torchao", repack(order, settings, out))


def _library() -> dict[str, Any]:
    hush()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            from torchao.quantization import (
                Float8WeightOnlyConfig,
                Int8DynamicActivationInt8WeightConfig,
                IntxWeightOnlyConfig,
                PerAxis,
                PerGroup,
                quantize_,
            )
            from torchao.quantization.quant_primitives import MappingType
    except ImportError as error:
        raise UserError(
            "This format needs torchao, which is not installed.", INTX.install
        ) from error
    return {
        "quantize_": quantize_,
        "IntxWeightOnlyConfig": IntxWeightOnlyConfig,
        "fp8": Float8WeightOnlyConfig,
        "int8-dynamic": Int8DynamicActivationInt8WeightConfig,
        "PerGroup": PerGroup,
        "PerAxis": PerAxis,
        "MappingType": MappingType,
    }
