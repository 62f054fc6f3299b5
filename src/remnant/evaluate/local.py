"""A model in this process as the one who is asked."""

import gc
from collections import Counter
from collections.abc import Sequence
from typing import Any

import psutil
import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.evaluate.batches import packed, shared
from remnant.evaluate.ends import end_ids
from remnant.evaluate.prefix import NO_PREFIX, Prefix, prefix_cache, slides
from remnant.evaluate.reading import Text, grad_norm, plain_head, read
from remnant.evaluate.requests import (
    CHATS,
    Answer,
    AskGradNorm,
    Reading,
    Refused,
    Request,
    Writing,
    too_long,
    too_short,
)
from remnant.evaluate.ways import is_full, ways_of, within
from remnant.evaluate.writing import Writer, write
from remnant.functional.tokens import COLUMNS
from remnant.model.data import context_tokens, frame, prompt_ids
from remnant.model.load import context_length
from remnant.model.sizes import bytes_per_token
from remnant.model.whole import check_ids

# Beyond these more tokens side by side are not faster.
MOST_READ = {"cpu": 4096, "cuda": 65536}
MOST_ROWS = {"cpu": 64, "cuda": 512}
# So many tokens must be saved by a shared context before it gets batches of its own.
WORTH_A_GROUP = 512
# How much of the free memory may be filled.
SHARE = {"cpu": 0.3, "cuda": 0.8}


