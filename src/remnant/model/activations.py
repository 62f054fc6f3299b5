"""What goes into the layers of a model, summed over text."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from remnant.errors import UserError


@torch.no_grad()
def input_norms(
    model: PreTrainedModel, names: Iterable[str], batches: Iterable[Tensor]
) -> Mapping[str, Tensor]:
    """How large every input of some layers is over text: the norm over all tokens.

    Args:
        model: none of its weights is changed.
        names: of the layers' weights.
        batches: token ids, each [B, T] without padding.

    Returns:
        For each name float32 [columns], on the model's device.

    Raises:
        UserError: a layer is no module with a single input, or no text comes to it.
    """
    found: dict[str, Tensor] = {}
    layers = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
    hooks = [
        layer.register_forward_pre_hook(partial(_add, found, name))
        for name, layer in layers.items()
    ]
    try:
        for ids in batches:
            model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    for name in layers:
        if name not in found or not bool(found[name].any()):
            raise UserError(
                f"No text comes to the weight {name}, so nothing is known of its inputs.",
                "Leave it out with skip, or give more calibration text.",
            )
    return {name: total.sqrt().float() for name, total in found.items()}


def _add(found: dict[str, Tensor], name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Add the squares of one input [..., columns]."""
    squares = inputs[0].double().square().flatten(0, -2).sum(0)
    found[name] = found[name] + squares if name in found else squares
