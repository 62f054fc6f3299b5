"""Continuations of many prompts side by side, equal to one prompt at a time."""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from remnant.evaluate.ends import before_end
from remnant.evaluate.prefix import NO_PREFIX, Prefix, beside, copied
from remnant.evaluate.requests import Refused, Writing, not_finite
from remnant.evaluate.steps import Cached, Whole
from remnant.evaluate.ways import Ways

CHECK_EVERY = 4


class Writer(NamedTuple):
    """A causal model that writes, and what it takes to read what it has written.

    ``ends``: the ids of tokens at which an answer ends (``end_ids``). ``ways``: what leaves the
    model's answers as they are. ``head``: its output head (``plain_head``), if it can be applied by
    itself.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]
    ways: Ways
    head: Callable[[Tensor], Tensor] | None = None


@torch.no_grad()
def write(
    writer: Writer,
    ids: Sequence[Sequence[int]],
    asked: Sequence[Writing],
    prefix: Prefix = NO_PREFIX,
) -> list[str | Refused]:
    """What the model writes after each prompt, special tokens left out.

    Refused where its logits are not finite.

    Args:
        writer: the model.
        ids: the prompts as tokens.
        asked: how each is to be continued; rows that are done leave the batch.
        prefix: what all prompts begin with.
    """
    model, ways, shared = writer.model, writer.ways, prefix.tokens
    most = max(w.max_new for w in asked)
    if ways.writing == "whole":
        return _continue(writer, asked, Whole(model, writer.head, ids, ways.padded))
    if ways.writing in ("even", "alone"):
        return _by_length(writer, ids, asked)
    tails = [list(i[shared:]) for i in ids]
    width = max(len(t) for t in tails)

    def written(cache: DynamicCache | None) -> list[str | Refused]:
        pad = writer.tokenizer.pad_token_id
        begun = Prefix(shared, cache)
        steps = Cached(model, tails, most, pad if pad is not None else 0, begun, ways.positions)
        return _continue(writer, asked, steps)

    if ways.once and prefix.cache and shared > width:
        with beside(model, prefix.cache, len(ids), width + most) as cache:
            return written(cache)
    if prefix.cache:
        return written(copied(model, prefix.cache, len(ids), shared + width + most))
    return written(None)


def _by_length(
    writer: Writer, ids: Sequence[Sequence[int]], asked: Sequence[Writing]
) -> list[str | Refused]:
    """Prompts of one length (or one prompt) at a time, for models that would carry padding through
    their states.
    """
    ways = writer.ways
    found: list[str | Refused] = [""] * len(ids)
    groups: dict[int, list[int]] = {}
    for place, prompt in enumerate(ids):
        groups.setdefault(place if ways.writing == "alone" else len(prompt), []).append(place)
    for places in groups.values():
        some = [asked[p] for p in places]
        steps = Cached(
            writer.model,
            [ids[p] for p in places],
            max(w.max_new for w in some),
            positions=ways.positions,
        )
        for place, text in zip(
            places, _continue(writer, some, steps, leaves=ways.leaves), strict=True
        ):
            found[place] = text
    return found


def _continue(
    writer: Writer, asked: Sequence[Writing], steps: Cached | Whole, *, leaves: bool = True
) -> list[str | Refused]:
    """Write behind each row; rows that are done leave if they can."""
    chances = {i: _chances(w) for i, w in enumerate(asked) if w.temperature > 0}
    written: list[list[int]] = [[] for _ in asked]
    rows = list(range(len(asked)))
    open_, broken = set(rows), set[int]()
    for step in range(max(w.max_new for w in asked)):
        tokens, sound = _pick(steps.step(), rows, asked, chances, step)
        for row, token, is_sound in zip(rows, tokens.tolist(), sound.tolist(), strict=True):
            if row in open_:
                written[row].append(token)
                broken |= set() if is_sound else {row}
        open_ -= {
            row for row in open_ if row in broken or _is_done(writer, written[row], asked[row])
        }
        if not open_:
            break
        steps.add(tokens)
        if leaves and 2 * len(open_) <= len(rows):
            steps.keep(
                torch.tensor(
                    [i for i, row in enumerate(rows) if row in open_], device=tokens.device
                )
            )
            rows = [row for row in rows if row in open_]
    return [
        not_finite() if row in broken else _text(writer, tokens)
        for row, tokens in enumerate(written)
    ]


def _pick(
    logits: Tensor, rows: list[int], asked: Sequence[Writing], chances: dict[int, Tensor], step: int
) -> tuple[Tensor, Tensor]:
    """[B] the next tokens of [B, V] and whether each row's logits are finite (minus infinity is
    allowed).

    A token is the most probable one, or the one where the cumulated probabilities pass the row's
    own random number.
    """
    tokens = logits.argmax(-1)
    # What is no number counts as the largest, so one look at the largest tells of all.
    sound = logits.gather(-1, tokens[:, None])[:, 0].isfinite()
    sampled = [
        place for place, row in enumerate(rows) if row in chances and step < asked[row].max_new
    ]
    if sampled:
        temperature = torch.tensor(
            [asked[rows[p]].temperature for p in sampled], device=logits.device
        )
        passed = (logits[sampled].float() / temperature[:, None]).softmax(-1).cumsum(-1)
        drawn = torch.stack([chances[rows[p]][step] for p in sampled]).to(logits.device)
        tokens[sampled] = (
            (passed < (drawn * passed[:, -1])[:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)
        )
    return tokens, sound


def _chances(asked: Writing) -> Tensor:
    """[max_new] random numbers that depend on prompt and seed alone, not on what stands beside
    them.
    """
    digest = hashlib.sha256(repr((asked.context, asked.prompt, asked.seed)).encode()).digest()
    return torch.rand(
        asked.max_new, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    )


def _is_done(writer: Writer, written: list[int], asked: Writing) -> bool:
    if written[-1] in writer.ends or len(written) >= asked.max_new:
        return True
    if not asked.stops or len(written) % CHECK_EVERY:
        return False
    text = _text(writer, written)
    return any(stop in text for stop in asked.stops)


def _text(writer: Writer, written: list[int]) -> str:
    tokens = before_end(written, writer.ends)
    return str(writer.tokenizer.decode(tokens, skip_special_tokens=True))
