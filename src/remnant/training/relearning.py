"""Relearning: a model is trained a little on a part of what it was to forget, or on other text."""

import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.corpus.prepared import raw_texts
from remnant.errors import UserError
from remnant.functional.losses import gdr
from remnant.functional.segments import Known
from remnant.model.blocks import said
from remnant.model.data import batch_order, collate, encode
from remnant.model.head import trained_head
from remnant.model.load import context_length
from remnant.model.whole import check_ids
from remnant.records import ByLoraSpec, LoraSpec, OptimSpec, Trains
from remnant.trainable.attach import attach
from remnant.training.loop import Loop, fit

# The settings of arXiv 2502.05374 for all weights on MUSE; rank and rate of adapters as usual for
# fine-tuning, the rate as in arXiv 2409.18025.
BATCH, MOST_TOKENS = 4, 2048
FULL_RATE, LORA_RATE = 1e-5, 2e-4
ADAPTERS = ByLoraSpec(lora=LoraSpec(rank=16, alpha=32.0))
SPLITS = {"forget": "forget", "retain": "retain1"}


def relearn(  # noqa: PLR0913 (five are settings, which a user writes by their names)
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Path,
    loop: Loop,
    *,
    steps: int = 64,
    text: str = "forget",
    percent: int = 10,
    way: str = "full",
    lr: float | None = None,
) -> None:
    """Train a model in place by AdamW at a constant rate, four texts a step.

    Args:
        model: in evaluation mode, in float32.
        tokenizer: the model's.
        corpus: the prepared one.
        loop: where the steps are kept, so that a call that was cut off goes on.
        steps: 0 changes nothing.
        text: "forget", or "retain" for text that shares no long run of words with forget text.
        percent: of the texts, chosen by the loop's seed, at least one.
        way: "full" for all weights, "lora" for adapters that are merged at the end.
        lr: by default 1e-5 for all weights and 2e-4 for adapters.

    Raises:
        UserError: the corpus has no such text, or the loss is not finite.

    Source: Fan et al. 2025 (arXiv 2502.05374) for all weights, Lucki et al. 2024 (arXiv 2409.18025)
    for adapters. Differs from the sources in: texts are cut at the model's context; rank 16 where
    the second has 128, and no warm-up.
    """
    check_ids(model, tokenizer)
    longest = min(context_length(model), MOST_TOKENS)
    lessons = encode(tokenizer, texts_of(corpus, text, percent, loop.seed), longest)
    if not lessons:
        raise UserError(f"The corpus has no {text} text to learn from.", "Give another corpus.")
    if not steps:
        return
    train: Trains = ADAPTERS if way == "lora" else "all"
    rate = lr if lr is not None else LORA_RATE if way == "lora" else FULL_RATE
    spec = OptimSpec(steps=steps, batch_size=BATCH, lr=rate, train=train, seed=loop.seed)
    moving = attach(model, spec)
    fit(moving, spec, _loss(model, tokenizer, lessons, spec), loop.folder, loop.work)
    moving.settle()


def texts_of(corpus: Path, text: str, percent: int, seed: int) -> list[str]:
    """A seeded part of the forget text, or of the retain text that repeats none of it."""
    texts = raw_texts(corpus, SPLITS[text])
    if text != "forget":
        known = Known(raw_texts(corpus, "forget"))
        texts = [one for one in texts if not known.share(one)]
    return random.Random(seed).sample(texts, math.ceil(len(texts) * percent / 100))


def _loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lessons: list[list[int]],
    spec: OptimSpec,
) -> Callable[[int], tuple[Tensor, dict[str, float]]]:
    """Cross entropy of a step's texts, in nats per token."""
    where, pad = model.device, tokenizer.pad_token_id
    size = min(spec.batch_size, len(lessons))
    head = trained_head(model)

    def loss_at(micro: int) -> tuple[Tensor, dict[str, float]]:
        chosen = [lessons[i] for i in batch_order(len(lessons), size, micro, spec.seed)]
        batch = collate(chosen, pad, where)
        with torch.enable_grad():
            loss = gdr(said(model, batch, head)).mean()
        return loss, {"loss": loss.item()}

    return loss_at
