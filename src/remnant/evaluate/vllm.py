"""vLLM in this process as the one who is asked: continuous batching, for GPUs and for formats that
only it runs.
"""

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import psutil
from transformers import AutoConfig, PreTrainedTokenizerBase

from remnant.errors import UserError, first_line
from remnant.evaluate.ends import configs_of, end_ids
from remnant.evaluate.local import SHARE
from remnant.evaluate.reading import Text, sound
from remnant.evaluate.requests import (
    CHATS,
    Answer,
    AskGradNorm,
    Reading,
    Refused,
    Request,
    Writing,
    by_context,
    not_finite,
    too_long,
    too_short,
)
from remnant.functional.tokens import Tokens
from remnant.model.data import context_tokens, prompt_ids
from remnant.model.sizes import declared_context
from remnant.remotecode import runs_code

INSTALL = (
    "Install it in an environment of its own, since it pins torch; `make vllm-check` shows how "
    "without a GPU."
)
# So many requests are handed over at a time: each such batch is a line on the disk, and vLLM packs
# it as it likes.
AT_A_TIME = 256
EMPTY = np.zeros(0)


class Vllm:
    """A folder in vLLM: a model in Hugging Face form, or one that was deployed as
    compressed-tensors.

    On a GPU it computes in the dtype that vLLM chooses for the files; without one in float32,
    packed weights in bfloat16, since vLLM has no other kernels for them there.

    Args:
        source: folder or hub id.
        tokenizer: the model's.
        device: where vLLM computes, as it was built for.

    Raises:
        UserError: vLLM is missing, or cannot open the model.
    """

    offers = frozenset({"writing", CHATS, "logp", "rank"})

    def __init__(
        self, source: str, tokenizer: PreTrainedTokenizerBase, device: str = "cpu"
    ) -> None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        try:
            from vllm import LLM, SamplingParams
        except ImportError as error:
            raise UserError("The engine vllm is not installed.", INSTALL) from error
        self._settings, self._tokenizer = SamplingParams, tokenizer
        own_code = runs_code(source)
        config: Any = AutoConfig.from_pretrained(source, trust_remote_code=own_code)
        self._limit = declared_context(config)
        self._ends = sorted(end_ids(tokenizer, config, *configs_of(source)))
        packed = getattr(config, "quantization_config", None) is not None
        try:
            self._model = LLM(
                source,
                dtype="auto" if device != "cpu" else "bfloat16" if packed else "float32",
                trust_remote_code=own_code,
                **_memory(device),
                max_model_len=self._limit,
                max_num_batched_tokens=max(8192, self._limit),
                # A prompt in pieces draws seeded samples from another place of their stream, and on
                # a CPU fails.
                enable_chunked_prefill=False,
                enforce_eager=True,
                seed=0,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(
                f"vLLM cannot open {source}: {first_line(error)}", "Measure it without the engine."
            ) from error

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """As many at a time as are kept together on the disk, those with one context side by
        side.
        """
        order = by_context(requests)
        return [order[i : i + AT_A_TIME] for i in range(0, len(order), AT_A_TIME)]

    def answer(self, batch: Sequence[Request]) -> list[Answer]:
        """The answers to some requests; vLLM decides what is computed side by side."""
        orders = [self._order(request) for request in batch]
        sent = [o for o in orders if not isinstance(o, Refused)]
        told = iter(
            self._model.generate(
                [{"prompt_token_ids": o.ids} for o in sent],
                [o.settings for o in sent],
                use_tqdm=False,
            )
        )
        return [o if isinstance(o, Refused) else _answer(o, next(told)) for o in orders]

    def _order(self, request: Request) -> "_Order | Refused":
        if isinstance(request, AskGradNorm):
            return Refused("vLLM gives no gradients")
        return self._writing(request) if isinstance(request, Writing) else self._reading(request)

    def _writing(self, asked: Writing) -> "_Order | Refused":
        ids = self._encode(asked.context + asked.prompt, asked.framed)
        if len(ids) + asked.max_new > self._limit:
            return too_long(self._limit)
        settings = self._settings(
            temperature=asked.temperature,
            seed=asked.seed if asked.temperature else None,
            max_tokens=asked.max_new,
            stop=list(asked.stops),
            stop_token_ids=self._ends,
            # The log-probability of what was written, which is no number where the logits are none.
            logprobs=0,
            include_stop_str_in_output=True,
        )
        return _Order(ids, settings, None)

    def _reading(self, asked: Reading) -> "_Order | Refused":
        whole = self._encode(asked.context + asked.text, asked.framed)
        skip = (
            context_tokens(whole, self._encode(asked.context, asked.framed)) if asked.context else 0
        )
        # One token is always written, for which the context must have room.
        text = Text(whole, skip, self._limit - 1)
        if not text.counted:
            return too_short(asked)
        return _Order(
            text.ids, self._settings(temperature=0, max_tokens=1, prompt_logprobs=0), text
        )

    def _encode(self, text: str, framed: bool) -> list[int]:
        return prompt_ids(self._tokenizer, text, framed=framed)


class _Order(NamedTuple):
    """What is handed to vLLM: ids, how to go on behind them, and the text if it is to be read."""

    ids: list[int]
    settings: Any
    text: Text | None


def _answer(order: _Order, said: Any) -> Answer:
    if order.text is None:
        places = getattr(said.outputs[0], "logprobs", None) or []
        broken = any(math.isnan(told.logprob) for place in places for told in place.values())
        return not_finite() if broken else str(said.outputs[0].text)
    read = [
        said.prompt_logprobs[place][order.ids[place]]
        for place in range(order.text.first, len(order.ids))
    ]
    rank = np.array([s.rank - 1 for s in read], np.float64)
    return sound(
        Tokens(np.array([s.logprob for s in read], np.float64), rank, EMPTY, EMPTY, order.text.cut)
    )


def _memory(device: str) -> dict[str, float]:
    """Without a GPU the setting of that name is a share of the main memory, taken at once.

    So it is some of what is free.
    """
    if device != "cpu":
        return {}
    memory = psutil.virtual_memory()
    return {"gpu_memory_utilization": SHARE["cpu"] * memory.available / memory.total}
