"""What goes into the layers of a model, summed over text."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from remnant.errors import UserError


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
    names = list(names)
    found = summed(model, names, batches, _squares)
    for name in names:
        if name not in found or not bool(found[name].any()):
            raise UserError(
                f"No text comes to the weight {name}, so nothing is known of its inputs.",
                "Leave it out with skip, or give more calibration text.",
            )
    return {name: total.sqrt().float() for name, total in found.items()}


def _squares(inputs: Tensor) -> Tensor:
    """[tokens, columns] -> [columns]."""
    return inputs.square().sum(0)


@torch.no_grad()
def summed(
    model: PreTrainedModel,
    names: Iterable[str],
    batches: Iterable[Tensor],
    of: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Something of what goes into some layers, summed over text; nothing of a layer to which no
    text comes.

    Args:
        model: none of its weights is changed.
        names: of the layers' weights.
        batches: token ids, each [B, T] without padding.
        of: from the inputs of one pass, float64 [tokens, columns].
    """
    found: dict[str, Tensor] = {}

    def add(name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        part = of(inputs[0].double().flatten(0, -2))
        found[name] = found[name] + part if name in found else part

    layers = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
    hooks = [layer.register_forward_pre_hook(partial(add, name)) for name, layer in layers.items()]
    try:
        for ids in batches:
            model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found
