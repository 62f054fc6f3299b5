"""Training examples: texts as tokens that know where they begin to count and what stands beside
them.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from remnant.functional.view import IGNORED
from remnant.model.data import Batch, batch_order, collate, context_tokens, prompt_ids


class Example(NamedTuple):
    """One text as token ids; those before place ``counted_from`` are read but not counted.
    ``weights``: how much each token counts, at least 0; none where all count alike.
    """

    id: str
    ids: list[int]
    counted_from: int = 0
    weights: tuple[float, ...] = ()


class Pool(NamedTuple):
    """The examples of one side.

    ``beside``: of a side that is paired with another, for every pass over the partner's examples
    the place of the example that stands beside each of them; empty where a side has no partner.
    """

    examples: list[Example]
    beside: Sequence[list[int]] = ()

    def place(self, number: int, index: int) -> int:
        """Where the example of a turn stands: of pass ``number``, beside (or itself) ``index``."""
        return self.beside[number][index] if self.beside else index


def pool_of(chunks: Sequence[list[int]], name: str = "text") -> Pool:
    """Token lists as examples that count from their first token."""
    return Pool([Example(f"{name}-{i}", ids) for i, ids in enumerate(chunks)])


def joined(
    tokenizer: PreTrainedTokenizerBase, name: str, before: str, after: str, *, framed: bool = True
) -> Example:
    """A text behind another, encoded as one; counted from the first token that is not the same as
    in the text before alone.

    Where a token spans the seam it belongs to what comes behind it. ``framed``: as in
    ``prompt_ids``.
    """
    whole = prompt_ids(tokenizer, before + after, framed=framed)
    alone = prompt_ids(tokenizer, before, framed=framed)
    return Example(name, whole, context_tokens(whole, alone))


def passes(size: int, batch_size: int, batches: int) -> int:
    """How many passes over ``size`` examples some batches begin."""
    return math.ceil(batches * batch_size / size) if size else 0


def beside(
    counts: Sequence[int], example: Callable[[int, int], Example], number: int, seed: int
) -> Pool:
    """For each of some examples one of its alternatives, in every pass another.

    Passes over a permutation of each example's alternatives, so that each comes as often as the
    others; a pure function of (seed, pass). Only what some pass shows is made.

    Args:
        counts: how many alternatives each example has.
        example: makes alternative k of example i.
        number: how many passes.
        seed: of the run.
    """
    places: dict[tuple[int, int], int] = {}

    def place(n: int, i: int, count: int) -> int:
        return places.setdefault((i, _alternative(count, n, seed, i)), len(places))

    shown = []
    for n in range(number):
        shown.append([place(n, i, count) for i, count in enumerate(counts)])
    return Pool([example(i, k) for i, k in places], shown)


def _alternative(count: int, number: int, seed: int, index: int) -> int:
    return batch_order(count, 1, number, f"{seed}-alternative-{index}")[0]


def batch_of(examples: Sequence[Example], pad: int, where: torch.device) -> Batch:
    """A batch in which neither padding nor what stands before the counted tokens is a label."""
    batch = collate([e.ids for e in examples], pad, where)
    starts = torch.tensor([e.counted_from for e in examples], device=where)
    before = torch.arange(batch.ids.shape[1], device=where) < starts[:, None]
    labels = batch.labels.masked_fill(before, IGNORED)
    return batch._replace(labels=labels, weights=_weights(examples, batch))


def _weights(examples: Sequence[Example], batch: Batch) -> torch.Tensor | None:
    """The weights of a batch [B, T], 1 where an example has none; None where none has any."""
    if not any(example.weights for example in examples):
        return None
    found = torch.ones(batch.ids.shape, device=batch.ids.device)
    for row, example in zip(found, examples, strict=True):
        if example.weights:
            row[: len(example.ids)] = row.new_tensor(example.weights)
    return found
