"""From the names of loss terms to the loss of a micro-step: only what some term reads is
computed.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from remnant.errors import UserError
from remnant.functional.view import View
from remnant.methods import SIDES, loss, term_specs
from remnant.model.data import Batch, batch_order, collate
from remnant.model.reference import Reference, build
from remnant.records import UnlearnSpec
from remnant.resolve import Method


class Term(NamedTuple):
    """One resolved loss term and its weight in the sum."""

    label: str
    weight: float
    method: Method


def terms_of(spec: UnlearnSpec) -> list[Term]:
    """The resolved terms of a spec.

    Raises:
        UserError: unknown method, term or parameter.
    """
    return [Term(t.use.rsplit(":", 1)[-1], t.weight, loss(t)) for t in term_specs(spec)]


class Stream(NamedTuple):
    """The examples of one side, the seed of their order and, if some term wants it, the cached
    reference.
    """

    examples: list[list[int]]
    seed: int
    reference: Reference | None


def make_streams(
    model: PreTrainedModel,
    terms: list[Term],
    examples: dict[str, list[list[int]]],
    pad: int,
    seed: int,
) -> dict[str, Stream]:
    """The sides that the terms read, each with the reference values that they read, computed on the
    untouched model.
    """
    wanted = {name for term in terms for name in term.method.reads}
    streams = {}
    for offset, side in enumerate(SIDES):
        if not any(side in name for name in wanted):
            continue
        if not examples[side]:
            raise UserError(
                f"The {side} text is empty.", "Prepare the corpus again with text in it."
            )
        referenced = {name for name in wanted if name.startswith(f"ref_{side}")}
        reference = None
        if referenced:
            logits, layers = f"ref_{side}" in referenced, f"ref_{side}_hidden" in referenced
            reference = build(model, examples[side], pad, logits=logits, layers=layers)
        streams[side] = Stream(examples[side], 2 * seed + offset, reference)
    return streams


def make_loss(
    model: PreTrainedModel,
    terms: list[Term],
    streams: dict[str, Stream],
    batch_size: int,
    pad: int,
) -> Callable[[int], tuple[Tensor, dict[str, float]]]:
    """The function that the training loop calls with a micro-step: it gives the weighted sum of the
    terms and its parts.
    """
    functions = [(term, term.method.load()) for term in terms]
    wanted = {name for term in terms for name in term.method.reads}

    def loss_at(micro: int) -> tuple[Tensor, dict[str, float]]:
        values: dict[str, Any] = {}
        for side, stream in streams.items():
            indices = batch_order(len(stream.examples), batch_size, micro, stream.seed)
            batch = collate(
                [stream.examples[i] for i in indices], pad, next(model.parameters()).device
            )
            values |= _read(model, side, stream, indices, batch, wanted)
        parts: dict[str, float] = {}
        total = torch.zeros((), device=next(model.parameters()).device)
        for term, function in functions:
            value = function(
                *(values[name] for name in term.method.reads), **term.method.params
            ).mean()
            total = total + term.weight * value
            parts[term.label] = value.item()
        if "forget" in values:
            parts["forget_nll"] = -values["forget"].mean_logp().mean().item()
        return total, parts

    return loss_at


def reads_forget_only(term: Term) -> bool:
    """Whether a term looks at forget text and at nothing else."""
    return all("forget" in name for name in term.method.reads)


def forget_losses(
    model: PreTrainedModel, terms: list[Term], streams: dict[str, Stream], batch_size: int, pad: int
) -> Iterator[Tensor]:
    """The forget loss over the whole forget set in parts whose sum is its mean per text: every text
    once, in order.
    """
    forget = [term for term in terms if reads_forget_only(term)]
    if not forget:
        raise UserError(
            "SURE needs a term that reads forget text only.", "Give such a term beside the others."
        )
    wanted = {name for term in forget for name in term.method.reads}
    stream = streams["forget"]
    total = len(stream.examples)
    for start in range(0, total, batch_size):
        indices = list(range(start, min(start + batch_size, total)))
        batch = collate([stream.examples[i] for i in indices], pad, next(model.parameters()).device)
        values = _read(model, "forget", stream, indices, batch, wanted)
        losses = [
            t.weight
            * t.method.load()(*(values[n] for n in t.method.reads), **t.method.params).sum()
            for t in forget
        ]
        yield torch.stack(losses).sum() / total


def _read(
    model: PreTrainedModel,
    side: str,
    stream: Stream,
    indices: list[int],
    batch: Batch,
    wanted: set[str],
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if {side, f"{side}_hidden"} & wanted:
        out = model(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            output_hidden_states=f"{side}_hidden" in wanted,
        )
        found[side] = View(out.logits, batch.labels)
        if f"{side}_hidden" in wanted:
            found[f"{side}_hidden"] = torch.stack(out.hidden_states)
    if stream.reference is not None:
        if f"ref_{side}_logp" in wanted:
            found[f"ref_{side}_logp"] = stream.reference.seq_logp[indices].to(batch.ids.device)
        if f"ref_{side}" in wanted:
            found[f"ref_{side}"] = stream.reference.view(indices, batch)
        if f"ref_{side}_hidden" in wanted:
            found[f"ref_{side}_hidden"] = stream.reference.hidden(indices, batch)
    return found
