"""Adapters beside a model, by peft: opened whole, and merged into the weights."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from remnant.adapterfiles import WEIGHTS
from remnant.errors import UserError, first_line, some
from remnant.model.whole import check_finite

INSTALL = "Install it in Remnant's folder with: pip install -e '.[lora]'"
OTHER = "Give the adapter of this model."


def peft_library() -> ModuleType:
    """The library itself, which is an extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise UserError("Adapters need peft, which is not installed.", INSTALL) from error
    library: ModuleType = peft
    return library


class Merged(NamedTuple):
    """A model with an adapter in its weights, the names of those that changed, and the norm of the
    update over the norm of these weights before.
    """

    model: PreTrainedModel
    changed: tuple[str, ...]
    relative_update: float


def merge(model: PreTrainedModel, folder: Path) -> Merged:
    """Add an adapter's low-rank update to the weights, in place and in the model's dtype.

    Args:
        model: the model that the adapter is of.
        folder: written by peft's save_pretrained.

    Raises:
        UserError: peft is missing, the adapter is damaged, not finite, or of another model, or it
            is of a kind that cannot be merged.

    Source: Hu et al. 2021 (arXiv 2106.09685), eq. 3, as in peft.
    """
    peft = peft_library()
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"The adapter {folder} has no {WEIGHTS}.", "Save it again with peft's save_pretrained."
        )
    try:
        # Names and shapes that do not fit are told below, by name.
        opened = peft.PeftModel.from_pretrained(model, str(folder), low_cpu_mem_usage=False)
    except (ValueError, OSError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"The adapter {folder} cannot be opened: {first_line(error)}.", OTHER
        ) from (error)
    if not hasattr(opened.base_model, "merge_and_unload"):
        raise UserError(
            f"The adapter {folder} ({opened.active_peft_config.peft_type}) cannot be merged.",
            "Only adapters of weights can, as LoRA's.",
        )
    _check_opened(opened, folder)
    layer = peft.tuners.tuners_utils.BaseTunerLayer
    wrapped = {n: m for n, m in model.named_modules() if isinstance(m, layer)}
    before = {f"{n}.weight": m.get_base_layer().weight.detach().clone() for n, m in wrapped.items()}
    merged: PreTrainedModel = opened.merge_and_unload()
    check_finite(merged, f"the model merged with {folder}")
    return Merged(merged, *_difference(dict(merged.named_parameters()), before))


def _difference(
    after: Mapping[str, Tensor], before: Mapping[str, Tensor]
) -> tuple[tuple[str, ...], float]:
    changed, update, whole = [], 0.0, 0.0
    for name, weight in before.items():
        delta = after[name].detach() - weight
        if bool(delta.any()):
            changed.append(name)
            update += float(delta.square().sum())
            whole += float(weight.square().sum())
    return tuple(changed), (update / whole) ** 0.5 if whole else 0.0


def _check_opened(opened: Any, folder: Path) -> None:
    """Every tensor of the file is in the model, and every adapter of the model is in the file."""
    stored: dict[str, Tensor] = load_file(folder / WEIGHTS)
    held = peft_library().get_peft_model_state_dict(opened, save_embedding_layers=False)
    missing, surplus = sorted(set(held) - set(stored)), sorted(set(stored) - set(held))
    if missing or surplus:
        what = f"lacks {some(missing)}" if missing else f"holds {some(surplus)}"
        raise UserError(f"The adapter {folder} {what}, other than its model.", OTHER)
    for name, value in stored.items():
        if not torch.equal(held[name].cpu().float(), value.float()):
            raise UserError(f"The weight {name} of the adapter {folder} was not opened.", OTHER)
