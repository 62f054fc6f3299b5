"""NF4, FP4 and LLM.int8 by bitsandbytes itself, as dense copies with the library's own codes."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from remnant.errors import UserError
from remnant.formats.bitsandbytes import OPENED_BLOCK
from remnant.functional.quantized import Indivisible, Quantized
from remnant.model.load import open_model
from remnant.model.nf4 import bitsandbytes
from remnant.runtimes.decoding import Decoded, plain
from remnant.runtimes.order import Order, Saved, check_linear, check_rows, repack


def four_bit(
    weight: Tensor, *, levels: str = "nf4", block: int = 64, double: bool = False
) -> Quantized:
    """One weight in bitsandbytes' 4-bit format.

    Args:
        weight: [rows, columns].
        levels: "nf4" or "fp4".
        block: entries per scale, 32 to 4096, a power of two that divides the columns.
        double: quantize the scales to 8 bits too (blocks of 256), as QLoRA does.

    Raises:
        UserError: bitsandbytes is missing.
        ValueError: levels it does not have.
        Indivisible: columns that are no multiple of the block, which the library decodes wrongly
            on some CPUs.

    Source: Dettmers et al. 2023 (arXiv 2305.14314).
    """
    if levels not in ("nf4", "fp4"):
        raise ValueError(f"the levels are nf4 or fp4, not {levels}")
    if weight.shape[-1] % block:
        raise Indivisible(
            f"rows of {weight.shape[-1]} are no multiple of the block {block}, and "
            "bitsandbytes decodes such rows wrongly"
        )
    library = _library()
    plain = weight.float().contiguous()
    packed, state = library.quantize_4bit(
        plain, blocksize=block, quant_type=levels, compress_statistics=double
    )
    decoded = library.dequantize_4bit(packed, state)
    pairs = packed.flatten()
    codes = torch.stack([pairs >> 4, pairs & 15], -1).flatten()[: weight.numel()]
    scale = (
        library.dequantize_blockwise(state.absmax, state.state2) + state.offset
        if double
        else state.absmax
    )
    return Quantized(
        codes.to(torch.int8).view(weight.shape),
        scale.float().reshape(-1, 1),
        None,
        decoded.float().view(weight.shape),
    )


def int8(weight: Tensor) -> Quantized:
    """One weight as LLM.int8 stores it: a scale per row from its largest magnitude.

    Outliers are a matter of activations, not of weights.

    Raises:
        UserError: bitsandbytes is missing.

    Source: Dettmers et al. 2022 (arXiv 2208.07339). The library rounds weights to float16 first.
    """
    codes, largest, _ = _library().int8_vectorwise_quant(
        weight.half().reshape(-1, weight.shape[-1]).contiguous()
    )
    scale = largest.float().view(-1, 1) / 127
    return Quantized(
        codes.view(weight.shape), scale, None, (codes.float() * scale).view(weight.shape)
    )


@torch.no_grad()
def decoded(source: str) -> Decoded:
    """A model in the library's 4-bit or 8-bit layers, made dense.

    Raises:
        UserError: it cannot be opened, or the library is missing.
    """
    library, packed = _library(), open_model(source)
    weights: dict[str, Tensor] = {}
    for name, parameter in packed.named_parameters():
        kept: Any = parameter
        if type(parameter).__name__ == "Params4bit":
            weights[name] = library.dequantize_4bit(kept.data, kept.quant_state).float()
        elif type(parameter).__name__ == "Int8Params":
            scale = packed.get_submodule(name.rpartition(".")[0]).state_dict()["SCB"]
            weights[name] = kept.data.float() * (scale.float()[:, None] / 127)
    return Decoded(plain(packed, weights), packed)


def save(order: Order, out: Path) -> Saved:
    """Write a folder that transformers opens with bitsandbytes.

    Raises:
        UserError: bitsandbytes is missing; a weight of no linear layer, which it would leave alone
            in silence; a block other than 64, which transformers cannot ask for; rows that are no
            multiple of it.
    """
    _library()
    four = order.use == "bnb-4bit"
    if four and order.params["block"] != OPENED_BLOCK:
        raise UserError(
            f"transformers opens blocks of {OPENED_BLOCK} only, not {order.params['block']}.",
            "Leave the block out.",
        )
    check_linear(order.model, order.names, "bitsandbytes", (nn.Linear, Conv1D))
    if four:
        check_rows(order, OPENED_BLOCK, "bitsandbytes")
    config = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=order.params["levels"],
            bnb_4bit_use_double_quant=order.params["double"],
            bnb_4bit_compute_dtype=torch.float32,
        )
        if four
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    return Saved("transformers with bitsandbytes", repack(order, config, out))


def _library() -> Any:
    library: Any = bitsandbytes()
    return library.functional
