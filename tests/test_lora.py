"""LoRA: fresh adapters change nothing, the base never moves, a merge is the sum, the adapter is all
that is kept."""

import copy
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.adapterfiles import adapter_in
from remnant.errors import UserError
from remnant.flow import plan as planning
from remnant.flow.sweepfile import read_sweep
from remnant.model.load import open_model
from remnant.parsing import parse
from remnant.records import LoraResult, LoraSpec, MergeSpec, OptimSpec, TrainSpec, UnlearnSpec
from remnant.stages import merge, train, unlearn
from remnant.testing import tiny_model
from remnant.trainable.attach import attach
from remnant.trainable.lora import Dropout, adapted
from remnant.training import checkpoints
from remnant.training.loop import fit
from tests.conftest import hearing, silent

peft = pytest.importorskip("peft")
BaseTunerLayer: Any = pytest.importorskip("peft.tuners.tuners_utils").BaseTunerLayer
Save = Callable[[PreTrainedModel, str], Path]
IDS = torch.randint(0, 50, (3, 16), generator=torch.Generator().manual_seed(0))


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=IDS).logits).clone()


def loss_of(model: PreTrainedModel) -> Any:
    def loss_at(micro: int) -> tuple[Tensor, dict[str, float]]:
        loss = model(input_ids=IDS, labels=IDS).loss
        return loss, {"loss": loss.item()}

    return loss_at


def spec_of(steps: int = 4, weights: str = "fp32", **lora: Any) -> OptimSpec:
    return OptimSpec.model_validate(
        {"train": {"lora": lora}, "steps": steps, "lr": 1e-2, "weights": weights}
    )


def switched(model: PreTrainedModel, *, on: bool) -> None:
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(on)


@pytest.mark.parametrize("form", ["llama", "qwen3", "gpt2", "gpt_neox", "mixtral"])
def test_training_moves_the_adapters_and_nothing_else(form: str, tmp_path: Path) -> None:
    model = tiny_model(form)
    plain, before = copy.deepcopy(model), logits(model)
    moving = attach(model, spec_of(rank=4, alpha=8.0))
    assert torch.equal(logits(model), before)  # B is zero
    fit(moving, spec_of(rank=4, alpha=8.0), loss_of(model), tmp_path, silent)
    trained = logits(model)
    assert not torch.allclose(trained, before, atol=1e-3)
    switched(model, on=False)
    assert torch.equal(logits(model), before)  # the reference is the model with its adapters off
    switched(model, on=True)
    factors = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}
    assert all(p.dtype == torch.float32 for p in factors.values())
    settled = moving.settle()
    assert torch.allclose(logits(settled), trained, atol=1e-5)
    names = dict(settled.named_parameters())
    assert set(names) == {n for n, _ in plain.named_parameters()}
    for name, weight in plain.named_parameters():
        path = name.removesuffix(".weight")
        if f"{path}.lora_A.default.weight" in factors:
            down, up = (factors[f"{path}.lora_{f}.default.weight"] for f in "AB")
            update = 2.0 * up @ down
            turned = form == "gpt2"
            expected = weight + (update.T if turned else update)
            assert torch.allclose(names[name], expected, atol=1e-6), name
        else:
            assert torch.equal(names[name], weight), name


def test_checkpoints_hold_the_adapter_alone_and_a_killed_run_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(steps=6, rank=4, dropout=0.3, targets=["self_attn"])

    monkeypatch.setattr(checkpoints, "apart", lambda size, model: 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", float("inf"))
    seen: list[int] = []

    def run(name: str, cut: int | None) -> PreTrainedModel:
        (tmp_path / name).mkdir(exist_ok=True)
        model = tiny_model(num_hidden_layers=2)
        seen.clear()

        def watch(done: int, total: int, note: str) -> None:
            seen.append(done)
            if done == cut:
                os.kill(os.getpid(), signal.SIGKILL)

        moving = attach(model, spec)
        fit(moving, spec, loss_of(model), tmp_path / name, hearing(watch))
        return moving.settle()

    whole = run("whole", None)
    if (child := os.fork()) == 0:
        run("cut", 4)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    kept = torch.load(tmp_path / "cut" / "resume.pt", weights_only=True)["weights"]
    assert all("lora_" in n for n in set(kept) - {"dropout"})
    assert len(kept) == 2 * 4 * 2 + 1
    resumed = run("cut", None)
    assert seen == [4, 5, 6]  # the step before the kill was kept
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_dropout_is_unbiased_and_at_work_only_where_gradients_are_taken() -> None:
    drop = Dropout(0.25, torch.Generator().manual_seed(0))
    ones = torch.ones(100_000)
    dropped = drop(ones)
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.01)
    with torch.no_grad():
        assert drop(ones) is ones


