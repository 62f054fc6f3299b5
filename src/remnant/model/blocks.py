"""One pass of a model that keeps what some of its blocks give, and makes logits only if asked."""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PreTrainedModel

from remnant.errors import UserError
from remnant.functional.pieces import Head, Unmade, is_large
from remnant.functional.view import View
from remnant.model.data import Batch
from remnant.model.head import output_layer
from remnant.model.heap import give_back
from remnant.ranks import count


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The blocks of a model in order, as its configuration counts them.

    Raises:
        UserError: the model holds no list of as many modules.
    """
    count = model.config.get_text_config().num_hidden_layers
    # Lists inside a block (experts) may be as long, and come later.
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UserError(
        f"The blocks of this {model.config.model_type} model cannot be told.",
        "Use a loss that reads no hidden states.",
    )


@contextmanager
def recomputed(model: PreTrainedModel) -> Iterator[None]:
    """Passes with gradients in here keep the inputs of the blocks alone, and compute the inside of
    each block again in the backward pass: the same bits, in less memory and a third more time.

    transformers' own switch does nothing in evaluation mode, in which models are trained here.

    Raises:
        UserError: as ``blocks``.
    """
    found = list(blocks(model))

    def again(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **given: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*args, **given)
            # A cache would be filled twice.
            plain = [None if isinstance(value, Cache) else value for value in args]
            named = {n: None if isinstance(v, Cache) else v for n, v in given.items()}
            return checkpoint(partial(passed, **named), *plain, use_reentrant=False)

        def passed(*args: Any, **given: Any) -> Any:
            # What the block before has left behind is not kept beside what this one makes.
            give_back()
            return forward(*args, **given)

        return run

    for block in found:
        block.__dict__["forward"] = again(block.forward)
    try:
        yield
    finally:
        for block in found:
            del block.__dict__["forward"]


@contextmanager
def up_to(model: PreTrainedModel, depth: float) -> Iterator[None]:
    """Passes in here end behind a part of the blocks: what it gives goes through the final norm and
    the head as if it came from the last one, so that a pass reads what the model would say there.

    Args:
        model: any causal model.
        depth: the part, 0 to 1, rounded up to whole blocks; at least one, and the last is never in.

    Raises:
        UserError: as ``blocks``, or the model has a single one.

    Source: logit lens (nostalgebraist 2020). Differs from code that applies the head without the
    final norm.
    """
    found = list(blocks(model))
    if len(found) < 2:
        raise UserError("The model has a single block, so nothing lies before its last.")
    kept = min(max(1, math.ceil(depth * len(found))), len(found) - 1)
    tuples: list[bool] = []
    hook = found[kept - 1].register_forward_hook(
        lambda module, args, output: tuples.append(isinstance(output, tuple))
    )

    def passing(*args: Any, **given: Any) -> Any:
        states = args[0] if args else given["hidden_states"]
        return (states,) if tuples[-1] else states

    for block in found[kept:]:
        block.__dict__["forward"] = passing
    try:
        yield
    finally:
        hook.remove()
        for block in found[kept:]:
            del block.__dict__["forward"]


class _Enough(Exception):
    """The deepest module that was asked for has answered."""


def said(model: PreTrainedModel, batch: Batch, head: Head | None = None) -> View:
    """What a model says of a batch (``head``: as in ``forward``)."""
    given, _ = forward(model, batch, head=head)
    assert given is not None
    return View(given, batch.labels)


def forward(
    model: PreTrainedModel,
    batch: Batch,
    layers: Collection[int] = (),
    *,
    logits: bool = True,
    head: Head | None = None,
) -> tuple[Tensor | Unmade | None, dict[int, Tensor]]:
    """The logits [B, T, V] of a batch, and what some blocks give, each [B, T, H].

    Args:
        model: any causal model.
        batch: padded on the right.
        layers: blocks whose output is kept, the first being 0. Block l is entry l + 1 of
            transformers' ``hidden_states``, but for the last, which there stands behind the final
            norm.
        logits: if not, the pass ends behind the deepest of the blocks, and None stands for the
            logits.
        head: the model's own (``trained_head``), where it may be applied by itself: a pass whose
            logits are many ends before it.

    Raises:
        UserError: the model has no such block.
    """
    kept: dict[int, Tensor] = {}
    last: list[Tensor] = []
    apart = head if head and is_large(batch.ids.numel(), len(head.weight)) else None

    def keeper(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            kept[layer] = output[0] if isinstance(output, tuple) else output
            # A block in shards is let go of behind its whole pass only.
            if not logits and layer == max(layers) and count() == 1:
                raise _Enough

        return keep

    def before_head(module: nn.Module, args: Any) -> None:
        last.append(args[0])
        raise _Enough

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(_block(model, layer).register_forward_hook(keeper(layer)))
        if apart:
            hooks.enter_context(output_layer(model).register_forward_pre_hook(before_head))
        hooks.enter_context(suppress(_Enough))
        out = model(input_ids=batch.ids, attention_mask=batch.mask)
        return out.logits if logits else None, kept
    if torch.is_grad_enabled():
        # Before pieces of logits are made, which are the peak where few weights move.
        give_back()
    return Unmade(last[-1], apart) if apart and last else None, kept


def _block(model: PreTrainedModel, layer: int) -> nn.Module:
    found = blocks(model)
    if layer >= len(found):
        raise UserError(
            f"The model has {len(found)} blocks, so there is no layer {layer}.",
            f"Layers are counted from 0 to {len(found) - 1}.",
        )
    return found[layer]
