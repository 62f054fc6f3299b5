"""Linear layers in NF4, by bitsandbytes, which stand still while adapters are trained."""

import copy
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from remnant.errors import UserError
from remnant.formats.bitsandbytes import FOUR_BIT, OPENED_BLOCK
from remnant.model.heap import give_back

# Of a number: half a byte, and of every block a scale in float32.
BYTES = 0.5 + 4 / OPENED_BLOCK


def bitsandbytes() -> ModuleType:
    """The library itself, which is an extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        import bitsandbytes as library
    except ImportError as error:
        raise UserError(
            "This needs bitsandbytes, which is not installed.", FOUR_BIT.install
        ) from error
    found: ModuleType = library
    return found


def settings(dtype: torch.dtype) -> BitsAndBytesConfig:
    """What transformers is told to pack every linear layer but the output head while it opens a
    model, one after the other.

    Args:
        dtype: in which packed layers compute.

    Raises:
        UserError: bitsandbytes is missing.

    Source: Dettmers et al. 2023 (arXiv 2305.14314), blocks of 64. *Differs from the source in*:
    the blocks' scales keep float32.
    """
    bitsandbytes()
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def packed(model: nn.Module) -> dict[str, nn.Linear]:
    """The packed layers of a model by their names, in its order."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and is_packed(module.weight)
    }


def check_packed(model: PreTrainedModel, source: str) -> None:
    """See that a model was packed, and keep its layers from being packed once more: on some
    processors a pass without gradients does so, in another arrangement that no gradient crosses.

    Raises:
        UserError: layers that keep [in, out], which come out of the library as others; rows that
            it decodes wrongly.
    """
    config = copy.deepcopy(model.config)
    del config.quantization_config
    with torch.device("meta"):
        plain = type(model)(config)
    if any(isinstance(module, Conv1D) for module in plain.modules()):
        raise UserError(
            f"The layers of {source} keep their weights by columns, and packed ones do not.",
            "Leave base out of train.lora.",
        )
    for name, layer in packed(model).items():
        if layer.in_features % OPENED_BLOCK:
            raise UserError(
                f"The rows of {name} have {layer.in_features} numbers, no multiple of "
                f"{OPENED_BLOCK}, and bitsandbytes decodes such rows wrongly.",
                "Leave base out of train.lora.",
            )
        setattr(layer, "support_avx512bf16_for_cpu", False)  # noqa: B010


def let_files_go(model: nn.Module) -> None:
    """Copy what is not packed: as long as one weight is a view of a file, all of that is mapped."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not is_packed(tensor):
            tensor.data = tensor.data.clone()
    give_back()


def values(model: nn.Module) -> Iterator[Tensor]:
    """The numbers of every weight of a model, packed ones decoded, one at a time."""
    return (decoded(p) if is_packed(p) else p.data for p in model.parameters())


@torch.no_grad()
def decoded(weight: Any) -> Tensor:
    """The numbers [out, in] of a packed weight, in the dtype in which its layer computes."""
    library: Any = bitsandbytes()
    found: Tensor = library.functional.dequantize_4bit(weight.data, weight.quant_state)
    return found


def dense(layer: nn.Linear) -> nn.Linear:
    """The plain layer that a packed one stands for, its numbers decoded; the packed one is left
    without its own, which know their layer and would stay as long as the two know each other.
    """
    weight = decoded(layer.weight)
    del layer.weight
    # Nothing is drawn for numbers that are replaced.
    found = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    found.weight = nn.Parameter(weight, requires_grad=False)
    found.bias = layer.bias
    return found


def unpack(model: PreTrainedModel) -> None:
    """Make a model a plain one in place, one layer after the other."""
    layers = packed(model)
    for name, layer in layers.items():
        model.set_submodule(name, dense(layer))
    for holder, name in (
        (model.config, "quantization_config"),
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model, "is_quantized"),
        (model, "is_loaded_in_4bit"),
        (model, "is_4bit_serializable"),
    ):
        if name in vars(holder):
            delattr(holder, name)


def is_packed(weight: object) -> bool:
    """Whether a weight holds codes of bitsandbytes."""
    return type(weight).__name__ == "Params4bit"
