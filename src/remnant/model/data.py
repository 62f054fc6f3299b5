"""From texts to token lists and batches."""

import copy
import random
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.functional.view import IGNORED

T = TypeVar("T")


class Batch(NamedTuple):
    """Token ids [B, T] padded on the right, their mask [B, T], the labels [B, T] (ids, ``IGNORED``
    on padding) and how much each token counts [B, T], None where all count alike.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    weights: Tensor | None = None


class Frame(NamedTuple):
    """The special tokens that a tokenizer puts before every text and behind it."""

    start: list[int]
    end: list[int]


def frame(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """What a tokenizer puts around a text by itself, found by trying it on one letter."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for first in range(len(whole) - len(plain) + 1):
        if whole[first : first + len(plain)] == plain:
            return Frame(whole[:first], whole[first + len(plain) :])
    # A tokenizer that cuts the letter otherwise between its special tokens.
    special = set(tokenizer.all_special_ids)
    inner = [place for place, token in enumerate(whole) if token not in special]
    return Frame(whole[: inner[0]], whole[inner[-1] + 1 :]) if inner else Frame(whole, [])


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    around: Frame | None = None,
    *,
    framed: bool = True,
) -> list[int]:
    """The tokens of a text that something may follow: those that the tokenizer puts before it stay,
    those behind it are left out.

    This is how every text is encoded that is read, continued or trained on, alone or joined with
    another: joined texts are encoded as one, and the tokens of the first alone are those that it
    has in common with the whole (``context_tokens``).

    Args:
        tokenizer: the model's.
        text: what is encoded.
        around: the tokenizer's ``frame``, where it is known already.
        framed: the tokenizer puts its special tokens before the text; where it does not, they stand
            in it, as a chat template has written them.

    Raises:
        UserError: a text that is not Unicode (half of a surrogate pair), or that the tokenizer
            cannot encode.
    """
    around = around or frame(tokenizer)
    try:
        ids = list(tokenizer(text, add_special_tokens=framed)["input_ids"])
    except (UnicodeError, TypeError) as error:
        raise UserError(
            f"A text cannot be encoded, {text[:40]!r}: {error}.",
            "It must be text in Unicode, without lone surrogates.",
        ) from error
    count = len(around.end) if framed else 0
    return ids[:-count] if count and ids[-count:] == around.end else ids


def without_end(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, or where it puts tokens behind a text a copy that does not: for libraries that
    encode by themselves.

    Raises:
        UserError: it cannot be told to leave them out.
    """
    around = frame(tokenizer)
    if not around.end:
        return tokenizer
    copied: Any = copy.deepcopy(tokenizer)
    if (inner := getattr(copied, "backend_tokenizer", None)) is not None:
        names = [str(name) for name in copied.convert_ids_to_tokens(around.start)]
        pairs = list(zip(names, around.start, strict=True))
        inner.post_processor = TemplateProcessing(
            single=" ".join([*names, "$A"]), special_tokens=pairs
        )
    else:
        copied.add_eos_token = False
    if frame(copied) != (around.start, []):
        raise UserError(
            "The tokenizer puts tokens behind every text and cannot be told not to.",
            "Set add_eos_token to false in its files.",
        )
    bare: PreTrainedTokenizerBase = copied
    return bare


def context_tokens(whole: Sequence[int], beginning: Sequence[int]) -> int:
    """How many tokens two encodings have in common from the start: of a text and of its beginning,
    those that belong to it alone.
    """
    return next(
        (n for n, (a, b) in enumerate(zip(whole, beginning, strict=False)) if a != b),
        min(len(whole), len(beginning)),
    )


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int
) -> list[list[int]]:
    """Token lists of at most ``max_tokens``.

    A longer text becomes several, none shorter than two tokens.

    Each begins with the tokenizer's start token, if it has one, and none ends with an end token.
    """
    around = frame(tokenizer)
    found: list[list[int]] = []
    for text in texts:
        ids = prompt_ids(tokenizer, text, around)
        found += cut(ids, head_of(ids, around), max_tokens)
    return found


def head_of(ids: list[int], around: Frame) -> int:
    """With how many of the tokens that a tokenizer puts before every text some ids begin."""
    return len(around.start) if ids[: len(around.start)] == around.start else 0


def cut(values: list[T], head: int, most: int) -> list[list[T]]:
    """What stands at the tokens of a text in pieces of at most ``most``, none shorter than two, and
    each with the text's own head before it.

    >>> cut([9, 1, 2, 3, 4, 5], 1, 3)
    [[9, 1, 2], [9, 3, 4], [9, 5]]
    """
    room = max(1, most - head)
    starts = range(head, len(values), room)
    pieces = [values[:head] + values[start : start + room] for start in starts]
    return [piece for piece in pieces if len(piece) > 1]


def chunks(tokenizer: PreTrainedTokenizerBase, text: str, size: int) -> list[str]:
    """The text cut where ``size`` tokens are full, by character offsets, so that the pieces joined
    are the text.
    """
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    starts = [int(offsets[i][0]) for i in range(0, len(offsets), size)]
    return (
        [text[a:b] for a, b in zip([0, *starts[1:]], [*starts[1:], len(text)], strict=True)]
        if starts
        else []
    )


def pack(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], block: int, seed: int
) -> list[list[int]]:
    """Documents in random order, separated by a blank line (MUSE's .txt form), in blocks of at most
    ``block`` tokens.

    Every block starts with the tokenizer's start token and the start of a document; a longer
    document is cut. No end token stands anywhere.
    """
    order = random.Random(seed).sample(range(len(texts)), len(texts))
    start, gap = frame(tokenizer).start, _blank_line(tokenizer)
    blocks: list[list[int]] = []
    for i in order:
        ids = list(tokenizer(texts[i], add_special_tokens=False)["input_ids"])
        if blocks and len(blocks[-1]) + len(gap) + len(ids) <= block:
            blocks[-1] += gap + ids
        else:
            room = max(1, block - len(start))
            blocks += [start + ids[k : k + room] for k in range(0, len(ids), room)]
    return [b for b in blocks if len(b) > 1]


def _blank_line(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A blank line behind a text; alone, some tokenizers put the token of a space before it."""
    alone, behind = (
        list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("x", "x\n\n")
    )
    return behind[context_tokens(behind, alone) :]


def turns(size: int, batch_size: int, step: int, seed: int | str) -> list[tuple[int, int]]:
    """Which examples stand in the batch of a step, each with the number of the pass: passes over a
    permutation that is new in every pass.

    A pure function of its arguments, so that a resumed run sees the same batches.
    """
    orders: dict[int, list[int]] = {}
    chosen = []
    for place in range(step * batch_size, (step + 1) * batch_size):
        number, position = divmod(place, size)
        if number not in orders:
            orders[number] = random.Random(f"{seed}-{number}").sample(range(size), size)
        chosen.append((number, orders[number][position]))
    return chosen


def batch_order(size: int, batch_size: int, step: int, seed: int | str) -> list[int]:
    """The examples of ``turns`` alone."""
    return [index for _, index in turns(size, batch_size, step, seed)]


def collate(examples: list[list[int]], pad: int, where: torch.device) -> Batch:
    """Pad token lists on the right; padding is neither attended nor counted."""
    longest = max(len(e) for e in examples)
    ids = torch.tensor([e + [pad] * (longest - len(e)) for e in examples], device=where)
    lengths = torch.tensor([len(e) for e in examples], device=where)
    mask = (torch.arange(longest, device=where) < lengths[:, None]).long()
    return Batch(ids, mask, ids.masked_fill(mask == 0, IGNORED))
