"""vLLM as an engine: what is asked of it and how its answers are read, with a stand-in.

The real one is run by `make vllm-check`.
"""

import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant import cli
from remnant.evaluate import vllm
from remnant.evaluate.requests import AskGradNorm, Reading, Refused, Writing
from remnant.evaluate.vllm import Vllm
from remnant.functional.tokens import Tokens
from remnant.model.load import save_model


class Said(NamedTuple):
    logprob: float
    rank: int


class FakeLLM:
    """Writes the number of prompt tokens.

    Finds token i of a prompt with log-probability -i and rank i + 1.
    """

    asked: list[tuple[list[int], dict[str, Any]]] = []  # noqa: RUF012

    def __init__(self, source: str, **settings: Any) -> None:
        self.settings = settings

    def generate(
        self, prompts: list[dict[str, list[int]]], settings: list[dict[str, Any]], use_tqdm: bool
    ) -> list[Any]:
        found = []
        for prompt, how in zip(prompts, settings, strict=True):
            ids = prompt["prompt_token_ids"]
            FakeLLM.asked.append((ids, how))
            told = [None, *({token: Said(-float(i), i + 1)} for i, token in enumerate(ids[1:], 1))]
            output = types.SimpleNamespace(text=f"{len(ids)} tokens")
            found.append(types.SimpleNamespace(outputs=[output], prompt_logprobs=told))
        return found


@pytest.fixture
def engine(
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    tmp_path: Path,
) -> Vllm:
    monkeypatch.setitem(
        sys.modules, "vllm", types.SimpleNamespace(LLM=FakeLLM, SamplingParams=dict)
    )
    FakeLLM.asked = []
    save_model(model, tokenizer, tmp_path / "m")
    return Vllm(str(tmp_path / "m"), tokenizer)


def test_readings_count_the_text_and_not_its_context(
    engine: Vllm, tokenizer: PreTrainedTokenizerBase
) -> None:
    context, text = "No baker counts. ", "Nobody knows 17 lanterns."
    whole, alone = (list(tokenizer(t)["input_ids"]) for t in (context + text, context))
    found, short = engine.answer([Reading(text, context), Reading("")])
    assert isinstance(found, Tokens)
    first = (
        next(n for n, (a, b) in enumerate(zip(whole, alone, strict=False)) if a != b)
        if whole[: len(alone)] != alone
        else len(alone)
    )
    assert np.array_equal(found.logp, -np.arange(first, len(whole)))
    assert np.array_equal(found.rank, np.arange(first, len(whole)))
    assert not found.cut
    assert isinstance(short, Refused)


def test_a_text_longer_than_the_context_is_cut_and_a_prompt_refused(engine: Vllm) -> None:
    read, written, grad_norm = engine.answer(
        [Reading("lantern " * 2000), Writing("lantern " * 2000, 8), AskGradNorm("a")]
    )
    assert isinstance(read, Tokens)
    assert read.cut
    assert len(FakeLLM.asked[0][0]) == 1023
    assert isinstance(written, Refused)
    assert "longer than the model's context" in written.reason
    assert isinstance(grad_norm, Refused)


def test_writing_is_greedy_or_seeded(engine: Vllm) -> None:
    answers = engine.answer(
        [Writing("Who runs", 5, stops=("\n\n",)), Writing("Who runs", 5, temperature=0.8, seed=3)]
    )
    (_, greedy), (_, sampled) = FakeLLM.asked
    assert all(str(a).endswith("tokens") for a in answers)
    assert (greedy["temperature"], greedy["seed"], greedy["max_tokens"], greedy["stop"]) == (
        0.0,
        None,
        5,
        ["\n\n"],
    )
    assert (sampled["temperature"], sampled["seed"]) == (0.8, 3)


def test_every_request_is_planned_once(engine: Vllm) -> None:
    requests = [Reading(str(i)) if i % 3 else Writing(str(i), 4) for i in range(600)]
    batches = engine.plan(requests)
    assert sorted(i for batch in batches for i in batch) == list(range(600))
    assert max(map(len, batches)) <= 256


def test_without_vllm_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    corpus: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    save_model(model, tokenizer, tmp_path / "m")
    arguments = [
        "measure",
        str(tmp_path / "m"),
        "--data",
        str(corpus),
        "--set",
        "engine=vllm",
        "--store",
        str(tmp_path / "s"),
    ]
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == 2
    assert "engine vllm is not installed" in done.output
    assert "Traceback" not in done.output


def test_without_a_gpu_a_share_of_the_free_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, share in ((80, 0.24), (10, 0.03)):
        monkeypatch.setattr(
            psutil,
            "virtual_memory",
            lambda free=available: types.SimpleNamespace(available=free, total=100),
        )
        assert vllm._memory("cpu") == {"gpu_memory_utilization": pytest.approx(share)}