@pytest.mark.parametrize(
    ("targets", "layers"),
    [([], 14), (["q_proj"], 2), (["layers.1.mlp"], 3), (["layers.0-1.self_attn.[kv]_proj"], 4)],
)
def test_targets_are_named_by_the_patterns_of_layers(targets: list[str], layers: int) -> None:
    model = tiny_model(num_hidden_layers=2)
    found = adapted(model, LoraSpec(rank=2, targets=tuple(targets)), 0).result
    assert isinstance(found, LoraResult)
    assert found.layers == layers
    assert found.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    with pytest.raises(UserError, match=r"fits no weight.*q_proj"):
        adapted(tiny_model(), LoraSpec(targets=("q_prof",)), 0)


@pytest.fixture
def target(tokenizer: PreTrainedTokenizerBase, folder_of: Save) -> Path:
    return folder_of(tiny_model(vocab=len(tokenizer), max_position_embeddings=1024), "target")


def unlearned(target: Path, corpus: Path, out: Path, **changes: Any) -> Any:
    out.mkdir()
    settings = {"method": "npo_klr", "steps": 3, "lr": 5e-3, "batch_size": 3, "select": "last"}
    spec = UnlearnSpec.model_validate(settings | changes)
    return unlearn.run(spec, {"target": target, "corpus": corpus}, out, silent)


def test_a_saved_adapter_is_pefts_and_merges_to_the_model_that_is_saved_merged(
    target: Path, corpus: Path, tmp_path: Path
) -> None:
    lora = {"rank": 4, "alpha": 8.0}
    merged, alone, later = (tmp_path / n for n in ("merged", "alone", "later"))
    said = [
        unlearned(target, corpus, merged, train={"lora": lora}),
        unlearned(target, corpus, alone, train={"lora": lora | {"save": "adapter"}}),
    ]
    assert said[0] == said[1]
    assert said[0].share_changed > 0.1
    assert not list(alone.glob("model*"))
    found = adapter_in(str(alone))
    assert found is not None
    assert Path(found.base) == target.resolve()
    config = json.loads((alone / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8.0)
    later.mkdir()
    merge.run(MergeSpec(), {"base": target, "adapter": alone}, later, silent)
    one, two = (load_file(p / "model.safetensors") for p in (merged, later))
    assert all(torch.equal(one[name], two[name]) for name in one)
    theirs = peft.PeftModel.from_pretrained(open_model(str(target)), str(alone))
    assert torch.allclose(logits(theirs), logits(open_model(str(merged))), atol=1e-5)


def test_the_best_step_of_adapters_is_what_is_saved(
    target: Path, corpus: Path, tmp_path: Path
) -> None:
    settings = {"train": {"lora": {"rank": 4}}, "steps": 4, "probe_every": 1, "lr": 5e-2}
    said = unlearned(target, corpus, tmp_path / "a", **settings | {"select": "best"})
    again = unlearned(
        target, corpus, tmp_path / "b", **settings | {"steps": max(1, said.kept_step)}
    )
    assert again.kept_step == said.kept_step < 4
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in "ab")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_beside_bfloat16_weights_adapters_are_float32_and_a_sum_is_rounded_once(
    target: Path, corpus: Path, tmp_path: Path
) -> None:
    lora = {"rank": 4, "alpha": 8.0}
    for name, save in (("merged", "merged"), ("alone", "adapter")):
        way = {"lora": lora | {"save": save}}
        unlearned(target, corpus, tmp_path / name, train=way, weights="bf16", compute="fp32")
    factors = load_file(tmp_path / "alone" / "adapter_model.safetensors")
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    plain = load_file(target / "model.safetensors")
    for name, down in factors.items():
        assert down.dtype == torch.float32
        if "lora_A" in name:
            update = 2.0 * factors[name.replace("lora_A", "lora_B")] @ down
            weight = name.removeprefix("base_model.model.").replace("lora_A.", "")
            exact = plain[weight].bfloat16().float() + update
            differ = (stored[weight] != exact.bfloat16()).float().mean()
            assert float(differ) < 0.001  # ties that the last bit of a sum decides
            assert stored[weight].dtype == torch.bfloat16


