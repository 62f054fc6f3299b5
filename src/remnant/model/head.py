"""The output head of a model by itself, so that logits can be made for some positions only."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from remnant.functional.pieces import Head
from remnant.ranks import count, whole

TOLERANCE = 1e-5
# Tokens on which a head is tried out.
TRIED = 4


def output_layer(model: PreTrainedModel) -> nn.Module:
    """The linear layer that ends in the vocabulary."""
    layer = model.get_output_embeddings()
    assert isinstance(layer, nn.Module)
    return layer


def head_of(model: PreTrainedModel, hidden: Tensor, logits: Tensor) -> Head | None:
    """The map from the last hidden states [..., H] to logits [..., V]: the output layer,
    soft-capped where the model does that.

    Args:
        model: any causal model.
        hidden: what the output layer was given for some text.
        logits: what the model returned for it.

    Returns:
        None where head(hidden) is not what the model returns.
    """
    layer = output_layer(model)
    assert isinstance(layer.weight, Tensor)
    bias = layer.bias if isinstance(layer.bias, Tensor) else None
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    head = Head(whole(layer.weight), None if bias is None else whole(bias), cap)
    with torch.no_grad():
        found = head(hidden).float()
    return head if torch.allclose(found, logits.float(), rtol=0, atol=TOLERANCE) else None


@torch.no_grad()
def trained_head(model: PreTrainedModel) -> Head | None:
    """The output head with gradients for its weights, tried out on a few tokens; None where the
    model's logits come of more than one linear layer (adapters, scaled logits), and where it is in
    shards.
    """
    layer = model.get_output_embeddings()
    if type(layer) is not nn.Linear or count() > 1:
        return None
    given: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    with hook:
        logits = model(input_ids=torch.arange(TRIED, device=model.device)[None]).logits
    return head_of(model, given[-1], logits) if given else None
