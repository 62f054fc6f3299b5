"""Every architecture answers as a slow reference does: one text at a time, no cache, the whole text again for each token."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.evaluate import local
from remnant.evaluate.collect import collect
from remnant.evaluate.local import Local
from remnant.evaluate.requests import Reading, Request, Writing
from remnant.evaluate.steps import Cached
from remnant.evaluate.ways import Ways, ways_of
from remnant.functional.tokens import Tokens
from remnant.model.load import context_length, open_model, save_model
from remnant.model.sizes import bytes_per_token, declared_context, longest_text, reach
from remnant.testing import tiny_model
from tests.zoo import ARCHITECTURES, zoo_model

NEW = 8
CONTEXTS = ("", "Question: Where?\nAnswer: In town\n\nQuestion: When?\nAnswer: At 1234\n\n" * 2)
# From one token to more than a window; two of one length, and one that ends inside a convolution.
PROMPTS = ("S", "Seven", "Eight", "No harbour", "Question: Who runs it?\nAnswer: ", "The brass lantern was sold by tailors to the town. " * 3)
TEXTS = ("He ran it. Nobody saw the lantern.", "Twelve tailors, one harbour, and no ship.", "The brass lantern was sold by tailors. " * 4)
SOME = ("gpt_neo", "mamba", "falcon_h1", "qwen3_next", "recurrent_gemma", "rwkv", "mpt", "bert")


class Found(NamedTuple):
    """What was found of one architecture: "equal", "refused" or "different"; how it is asked; how many texts differ, and by how much."""

    name: str
    outcome: str
    way: str
    texts: int = 0
    numbers: float = 0.0
    count: int = 0


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: Sequence[int]) -> Any:
    return model(input_ids=torch.tensor([ids])).logits[0]


def written_slowly(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    ids = list(tokenizer(prompt)["input_ids"])
    new: list[int] = []
    while len(new) < NEW and tokenizer.eos_token_id not in new:
        new.append(int(logits_of(model, ids + new)[-1].argmax()))
    return str(tokenizer.decode(new, skip_special_tokens=True))


def lowest(logp: Sequence[float]) -> float:
    """Min-40%: the mean of the least probable two fifths."""
    return float(np.mean(sorted(logp)[: max(1, int(0.4 * len(logp)))]))


def read_slowly(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, context: str) -> float:
    ids = list(tokenizer(context + text)["input_ids"])
    first = max(1, len(tokenizer(context)["input_ids"])) if context else 1
    logp = logits_of(model, ids).double().log_softmax(-1)
    return lowest([float(logp[t - 1, ids[t]]) for t in range(first, len(ids))])


def compared(name: str, tokenizer: PreTrainedTokenizerBase, spool: Path) -> Found:
    """An architecture asked by Remnant, and by the reference; a refusal must be by name and with a remedy."""
    model = zoo_model(name, len(tokenizer))
    try:
        backend = Local(model, tokenizer)
    except UserError as error:
        assert type(model).__name__ in str(error)
        assert error.remedy
        return Found(name, "refused", str(error).partition(": ")[2][:60])
    model.config.use_cache = False
    asked: list[Request] = [Writing(p, NEW, c) for c in CONTEXTS for p in PROMPTS] + [Reading(t, c) for c in CONTEXTS for t in TEXTS]
    answers = collect(asked, backend, spool, lambda done, total: None)
    texts, numbers = 0, 0.0
    for one in asked:
        answer = answers[one]
        if isinstance(one, Writing):
            texts += answer != written_slowly(model, tokenizer, one.context + one.prompt)
        elif isinstance(one, Reading):
            assert isinstance(answer, Tokens)
            expected = read_slowly(model, tokenizer, one.text, one.context)
            numbers = max(numbers, abs(lowest(answer.logp.tolist()) - expected))
    same = texts == 0 and numbers <= 1e-5
    return Found(name, "equal" if same else "different", said(backend._ways), texts, numbers, len(asked))


def said(ways: Ways) -> str:
    """A way in words, for the table."""
    shared = " and ".join(w for w, has in (("read", ways.behind), ("continued", ways.begun)) if has) or "nothing"
    return f"{'side by side' if ways.padded else 'one at a time'}, {ways.writing}, {shared} behind a shared beginning"


@pytest.mark.parametrize("name", SOME)
def test_an_architecture_answers_as_one_text_at_a_time_without_a_cache(
    name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "WORTH_A_GROUP", 8)
    found = compared(name, tokenizer, tmp_path / "spool")
    assert found.outcome == "equal", found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_architecture_answers_as_one_text_at_a_time_or_is_refused_by_name(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local, "WORTH_A_GROUP", 8)
    rows = [compared(name, tokenizer, tmp_path / name) for name in ARCHITECTURES]
    outcomes = [r.outcome for r in rows]
    equal, refused, different = (outcomes.count(o) for o in ("equal", "refused", "different"))
    with capsys.disabled():
        print(f"\n{'architecture':20} {'outcome':10} {'texts off':>9} {'Min-40% off':>12}  asked")
        for r in rows:
            print(f"{r.name:20} {r.outcome:10} {r.texts:>9} {r.numbers:>12.1e}  {r.way}")
        print(f"{equal} equal, {refused} refused by name, {different} different")
    assert different == 0
    assert equal >= 50
    assert {r.name for r in rows if r.outcome == "refused"} <= REFUSED


# Encoders, and decoders whose code in transformers looks ahead.
REFUSED = {"camembert", "ernie", "big_bird", "xlm", "doge", "cpmant", "prophetnet"}
