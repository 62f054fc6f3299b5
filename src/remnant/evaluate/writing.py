"""Continuations of many prompts side by side, equal to one prompt at a time."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from remnant.evaluate.ends import before_end
from remnant.evaluate.prefix import beside, copied
from remnant.evaluate.requests import Refused, Writing, not_finite

CHECK_EVERY = 4


@torch.no_grad()
def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[Sequence[int]],
    asked: Sequence[Writing],
    ends: frozenset[int],
    shared: int = 0,
    prefix: DynamicCache | None = None,
    once: bool = False,
) -> list[str | Refused]:
    """What the model writes after each prompt, special tokens left out; refused where its logits are not finite.

    Args:
        model: any causal model.
        tokenizer: its tokenizer.
        ids: the prompts as tokens.
        asked: how each is to be continued; rows that are done leave the batch.
        ends: the ids of tokens at which an answer ends (``end_ids``).
        shared: how many tokens all prompts begin with that are in ``prefix``.
        prefix: the cache of these tokens.
        once: the model can keep the prefix once for all rows (``can_be_beside``).
    """
    tails = [list(i[shared:]) for i in ids]
    width, most = max(len(t) for t in tails), max(w.max_new for w in asked)
    if once and prefix and shared > width:
        with beside(model, prefix, len(ids), width + most) as cache:
            return _continue(model, tokenizer, tails, asked, ends, shared, cache)
    return _continue(model, tokenizer, tails, asked, ends, shared, copied(model, prefix, len(ids), shared + width + most))


def _continue(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tails: list[list[int]],
    asked: Sequence[Writing],
    ends: frozenset[int],
    shared: int,
    cache: DynamicCache,
) -> list[str | Refused]:
    """Write behind what a cache holds and each row's own tail."""
    width = max(len(t) for t in tails)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    step_ids = torch.tensor([[pad] * (width - len(t)) + t for t in tails], device=model.device)
    mask = torch.tensor([[1] * shared + [0] * (width - len(t)) + [1] * len(t) for t in tails], device=model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, shared:]
    chances = {i: _chances(w) for i, w in enumerate(asked) if w.temperature > 0}
    written: list[list[int]] = [[] for _ in asked]
    rows = list(range(len(asked)))
    open_, broken = set(rows), set[int]()
    for step in range(max(w.max_new for w in asked)):
        out = model(
            input_ids=step_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        tokens, sound = _pick(out.logits[:, -1], rows, asked, chances, step)
        for row, token, is_sound in zip(rows, tokens.tolist(), sound.tolist(), strict=True):
            if row in open_:
                written[row].append(token)
                broken |= set() if is_sound else {row}
        open_ -= {row for row in open_ if row in broken or _is_done(tokenizer, written[row], asked[row], ends)}
        if not open_:
            break
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], -1)
        step_ids, positions = tokens[:, None], positions[:, -1:] + 1
        if 2 * len(open_) <= len(rows):
            kept = torch.tensor([i for i, row in enumerate(rows) if row in open_], device=model.device)
            rows = [row for row in rows if row in open_]
            cache.batch_select_indices(kept)
            mask, step_ids, positions = mask[kept], step_ids[kept], positions[kept]
    return [not_finite() if row in broken else _text(tokenizer, tokens, ends) for row, tokens in enumerate(written)]


def _pick(logits: Tensor, rows: list[int], asked: Sequence[Writing], chances: dict[int, Tensor], step: int) -> tuple[Tensor, Tensor]:
    """[B] the next tokens of [B, V] and whether each row's logits are finite (minus infinity is allowed).

    A token is the most probable one, or the one where the cumulated probabilities pass the row's own random number.
    """
    tokens = logits.argmax(-1)
    # What is no number counts as the largest, so one look at the largest tells of all.
    sound = logits.gather(-1, tokens[:, None])[:, 0].isfinite()
    sampled = [place for place, row in enumerate(rows) if row in chances and step < asked[row].max_new]
    if sampled:
        heat = torch.tensor([asked[rows[p]].temperature for p in sampled], device=logits.device)
        passed = (logits[sampled].float() / heat[:, None]).softmax(-1).cumsum(-1)
        drawn = torch.stack([chances[rows[p]][step] for p in sampled]).to(logits.device)
        tokens[sampled] = (passed < (drawn * passed[:, -1])[:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)
    return tokens, sound


def _chances(asked: Writing) -> Tensor:
    """[max_new] random numbers that depend on prompt and seed alone, not on what stands beside them."""
    digest = hashlib.sha256(repr((asked.context, asked.prompt, asked.seed)).encode()).digest()
    return torch.rand(asked.max_new, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))


def _is_done(tokenizer: PreTrainedTokenizerBase, written: list[int], asked: Writing, ends: frozenset[int]) -> bool:
    if written[-1] in ends or len(written) >= asked.max_new:
        return True
    if not asked.stops or len(written) % CHECK_EVERY:
        return False
    text = _text(tokenizer, written, ends)
    return any(stop in text for stop in asked.stops)


def _text(tokenizer: PreTrainedTokenizerBase, written: list[int], ends: frozenset[int]) -> str:
    return str(tokenizer.decode(before_end(written, ends), skip_special_tokens=True))
