"""Adapters beside weights in NF4: what they are trained beside, what moves, what is merged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant import ranks
from remnant.errors import UserError
from remnant.estimate.memory import (
    Text,
    kept_by_a_block,
    moving_of,
    of_weights,
    peak,
    width_of,
)
from remnant.estimate.shape import KNOWN
from remnant.model import nf4
from remnant.model.load import open_model
from remnant.records import LoraResult, OptimSpec, UnlearnSpec
from remnant.stages import unlearn
from remnant.testing import tiny_model
from remnant.trainable.attach import attach
from remnant.training import stepper
from remnant.training.loop import fit
from remnant.training.stepper import opened
from tests.conftest import silent
from tests.test_estimate import SHAPE, TEXT, kept_by_autograd
from tests.test_lora import IDS, logits, loss_of

functional = pytest.importorskip("bitsandbytes.functional")
pytest.importorskip("peft")
Save = Callable[[PreTrainedModel, str], Path]


def spec_of(steps: int = 3, **lora: Any) -> OptimSpec:
    way = {"lora": {"rank": 4, "alpha": 8.0, "base": "nf4"} | lora}
    return OptimSpec.model_validate({"train": way, "steps": steps, "lr": 1e-2})


def by_hand(weight: Tensor) -> Tensor:
    """The nearest of the 16 levels in every block of 64, times its largest number."""
    levels = functional.get_4bit_type("nf4", device="cpu")
    found = []
    for block in weight.flatten().split(64):
        largest = block.abs().max()
        places = (block[:, None] / largest - levels).abs().argmin(1)
        found.append(levels[places] * largest)
    return torch.cat(found).view(weight.shape)


@pytest.fixture
def target(tokenizer: PreTrainedTokenizerBase, folder_of: Save) -> Path:
    return folder_of(tiny_model(vocab=len(tokenizer), max_position_embeddings=1024), "target")


def test_packed_layers_are_the_nearest_levels_and_the_rest_is_as_it_was(target: Path) -> None:
    plain = dict(open_model(str(target)).named_parameters())
    model, _ = opened(str(target), "cpu", spec_of())
    names = [f"{name}.weight" for name in nf4.packed(model)]
    assert len(names) == 14
    assert not any("lm_head" in name or "embed" in name for name in names)
    for (name, _), value in zip(model.named_parameters(), nf4.values(model), strict=True):
        want = by_hand(plain[name].data) if name in names else plain[name].data
        # A number in the middle between two levels may go to either.
        assert float((value - want).abs().gt(1e-6).float().mean()) < 0.001, name
    stored = sum(nf4.packed(model)[n.removesuffix(".weight")].weight.nbytes for n in names)
    assert 2 * stored == sum(plain[name].numel() for name in names)


def test_gradients_reach_the_adapters_alone_and_are_those_beside_decoded_weights(
    target: Path, tmp_path: Path
) -> None:
    spec = spec_of()
    model, _ = opened(str(target), "cpu", spec)
    before = [value.clone() for value in nf4.values(model)]
    plain, _ = opened(str(target), "cpu", spec)
    nf4.unpack(plain)
    states = []
    for name, own in (("packed", model), ("decoded", plain)):
        (tmp_path / name).mkdir()
        moving = attach(own, spec)
        fit(moving, spec, loss_of(own), tmp_path / name, silent)
        states.append({n: v.clone() for n, v in moving.state().items()})
    packed, decoded = states
    assert list(packed) == list(decoded)
    for name, value in packed.items():
        assert torch.allclose(value.float(), decoded[name].float(), atol=1e-5), name
    assert any(bool(v.any()) for n, v in packed.items() if "lora_B" in n)
    kept = [v for p, v in zip(model.parameters(), nf4.values(model), strict=True) if frozen(p)]
    assert all(torch.equal(a, b) for a, b in zip(before, kept, strict=True))


def frozen(parameter: Tensor) -> bool:
    return not parameter.requires_grad


def test_what_is_merged_is_the_decoded_weight_and_the_adapter(target: Path, tmp_path: Path) -> None:
    spec = spec_of(targets=["q_proj", "mlp"])
    model, _ = opened(str(target), "cpu", spec)
    named = [*model.named_parameters()]
    weights = {n: v.clone() for (n, _), v in zip(named, nf4.values(model), strict=True)}
    moving = attach(model, spec)
    assert isinstance(moving.result, LoraResult)
    assert (moving.result.layers, moving.result.base) == (8, "nf4")
    fit(moving, spec, loss_of(model), tmp_path, silent)
    factors = {n: v.clone() for n, v in moving.state().items()}
    trained = logits(model)
    settled = moving.settle()
    assert not nf4.packed(settled)
    assert torch.allclose(logits(settled), trained, atol=1e-4)
    for name, value in settled.named_parameters():
        path = name.removesuffix(".weight")
        down, up = (factors.get(f"{path}.lora_{f}.default.weight") for f in "AB")
        want = weights[name] if down is None or up is None else weights[name] + 2.0 * up @ down
        assert torch.allclose(value, want, atol=1e-6), name
    settled.save_pretrained(tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    assert torch.equal(logits(open_model(str(tmp_path / "out"))), logits(settled))


def unlearned(target: Path, corpus: Path, out: Path, **lora: Any) -> Any:
    out.mkdir()
    settings = {"method": "npo_klr", "steps": 2, "lr": 5e-3, "batch_size": 2, "select": "last"}
    way = {"lora": {"rank": 4, "base": "nf4"} | lora}
    spec = UnlearnSpec.model_validate(settings | {"train": way})
    return unlearn.run(spec, {"target": target, "corpus": corpus}, out, silent)


def test_a_run_says_that_adapters_stand_beside_packed_weights(
    target: Path, corpus: Path, tmp_path: Path
) -> None:
    merged = unlearned(target, corpus, tmp_path / "merged")
    alone = unlearned(target, corpus, tmp_path / "alone", save="adapter")
    for said in (merged, alone):
        assert "beside the target in NF4" in said.said
        assert said.share_changed > 0.1
    assert merged.probes == alone.probes
    assert not list((tmp_path / "alone").glob("model*"))
    factors = load_file(tmp_path / "alone" / "adapter_model.safetensors")
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    plain = load_file(target / "model.safetensors")
    down = next(name for name in factors if "lora_A" in name)
    update = 8.0 * factors[down.replace("lora_A", "lora_B")] @ factors[down]
    name = down.removeprefix("base_model.model.").replace("lora_A.", "")
    assert float((stored[name] - by_hand(plain[name]) - update).abs().max()) < 1e-5
    assert {v.dtype for v in stored.values()} == {torch.float32}


def test_passes_without_gradients_leave_the_layers_as_they_are(target: Path) -> None:
    model, _ = opened(str(target), "cpu", spec_of())
    layer = next(iter(nf4.packed(model).values()))
    codes = layer.weight.data.clone()
    logits(model)
    assert torch.equal(layer.weight.data, codes)
    moving = attach(model, spec_of())
    moving.model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(part.parameter.grad is not None for part in moving.parts)


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_the_forecast_counts_what_is_held(weights: Any, folder_of: Save) -> None:
    way = {"rank": 4, "base": "nf4"}
    spec, alone = (
        OptimSpec.model_validate({"weights": weights, "train": {"lora": way | {"save": save}}})
        for save in ("merged", "adapter")
    )
    model, _ = opened(str(folder_of(tiny_model(), "plain")), "cpu", spec)
    packed: list[Any] = [layer.weight for layer in nf4.packed(model).values()]
    scales = sum(weight.quant_state.absmax.nbytes for weight in packed)
    held = scales + sum(p.nbytes for p in model.parameters())
    assert of_weights(SHAPE, spec) == held
    adapters = attach(model, spec).model
    told = kept_by_a_block(SHAPE, TEXT, width_of(spec), moving_of(SHAPE, spec).adapters)
    assert told == pytest.approx(kept_by_autograd(adapters), rel=0.03)
    small, merged = (peak(KNOWN["70B"], own, Text(1, 8)).total for own in (alone, spec))
    assert small < 0.6 * merged


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"compute": "fp32", "weights": "bf16"}, "leave compute out"),
        ({"promise": ["nf4"]}, "leave base out"),
        ({"grids": ["nf4"]}, "which adapters do not move"),
    ],
)
def test_what_packed_layers_do_not_go_with_is_refused(settings: dict[str, Any], said: str) -> None:
    way = {"method": "ga", "train": {"lora": {"base": "nf4"}}}
    with pytest.raises(ValueError, match=said):
        UnlearnSpec.model_validate(way | settings)


def test_several_processes_and_layers_that_cannot_be_packed_are_refused(
    folder_of: Save, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="keep their weights by columns"):
        opened(str(folder_of(tiny_model("gpt2"), "gpt2")), "cpu", spec_of())
    odd = tiny_model(hidden_size=48, intermediate_size=96)
    with pytest.raises(UserError, match="48 numbers, no multiple of 64"):
        opened(str(folder_of(odd, "odd")), "cpu", spec_of())
    assert ranks.count() == 1
    monkeypatch.setattr(stepper, "count", lambda: 2)
    with pytest.raises(UserError, match="Leave base out, or devices"):
        opened(str(target), "cpu", spec_of())
