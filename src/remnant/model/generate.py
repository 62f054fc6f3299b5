"""Greedy continuation in batches, equal to one prompt at a time, with a shared prefix computed once."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.model.load import context_length

CHECK_EVERY = 4
Pick = Callable[[Tensor], Tensor]


def greedy_pick(logits: Tensor) -> Tensor:
    """[B] the most probable tokens of [B, V]."""
    return logits.argmax(-1)


def sampler(temperature: float, seed: int, where: torch.device) -> Pick:
    """A picker that samples at a temperature with its own seed."""
    generator = torch.Generator(device=where).manual_seed(seed)
    return lambda logits: torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=generator)[:, 0]


@torch.no_grad()
def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new: int,
    prefix: str = "",
    stops: Sequence[str] = (),
    batch_size: int = 32,
    pick: Pick = greedy_pick,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """The text that the model writes after each prompt, special tokens left out, in the order of the prompts.

    Args:
        model: any causal model of transformers.
        tokenizer: its tokenizer.
        prompts: continued one by one in result, in batches of similar length in fact.
        max_new: at most so many tokens; a sequence also ends at the end token.
        prefix: text before every prompt; its key-value cache is computed once where that changes nothing.
        stops: a sequence is not continued once its text contains one of these. The text is not cut.
        batch_size: prompts per batch.
        pick: [B, V] logits -> [B] next tokens.
        report: called with (prompts done, prompts in all).

    Raises:
        UserError: a prompt with its continuation is longer than the model's context.
    """
    ids = [list(tokenizer(prefix + p)["input_ids"]) for p in prompts]
    longest = max((len(i) for i in ids), default=0) + max_new
    if longest > context_length(model):
        raise UserError(
            f"A prompt of {longest - max_new} tokens and {max_new} new ones exceed the model's context of {context_length(model)}.",
            "Prepare the corpus with fewer prompt tokens or show fewer examples.",
        )
    shared = _shared(ids) if prefix and len(ids) > 1 and not _slides(model, longest) else 0
    cache = _prefix_cache(model, ids[0][:shared]) if shared else None
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    texts = [""] * len(ids)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        rows = _batch(model, tokenizer, [ids[i] for i in chosen], shared, cache, max_new, stops, pick)
        for i, row in zip(chosen, rows, strict=True):
            texts[i] = row
        report(start + len(chosen), len(order))
    return texts


def _shared(ids: list[list[int]]) -> int:
    """Length of the longest common prefix, leaving at least one token to each prompt."""
    shortest = min(len(i) for i in ids) - 1
    first = ids[0]
    return next((n for n in range(shortest) if any(i[n] != first[n] for i in ids)), shortest)


def _slides(model: PreTrainedModel, length: int) -> bool:
    """Whether attention looks back less far than ``length``; then padding between prefix and prompt would shift its window."""
    config: Any = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or length
    return int(window) < length


def _prefix_cache(model: PreTrainedModel, ids: list[int]) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True)
    return cache


def _batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[list[int]],
    shared: int,
    prefix: DynamicCache | None,
    max_new: int,
    stops: Sequence[str],
    pick: Pick,
) -> list[str]:
    cache = copy.deepcopy(prefix) if prefix is not None else DynamicCache(config=model.config)
    if prefix is not None:
        cache.batch_repeat_interleave(len(ids))
    tails = [i[shared:] for i in ids]
    width = max(len(t) for t in tails)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    step_ids = torch.tensor([[pad] * (width - len(t)) + t for t in tails], device=model.device)
    mask = torch.tensor([[1] * shared + [0] * (width - len(t)) + [1] * len(t) for t in tails], device=model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, shared:]
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else -1
    done = torch.zeros(len(ids), dtype=torch.bool, device=model.device)
    written: list[Tensor] = []
    for step in range(max_new):
        out = model(input_ids=step_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        token = pick(out.logits[:, -1]).masked_fill(done, end if end >= 0 else pad)
        written.append(token)
        done = done | (token == end)
        if stops and step % CHECK_EVERY == CHECK_EVERY - 1:
            done = done | torch.tensor([any(s in t for s in stops) for t in _decode(tokenizer, written, end)], device=done.device)
        if bool(done.all()):
            break
        step_ids, positions = token[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(ids), 1)], -1)
    return _decode(tokenizer, written, end)


def _decode(tokenizer: PreTrainedTokenizerBase, written: list[Tensor], end: int) -> list[str]:
    rows = torch.stack(written, -1).tolist()
    cut = [row[: row.index(end)] if end in row else row for row in rows]
    return [str(t) for t in tokenizer.batch_decode(cut, skip_special_tokens=True)]
