"""A GGUF file in llama.cpp, in this process, as the one who is asked.

Text goes in and out as token ids of the model's own tokenizer.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from remnant.evaluate.ends import configs_of, end_ids
from remnant.evaluate.reading import Text, sound
from remnant.evaluate.requests import (
    CHATS,
    Answer,
    Reading,
    Refused,
    Request,
    Writing,
    by_context,
    not_finite,
    too_long,
    too_short,
)
from remnant.functional.tokens import COLUMNS, Array, Tokens
from remnant.model.data import context_tokens, prompt_ids
from remnant.runtimes.llamacpp import Runtime


class LlamaCpp:
    """A GGUF file and the tokenizer of the model that it was made from.

    Raises:
        UserError: llama.cpp is missing or cannot open the file.
    """

    offers = frozenset({"writing", CHATS, *COLUMNS})

    def __init__(self, file: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self._runtime = Runtime(file, context=0)
        self._tokenizer = tokenizer
        self._limit = self._runtime.context
        self._ends = end_ids(tokenizer, *configs_of(str(file.parent)))

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """One at a time, those with one context side by side, so that it is computed once."""
        return [[i] for i in by_context(requests)]

    def answer(self, batch: Sequence[Request]) -> list[Answer]:
        """The answers, one after the other."""
        return [self._one(request) for request in batch]

    def _one(self, request: Request) -> Answer:
        if isinstance(request, Writing):
            return self._write(request)
        return (
            self._read(request)
            if isinstance(request, Reading)
            else Refused("llama.cpp gives no gradients")
        )

    def _write(self, asked: Writing) -> Answer:
        ids = self._encode(asked.context + asked.prompt, asked.framed)
        if len(ids) + asked.max_new > self._limit:
            return too_long(self._limit)
        chance = np.random.default_rng(asked.seed)
        written: list[int] = []
        text = ""
        while len(written) < asked.max_new and not any(stop in text for stop in asked.stops):
            logits = self._runtime.follow([*ids, *written]).astype(np.float64)
            if not np.isfinite(logits.max()):
                return not_finite()
            token = (
                int(logits.argmax())
                if asked.temperature == 0
                else _drawn(logits / asked.temperature, chance)
            )
            if token in self._ends or self._runtime.is_end(token):
                break
            written.append(token)
            text = str(self._tokenizer.decode(written, skip_special_tokens=True))
        return text

    def _read(self, asked: Reading) -> Answer:
        whole = self._encode(asked.context + asked.text, asked.framed)
        text = Text(
            whole,
            context_tokens(whole, self._encode(asked.context, asked.framed))
            if asked.context
            else 0,
            self._limit,
        )
        if not text.counted:
            return too_short(asked)
        logits = self._runtime.logits(text.ids)[text.first - 1 : -1].astype(np.float64)
        if not np.isfinite(logits.max(-1)).all():
            return not_finite()
        logp = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
        chosen = logp[np.arange(len(logp)), text.ids[text.first :]]
        mean = (np.exp(logp) * logp).sum(-1)
        std: Array = np.sqrt((np.exp(logp) * (logp - mean[:, None]) ** 2).sum(-1))
        return sound(
            Tokens(chosen, (logp > chosen[:, None]).sum(-1).astype(np.float64), mean, std, text.cut)
        )

    def _encode(self, text: str, framed: bool) -> list[int]:
        return prompt_ids(self._tokenizer, text, framed=framed)


def _drawn(logits: Array, chance: np.random.Generator) -> int:
    """A token in proportion to its probability."""
    weights = np.exp(logits - logits.max())
    return int(np.searchsorted(np.cumsum(weights) / weights.sum(), chance.random()))
