"""Batches, padding and the shared prefix change nothing: the texts equal one-by-one generation, also transformers' own."""

from typing import Any

import pytest
import torch
from transformers import GenerationMixin, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.model.generate import _shared, continuations, sampler
from remnant.testing import tiny_model

generate: Any = GenerationMixin.generate
FORMS = ["llama", "qwen3", "gemma3_text", "mistral", "gpt2", "gpt_neox", "mixtral"]
PROMPTS = ["Question: Who runs it?\nAnswer: ", "Seven", "The brass lantern was sold by tailors to", "No harbour"]
PREFIX = "Question: Where?\nAnswer: In town\n\nQuestion: When?\nAnswer: At 1234\n\n"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_batched_equals_one_by_one_and_the_librarys_generate(form: str, prefix: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model(form, vocab=len(tokenizer))
    together = continuations(model, tokenizer, PROMPTS, max_new=12, prefix=prefix)
    alone = [continuations(model, tokenizer, [p], max_new=12, prefix=prefix)[0] for p in PROMPTS]
    assert together == alone
    for prompt, text in zip(PROMPTS, together, strict=True):
        ids = tokenizer(prefix + prompt, return_tensors="pt")
        given = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        out = generate(model, input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], max_new_tokens=12, do_sample=False, **given)
        assert tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True) == text


def test_a_sliding_window_shorter_than_the_text_changes_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model("mistral", vocab=len(tokenizer), sliding_window=16)
    together = continuations(model, tokenizer, PROMPTS, max_new=10, prefix=PREFIX)
    assert together == [continuations(model, tokenizer, [p], max_new=10, prefix=PREFIX)[0] for p in PROMPTS]


def test_small_batches_equal_large_ones(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model(vocab=len(tokenizer))
    assert continuations(model, tokenizer, PROMPTS, max_new=9, batch_size=2) == continuations(model, tokenizer, PROMPTS, max_new=9)


def test_stops_only_cut_what_follows(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model(vocab=len(tokenizer))
    free = continuations(model, tokenizer, PROMPTS, max_new=24)
    stop = free[0][2:4]
    stopped = continuations(model, tokenizer, PROMPTS, max_new=24, stops=[stop])
    assert [t.split(stop)[0] for t in stopped] == [t.split(stop)[0] for t in free]
    assert len(stopped[0]) < len(free[0])


def test_sampling_is_seeded(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model(vocab=len(tokenizer))

    def sample(seed: int) -> list[str]:
        return continuations(model, tokenizer, PROMPTS, max_new=8, pick=sampler(0.9, seed, torch.device("cpu")))

    assert sample(1) == sample(1) != sample(2)


def test_a_prompt_beyond_the_context_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model(vocab=len(tokenizer), max_position_embeddings=16)
    with pytest.raises(UserError, match="exceed the model's context of 16"):
        continuations(model, tokenizer, ["word " * 20], max_new=4)


def test_the_shared_part_leaves_a_token_to_each_prompt() -> None:
    assert _shared([[1, 2, 3], [1, 2, 4]]) == 2
    assert _shared([[1, 2], [1, 2]]) == 1
    assert _shared([[1], [1, 2]]) == 0
