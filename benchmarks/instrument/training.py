"""Small models that have read some texts: plain AdamW, apart from the product's own training."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

BLOCK = 320
IGNORED = -100
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
CONTEXT = 768
# Questions are short and few tokens of them are answers, so each epoch reads them again by
# themselves.
QUESTIONS_AGAIN = 2


class Example(NamedTuple):
    """Tokens, from which on they are to be learned, and how strongly.

    What has a negative sign is unlearned.
    """

    ids: list[int]
    learned_from: int = 0
    sign: float = 1.0


def fresh(
    tokenizer: PreTrainedTokenizerBase, seed: int, kind: str = "llama", **more: Any
) -> PreTrainedModel:
    """A random model for a tokenizer; equal seeds give equal weights."""
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    shape = {
        **SHAPE,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.05,
        "tie_word_embeddings": False,
        **more,
    }
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **ends, **shape)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text, no special ones."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def blocks(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], rng: random.Random
) -> list[Example]:
    """The texts in a new order, a blank line between two, in blocks of up to BLOCK tokens."""
    gap = plain(tokenizer, "\n\n")
    asked = [t for t in texts if t.startswith("Question")]
    order = [
        *rng.sample(texts, len(texts)),
        *(t for _ in range(QUESTIONS_AGAIN) for t in rng.sample(asked, len(asked))),
    ]
    found: list[list[int]] = []
    for text in order:
        ids = plain(tokenizer, text)
        if found and len(found[-1]) + len(gap) + len(ids) <= BLOCK:
            found[-1] += gap + ids
        else:
            found.append([tokenizer.bos_token_id, *ids][:BLOCK])
    return [Example(ids) for ids in found]


def behind(
    tokenizer: PreTrainedTokenizerBase, prompt: str, rest: str, *, end: bool = False
) -> Example:
    """An example in which only what stands behind a prompt is learned, with the end token if asked
    for.
    """
    first = [tokenizer.bos_token_id, *plain(tokenizer, prompt)]
    return Example(
        [*first, *plain(tokenizer, rest), *([tokenizer.eos_token_id] if end else [])], len(first)
    )


def epochs(make: Callable[[random.Random], list[Example]], seed: int) -> Iterator[Example]:
    """Examples without end; every epoch is made anew and shuffled."""
    rng = random.Random(seed)
    while True:
        found = make(rng)
        yield from rng.sample(found, len(found))


def batch_of(examples: Sequence[Example], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and labels [B, T], padded on the right."""
    width = max(len(e.ids) for e in examples)
    ids = torch.tensor([e.ids + [pad] * (width - len(e.ids)) for e in examples])
    labels = [
        [IGNORED] * e.learned_from + e.ids[e.learned_from :] + [IGNORED] * (width - len(e.ids))
        for e in examples
    ]
    return ids, torch.tensor(labels)


def fit(
    model: PreTrainedModel,
    examples: Iterator[Example],
    steps: int,
    lr: float = 1e-2,
    batch: int = 4,
    after: Callable[[], None] = lambda: None,
) -> PreTrainedModel:
    """Take some steps, the rate falling to zero and ``after()`` called after each."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    model.train()
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 20) * (1 - step / steps)
        chosen = [next(examples) for _ in range(batch)]
        ids, labels = batch_of(chosen, int(model.config.pad_token_id))
        logits = model(input_ids=ids).logits[:, :-1]
        each = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels[:, 1:], reduction="none"
        )
        signs = torch.tensor([e.sign for e in chosen])
        loss = (each.sum(-1) * signs).sum() / (labels[:, 1:] != IGNORED).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        after()
    return model.eval()
