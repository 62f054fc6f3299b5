"""The output head of a model by itself, so that logits can be made for some positions only."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

TOLERANCE = 1e-5


def output_layer(model: PreTrainedModel) -> nn.Module:
    """The linear layer that ends in the vocabulary."""
    layer = model.get_output_embeddings()
    assert isinstance(layer, nn.Module)
    return layer


def head_of(
    model: PreTrainedModel, hidden: Tensor, logits: Tensor, *, frozen: bool = False
) -> Callable[[Tensor], Tensor] | None:
    """The map from the last hidden states [..., H] to logits [..., V]: the output layer,
    soft-capped where the model does that.

    Args:
        model: any causal model.
        hidden: what the output layer was given for some text.
        logits: what the model returned for it.
        frozen: take a copy of the weights, which later steps do not change.

    Returns:
        None where head(hidden) is not what the model returns.
    """
    layer = output_layer(model)
    assert isinstance(layer.weight, Tensor)
    weight = layer.weight.detach()
    bias = layer.bias.detach() if isinstance(layer.bias, Tensor) else None
    if frozen:
        weight, bias = weight.clone(), bias.clone() if bias is not None else None
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)

    def head(states: Tensor) -> Tensor:
        plain = nn.functional.linear(states, weight, bias)
        return torch.tanh(plain / cap) * cap if cap else plain

    exact = torch.allclose(head(hidden).float(), logits.float(), rtol=0, atol=TOLERANCE)
    return head if exact else None
