"""Blocks that are computed twice: the bits of those that are kept, and less of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.model.blocks import blocks, recomputed
from remnant.model.load import in_dtype
from remnant.records import UnlearnSpec
from remnant.testing import tiny_model
from remnant.trainable.attach import attach
from remnant.training.loop import fit
from remnant.training.stepper import storage_dtype
from tests.conftest import silent
from tests.test_loop import loss_for

FORMS = ["llama", "qwen3", "gemma3_text", "gemma2", "gpt2", "gpt_neox", "mixtral"]


def trained(
    folder: Path, form: str, corpus: Path, tokenizer: PreTrainedTokenizerBase, **settings: Any
) -> tuple[str, list[Tensor]]:
    """The log and the weights of two steps."""
    spec = UnlearnSpec.model_validate({"steps": 2, "batch_size": 2, "lr": 1e-3} | settings)
    model = in_dtype(tiny_model(form, vocab=len(tokenizer)), storage_dtype(spec.weights))
    loss_at = loss_for(model, spec, corpus, tokenizer)
    moving = attach(model, spec)
    folder.mkdir()
    fit(moving, spec, loss_at, folder, silent)
    weights = [p.detach() for p in moving.settle().parameters()]
    return (folder / "steps.jsonl").read_text(), weights


@pytest.mark.parametrize("form", FORMS)
def test_blocks_computed_twice_give_the_bits_of_blocks_that_are_kept(
    form: str, corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    found = [
        trained(tmp_path / str(on), form, corpus, tokenizer, method="npo_klr", checkpointing=on)
        for on in (False, True)
    ]
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {"terms": [{"use": "rmu", "layer": 1, "scale": 2.0}, {"use": "gdr"}]},
        {"terms": [{"use": "rmu", "layer": 0, "scale": 2.0}]},
        {"method": "ga_gdr", "train": {"lora": {"rank": 2}}},
        {"method": "ga_gdr", "accumulate": 2, "weights": "bf16", "compute": None},
    ],
)
def test_states_adapters_and_bfloat16_go_through_it(
    settings: dict[str, Any], corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    found = [
        trained(tmp_path / str(on), "llama", corpus, tokenizer, checkpointing=on, **settings)
        for on in (False, True)
    ]
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def held(model: PreTrainedModel) -> int:
    """Bytes that a pass keeps for its backward pass, but for the weights themselves."""
    kept: dict[int, int] = {}
    weights = {p.data_ptr() for p in model.parameters()}

    def pack(value: Tensor) -> Tensor:
        if value.data_ptr() not in weights:
            kept[value.data_ptr()] = value.nbytes
        return value

    ids = torch.arange(64).view(2, 32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    assert states.requires_grad
    return sum(kept.values())


def test_less_is_kept_and_nothing_of_it_stays_switched_on() -> None:
    model = tiny_model(num_hidden_layers=6)
    plain = held(model)
    with recomputed(model):
        less = held(model)
    assert less < plain / 2
    assert held(model) == plain
    assert not any("forward" in block.__dict__ for block in blocks(model))


def test_dropout_and_checkpointing_are_refused_together() -> None:
    with pytest.raises(ValidationError, match="leave one of them out"):
        UnlearnSpec.model_validate(
            {"method": "ga", "checkpointing": True, "train": {"lora": {"dropout": 0.1}}}
        )


def test_it_is_no_part_of_what_a_model_is() -> None:
    plain, twice = (UnlearnSpec(method="ga", checkpointing=on) for on in (False, True))
    assert plain.identity() == twice.identity()


@pytest.mark.parametrize("method", ["ga_gdr", "npo_klr"])
def test_two_batches_of_two_make_the_step_of_one_batch_of_four(
    method: str, corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    gradients = []
    for number in (1, 2):
        spec = UnlearnSpec(method=method, batch_size=4 // number, accumulate=number)
        model = tiny_model(vocab=len(tokenizer))
        loss_at = loss_for(model, spec, corpus, tokenizer)
        for micro in range(number):
            (loss_at(micro)[0] / number).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, two in zip(*gradients, strict=True):
        assert torch.allclose(one, two, rtol=0, atol=1e-5 * float(one.abs().max()))
