"""Checks of a model that is open, on a few tokens and on its own files, before it is asked
anything.
"""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.evaluate.ends import end_ids, named_ends
from remnant.model.data import frame
from remnant.model.whole import first_not_finite, ids_outside
from remnant.records import Check

# Tokens of the trial text.
LENGTH = 8
# Two passes over the same tokens differ by rounding; by so much of the largest logit where numbers
# have few bits.
ROUNDING = 1e-2


def model_checks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Check]:
    """All checks of an opened model and its tokenizer, in the order in which they are told."""
    return [
        weights_check(model),
        logits_check(model),
        ids_check(model, tokenizer),
        special_tokens_check(tokenizer),
        end_tokens_check(model, tokenizer),
    ]


def weights_check(model: PreTrainedModel) -> Check:
    """Whether every weight is finite.

    That all of them were in the files is seen when a model is opened, which fails otherwise.
    """
    count = sum(1 for _ in model.parameters())
    name = first_not_finite((n, p.data) for n, p in model.named_parameters())
    said = (
        f"The weight {name} holds values that are not finite."
        if name
        else f"All {count} weights are there and finite."
    )
    return Check(
        name="weights", ok=name is None, said=said, count=int(name is not None), total=count
    )


@torch.no_grad()
def logits_check(model: PreTrainedModel) -> Check:
    """Whether a few tokens are answered with numbers, which do not depend on the tokens behind
    them.
    """
    size = int(model.config.get_text_config().vocab_size)
    ids = (torch.arange(LENGTH, device=model.device) % size)[None]
    other = ids.clone()
    other[0, -1] = (ids[0, -1] + 1) % size
    first, second = (model(input_ids=i).logits.float() for i in (ids, other))
    if not bool(first.amax(-1).isfinite().all()):
        return Check(
            name="logits",
            ok=False,
            said="the model's logits are not finite",
            count=LENGTH,
            total=LENGTH,
        )
    shown = torch.where(first.isfinite(), first, torch.zeros_like(first))[:, :-1]
    again = torch.where(second.isfinite(), second, torch.zeros_like(second))[:, :-1]
    if (
        float((shown - again).abs().max())
        > ROUNDING * float(shown.abs().max()) + torch.finfo(torch.float32).tiny
    ):
        said = (
            "The model looks at the tokens that it is to predict: it is an encoder, or its mask "
            "is not causal. Give a causal model."
        )
        return Check(name="logits", ok=False, said=said)
    return Check(
        name="logits",
        ok=True,
        said="The logits of a few tokens are finite and depend on nothing that follows.",
    )


def ids_check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Check:
    """Whether every id of the tokenizer has an embedding."""
    rows, outside = ids_outside(model, tokenizer)
    known = len(tokenizer.get_vocab())
    said = f"The tokenizer's {known} ids lie within the model's {rows} embeddings."
    if outside:
        said = (
            f"{len(outside)} of the tokenizer's {known} ids lie outside the model's {rows} "
            "embeddings."
        )
    return Check(name="ids", ok=not outside, said=said, count=len(outside), total=known)


def special_tokens_check(tokenizer: PreTrainedTokenizerBase) -> Check:
    """What the tokenizer puts around a text.

    That before it stays, that behind it is taken off everywhere.
    """
    around = frame(tokenizer)
    before, behind = (" ".join(map(str, tokenizer.convert_ids_to_tokens(ids))) for ids in around)
    said = f"Every text begins with {before}" if before else "No token is put before a text"
    said += (
        f"; {behind}, which the tokenizer puts behind it, is taken off."
        if behind
        else "; none is put behind it."
    )
    return Check(name="special tokens", ok=True, said=said)


def end_tokens_check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Check:
    """Which tokens end an answer, and which that the configuration names do not, being ordinary
    words of the tokenizer.
    """
    configs = (model.config, model.generation_config)
    ends = sorted(end_ids(tokenizer, *configs))
    words = [i for i in named_ends(configs) if i not in ends]
    named = ", ".join(str(tokenizer.convert_ids_to_tokens(i)) for i in ends)
    said = (
        f"An answer ends at {named}."
        if ends
        else "No token ends an answer; it ends at its stops or its length."
    )
    if words:
        said += (
            f" The configuration names {', '.join(map(str, words))} too, no special token of this "
            "tokenizer, at which none ends."
        )
    return Check(name="end tokens", ok=True, said=said, count=len(ends))