class Local:
    """A model and its tokenizer.

    Args:
        model: in evaluation mode, on its device.
        tokenizer: the model's.
        budget: padded tokens per batch; without it by the free memory.
    """

    offers = frozenset({"writing", "grad_norm", CHATS, *COLUMNS})

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, budget: int | None = None
    ) -> None:
        check_ids(model, tokenizer)
        self._model, self._tokenizer = model, tokenizer
        self._frame, self._ends = (
            frame(tokenizer),
            end_ids(tokenizer, model.config, model.generation_config),
        )
        self._ways = ways_of(model)
        self._head = plain_head(model)
        self._limit = context_length(model)
        self._kind = model.device.type
        self._budget = budget or free_bytes(model.device) // bytes_per_token(model)
        self._ids: dict[tuple[str, bool], list[int]] = {}
        self._prefix: tuple[tuple[int, ...], DynamicCache] | None = None

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Batches of one kind and context, the longest first."""
        uses: Counter[Any] = Counter(map(_kind, requests))
        groups: dict[Any, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(self._group(request, uses[_kind(request)]), []).append(place)
        batches: list[list[int]] = []
        for places in groups.values():
            one = requests[places[0]]
            lengths = [self._length(requests[i]) for i in places]
            most = (
                MOST_ROWS[self._kind]
                if isinstance(one, Writing)
                else 1
                if isinstance(one, AskGradNorm)
                else len(places)
            )
            budget = (
                self._budget
                if isinstance(one, Writing)
                else min(self._budget, MOST_READ[self._kind])
            )
            for batch in packed(lengths, budget, most):
                batches.append([places[i] for i in batch])
        return batches

    def _group(self, request: Request, uses: int) -> tuple[Any, ...]:
        """Requests of one kind.

        Those with one context apart from others where computing it once saves enough.
        """
        kind, context, rest = _kind(request)
        saves = (uses - 1) * len(self._encode(context)) if context else 0
        return kind, context if saves >= WORTH_A_GROUP else "", rest

    def answer(self, batch: Sequence[Request]) -> list[Answer]:
        """The answers to requests of one kind.

        A batch that is too large for the memory is halved until it fits.

        Raises:
            UserError: not even one request fits.
        """
        try:
            return self._answer(batch)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_full(error):
                raise
        self._prefix = None
        gc.collect()
        if self._kind == "cuda":
            torch.cuda.empty_cache()
        if len(batch) == 1:
            raise UserError(
                f"A text of {self._length(batch[0])} tokens does not fit into the memory.",
                "Free memory, or prepare shorter texts.",
            )
        half = len(batch) // 2
        return [*self.answer(batch[:half]), *self.answer(batch[half:])]

    def _answer(self, batch: Sequence[Request]) -> list[Answer]:
        found: list[Answer] = [Refused("")] * len(batch)
        for places, answer in (
            (_places(batch, Reading), self._read),
            (_places(batch, Writing), self._write),
            (_places(batch, AskGradNorm), self._grad_norms),
        ):
            asked: Any = [batch[i] for i in places]
            for place, value in zip(places, answer(asked) if asked else [], strict=True):
                found[place] = value
        return found

    def _read(self, asked: Sequence[Reading]) -> list[Answer]:
        texts = [
            Text(self._encode(r.context + r.text, r.framed), self._context_tokens(r), self._limit)
            for r in asked
        ]
        fit = [i for i, t in enumerate(texts) if t.counted]
        found: list[Answer] = [too_short(r) for r in asked]
        if not fit:
            return found
        most = min(texts[i].first for i in fit) - 1
        ways = within(self._ways, self._model, max(len(texts[i].ids) for i in fit))
        prefix = self._shared([texts[i].ids for i in fit], most) if ways.behind else NO_PREFIX
        columns = {c for r in asked for c in r.columns}
        for some in [fit] if ways.padded else [[i] for i in fit]:
            these = [texts[i] for i in some]
            tokens = read(self._model, self._head, these, columns, prefix, ways.positions)
            for i, value in zip(some, tokens, strict=True):
                found[i] = value
        return found

    def _write(self, asked: Sequence[Writing]) -> list[Answer]:
        ids = [self._encode(w.context + w.prompt, w.framed) for w in asked]
        found: list[Answer] = [too_long(self._limit)] * len(asked)
        fit = [i for i, w in enumerate(asked) if len(ids[i]) + w.max_new <= self._limit]
        if not fit:
            return found
        prompts, wanted = [ids[i] for i in fit], [asked[i] for i in fit]
        ways = within(
            self._ways,
            self._model,
            max(len(p) + w.max_new for p, w in zip(prompts, wanted, strict=True)),
        )
        prefix = self._shared(prompts, self._limit) if ways.begun else NO_PREFIX
        writer = Writer(self._model, self._tokenizer, self._ends, ways, self._head)
        texts = write(writer, prompts, wanted, prefix)
        for i, text in zip(fit, texts, strict=True):
            found[i] = text
        return found

    def _grad_norms(self, asked: Sequence[AskGradNorm]) -> list[Answer]:
        texts = [Text(self._encode(s.text), 0, self._limit) for s in asked]
        return [
            grad_norm(self._model, t) if t.counted else Refused("fewer than two tokens")
            for t in texts
        ]

    def _shared(self, ids: list[list[int]], most: int) -> Prefix:
        """What all begin with, kept for the next batch, which often has the same context."""
        if slides(self._model, max(len(i) for i in ids) + 256):
            return NO_PREFIX
        if self._prefix:
            known, cache = self._prefix
            if len(known) <= most and all(
                len(i) > len(known) and tuple(i[: len(known)]) == known for i in ids
            ):
                return Prefix(len(known), cache)
        same = min(shared(ids), most)
        if same < 1:
            return NO_PREFIX
        self._prefix = tuple(ids[0][:same]), prefix_cache(self._model, ids[0][:same])
        return Prefix(same, self._prefix[1])

    def _encode(self, text: str, framed: bool = True) -> list[int]:
        if (text, framed) not in self._ids:
            self._ids[text, framed] = prompt_ids(self._tokenizer, text, self._frame, framed=framed)
        return self._ids[text, framed]

    def _context_tokens(self, asked: Reading) -> int:
        if not asked.context:
            return 0
        whole = self._encode(asked.context + asked.text, asked.framed)
        return context_tokens(whole, self._encode(asked.context, asked.framed))

    def _length(self, request: Request) -> int:
        """Tokens that a request keeps in memory."""
        if isinstance(request, Writing):
            prompt = request.context + request.prompt
            return len(self._encode(prompt, request.framed)) + request.max_new
        if isinstance(request, Reading):
            text = request.context + request.text
            return min(self._limit, len(self._encode(text, request.framed)))
        return min(self._limit, len(self._encode(request.text)))


def _kind(request: Request) -> tuple[type, str, Any]:
    """What requests of one batch have in common: type, context, and the length or columns of their
    answers.
    """
    if isinstance(request, Writing):
        return Writing, request.context, request.max_new
    return (
        (Reading, request.context, request.columns)
        if isinstance(request, Reading)
        else (AskGradNorm, "", None)
    )


def _places(batch: Sequence[Request], kind: type) -> list[int]:
    return [i for i, r in enumerate(batch) if isinstance(r, kind)]


def free_bytes(device: torch.device) -> int:
    """How much memory a measurement may fill."""
    free = (
        torch.cuda.mem_get_info(device)[0]
        if device.type == "cuda"
        else psutil.virtual_memory().available
    )
    return int(SHARE[device.type] * free)