def test_a_run_that_saves_its_adapter_is_measured_merged(tmp_path: Path) -> None:
    sweep = tmp_path / "s.toml"
    sweep.write_text(
        'name = "s"\nquantizers = ["int4"]\n[[corpus]]\nlab = "news"\n'
        '[[unlearn]]\nname = "m"\nmethod = "ga"\ntrain = {lora = {}}\n'
        '[[unlearn]]\nname = "a"\nmethod = "ga"\ntrain = {lora = {save = "adapter"}}\n'
    )
    nodes = planning.plan(read_sweep(sweep))
    measured = {
        (n.label.model, n.label.form): n.inputs["model"] for n in nodes if n.stage == "measure"
    }
    stages = {k: getattr(v, "stage", None) for k, v in measured.items()}
    assert (stages["m", "full"], stages["a", "full"]) == ("unlearn", "merge")
    (joined,) = (n for n in nodes if n.stage == "merge")
    assert {role: getattr(n, "stage", None) for role, n in joined.inputs.items()} == {
        "base": "train",
        "adapter": "unlearn",
    }


def test_training_a_base_with_adapters_gives_a_whole_model(
    target: Path, corpus: Path, tmp_path: Path
) -> None:
    spec = TrainSpec.model_validate(
        {"base": str(target), "steps": 2, "block_tokens": 128, "train": {"lora": {"rank": 2}}}
    )
    train.run(spec, {"corpus": corpus}, tmp_path, silent)
    names = {n for n, _ in open_model(str(tmp_path)).named_parameters()}
    assert names == {n for n, _ in open_model(str(target)).named_parameters()}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"train": {"lora": {}, "sure": {}}}, "train: SURE and LoRA exclude each other"),
        ({"train": {"lora": {"rnk": 3}}}, "train.lora.rnk: .*Did you mean rank"),
        ({"train": {"lora": {"rank": 0}}}, "train.lora.rank: input should be greater than 0"),
        ({"train": {"lora": {"targets": ["a..b"]}}}, "train.lora.targets.0: 'a..b' has an empty"),
        (
            {"train": {"lora": {}}, "weights": "bf16-stochastic-rounding"},
            "adapters are stepped in float32",
        ),
    ],
)
def test_faults_of_adapters_are_one_sentence(data: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        parse(UnlearnSpec, {"method": "ga"} | data, "unlearn")
    assert "faults" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [({}, "name it as base"), ({"base": "x", "save": "adapter"}, "train saves whole models")],
)
def test_training_from_scratch_has_nothing_to_stand_beside(data: dict[str, Any], says: str) -> None:
    base, save = data.get("base"), data.get("save", "merged")
    with pytest.raises(UserError, match=says):
        parse(TrainSpec, {"base": base, "train": {"lora": {"save": save}}}, "train")


@pytest.mark.parametrize("form", ["llama", "gpt2"])
def test_an_adapter_is_added_in_float32_and_rounded_once(form: str) -> None:
    model = tiny_model(form).bfloat16()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    moving = attach(model, spec_of(rank=4, alpha=8.0))
    updates = {}
    for name, factor in model.named_parameters():
        if ".lora_B." in name:
            factor.data.normal_(std=1e-2)
            update = 2.0 * factor @ model.get_parameter(name.replace(".lora_B.", ".lora_A."))
            updates[name.split(".lora_B.")[0]] = update.T if form == "gpt2" else update
    assert updates
    for name, weight in moving.settle().named_parameters():
        update = updates.pop(name.removesuffix(".weight"), torch.zeros(()))
        assert torch.equal(weight, (before[name].float() + update).bfloat16()), name
    assert not updates
