"""What ends badly says so: numbers that are none, groups that do not divide, runs that unlearned
nothing or too much."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.formats.table import FORMATS
from remnant.functional import quantizers
from remnant.functional.touched import LEFT_ALONE
from remnant.methods import step
from remnant.model.load import matrices, open_model
from remnant.records import SureSpec, TransformSpec, UnlearnResult, UnlearnSpec
from remnant.stages import transform, unlearn
from remnant.testing import tiny_model
from remnant.trainable.sure import find
from remnant.trainable.trainable import Trainable
from remnant.training import loop
from tests.conftest import silent

Save = Callable[[PreTrainedModel, str], Path]
OWN = [name for name, found in FORMATS.items() if found.path.startswith("remnant.functional.")]


def weights(rows: int = 4, columns: int = 128) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "value"), itertools.product(OWN, [float("nan"), float("inf"), -float("inf")])
)
def test_no_quantizer_turns_what_is_no_number_into_one(name: str, value: float) -> None:
    weight = weights()
    weight[1, 5] = value
    with pytest.raises(ValueError, match="not finite"):
        step(name).method.load()(weight)


@pytest.mark.parametrize(
    ("name", "params", "size"),
    [
        ("cast", {"dtype": "float16"}, 7e4),
        ("q8_0", {}, 9e6),
        ("q4_0", {}, 6e5),
        ("rtn", {"scheme": "asym"}, 3.4e38),
    ],
)
def test_what_leaves_the_range_of_a_narrow_float_is_refused(
    name: str, params: dict[str, Any], size: float
) -> None:
    weight = weights()
    weight[0, 0], weight[0, 1] = size, -size
    with pytest.raises(ValueError, match="beyond the range"):
        getattr(quantizers, name)(weight, **params)
    weight[0, :2] = torch.tensor([size, -size]) / 1e4
    assert bool(getattr(quantizers, name)(weight, **params).weight.isfinite().all())


def test_transform_names_the_weight_that_overflows(
    folder_of: Save, model: PreTrainedModel, tmp_path: Path
) -> None:
    own: Any = model
    own.model.layers[1].mlp.down_proj.weight.data[2, 3] = 1e6
    with pytest.raises(
        UserError, match=r"model\.layers\.1\.mlp\.down_proj\.weight .*beyond the range"
    ):
        transform.run(step("fp16").spec, {"model": folder_of(model, "m")}, tmp_path, silent)


@pytest.mark.parametrize("broken", ["weight", "scale", "in place"])
def test_a_users_quantizer_that_makes_no_numbers_is_refused_by_name(
    broken: str, folder_of: Save, model: PreTrainedModel, tmp_path: Path
) -> None:
    code = (
        "from remnant.functional.quantizers import rtn\n\n\ndef own(weight):\n    found = "
        "rtn(weight)\n"
    )
    code += (
        f"    found.{'weight' if broken == 'in place' else broken}[0] = float('nan')\n    return "
        "found\n"
    )
    if broken == "in place":
        code = (
            "def own(model, names):\n    model.model.norm.weight.data[0] = float('inf')\n    "
            "return {}\n"
        )
    (tmp_path / "own.py").write_text(code)
    spec = TransformSpec(use=f"{tmp_path}/own.py:own")
    with pytest.raises(UserError, match="not finite"):
        transform.run(spec, {"model": folder_of(model, "m")}, tmp_path, silent)
    assert not (tmp_path / "codes.safetensors").exists()


def test_layers_that_a_group_does_not_divide_stay_as_they_are_and_are_named(
    folder_of: Save, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    folder = folder_of(tiny_model(vocab=len(tokenizer), intermediate_size=96), "m")
    for name in ("int4-g64", "int3-g64-asym"):
        (tmp_path / name).mkdir()
        said = transform.run(step(name).spec, {"model": folder}, tmp_path / name, silent)
        left = [f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)]
        assert list(said.left_out) == left
        before, after = (
            open_model(str(folder)).state_dict(),
            open_model(str(tmp_path / name)).state_dict(),
        )
        chosen = [m.name for m in matrices(open_model(str(folder)))]
        assert [n for n in chosen if torch.equal(before[n], after[n])] == left
        assert not set(left) & {
            key.removesuffix(".codes") for key in load_file(tmp_path / name / "codes.safetensors")
        }
        assert not set(left) & set(said.changed)


def test_what_nobody_quantizes_is_left_alone_by_default_and_can_be_asked_for(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert TransformSpec(use="rtn").skip == LEFT_ALONE
    hybrid = tiny_model(
        "qwen3_next",
        vocab=len(tokenizer),
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        decoder_sparse_step=1,
        layer_types=["linear_attention", "full_attention"],
    )
    kinds = {m.name: m.kind for m in matrices(hybrid, skip=())}
    usual = {m.name for m in matrices(hybrid)}
    assert {"A_log", "conv1d", "gate", "shared_expert_gate"} <= {
        part for n in set(kinds) - usual for part in n.split(".")
    }
    assert {kinds[n] for n in usual} == {"linear", "experts"}
    assert {kinds[n] for n in set(kinds) - usual} == {
        "lm_head",
        "embedding",
        "norm",
        "router",
        "conv",
        "state",
    }
    # A word that is no kind still leaves out what has it in its name.
    assert not any("layers.0." in m.name for m in matrices(hybrid, skip=(*LEFT_ALONE, "layers.0.")))


@pytest.fixture
def target(folder_of: Save, model: PreTrainedModel) -> Path:
    return folder_of(model, "target")


@pytest.fixture
def _knowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes that begin at one half and fall a little every time, so that no run stops before its
    last step."""
    monkeypatch.setattr(
        unlearn, "make_probe", lambda *rest: map(falling, itertools.count()).__next__
    )


def falling(step: int) -> unlearn.Probe:
    """The probe of a step."""
    return unlearn.Probe(0.5 - step / 100, 0.5 - step / 1000)


def unlearned(target: Path, corpus: Path, out: Path, **more: Any) -> UnlearnResult:
    out.mkdir()
    given: dict[str, Any] = {
        "method": "ga",
        "steps": 2,
        "lr": 1e-3,
        "batch_size": 4,
        "probe_every": 1,
    } | more
    return unlearn.run(UnlearnSpec(**given), {"target": target, "corpus": corpus}, out, silent)


def test_a_rate_too_small_for_the_dtype_is_said_to_have_changed_nothing(
    target: Path, corpus: Path, tmp_path: Path
) -> None:
    said = {
        lr: unlearned(target, corpus, tmp_path / f"{lr}", lr=lr, weights="bf16")
        for lr in (1e-20, 1e-8, 1e-3)
    }
    assert said[1e-20].ended.startswith("Nothing was unlearned: no weight changed")
    assert "(bf16, learning rate 1e-20)" in said[1e-20].ended
    assert said[1e-20].share_changed == 0.0
    assert said[1e-8].ended.startswith("Nothing was unlearned: only 0.0")
    assert 0 < said[1e-8].share_changed < 0.01
    assert "changed" not in said[1e-3].ended
    assert said[1e-3].share_changed > 0.5


@pytest.mark.usefixtures("_knowing")
def test_with_the_last_step_chosen_the_summary_names_the_step_that_is_saved(
    target: Path, corpus: Path, tmp_path: Path
) -> None:
    said = unlearned(target, corpus, tmp_path / "a", select="last", steps=3)
    assert said.chosen
    assert said.chosen == said.probes[-1]
    assert said.chosen.step == said.steps == 3
    best = unlearned(target, corpus, tmp_path / "b", select="best", steps=3)
    assert best.chosen in best.probes[1:]


def test_how_a_run_ended_is_told_by_its_probes() -> None:
    spec = UnlearnSpec(method="ga", steps=1, utility_floor=0.9, stop_utility=0.5)
    origin = {"step": 0, "forget": 0.8, "retain": 0.6}
    told = {}
    for name, forget, retain in (
        ("gone", 0.1, 0.2),
        ("floor", 0.1, 0.5),
        ("kept", 0.8, 0.6),
        ("hardly", 0.75, 0.6),
        ("good", 0.3, 0.59),
    ):
        chosen = {"step": 1, "forget": forget, "retain": retain}
        told[name] = unlearn.ended(spec, 0.9, [origin, chosen], chosen)
    assert told["gone"].startswith("The utility is gone: retain accuracy 0.600 -> 0.200, below 50%")
    assert told["floor"].startswith("The utility floor of 90% was not met by any step")
    assert told["kept"].startswith("Nothing was forgotten")
    assert told["hardly"].startswith("Hardly anything was forgotten: forget accuracy 0.800")
    assert told["good"].startswith("Less is known and the utility floor is met")
    for name in ("forget", "retain"):
        ignorant = origin | {name: 0.04}
        chosen = {"step": 1, "forget": 0.01, "retain": 0.05}  # more than the target had
        said = unlearn.ended(spec, 0.9, [ignorant, chosen], chosen)
        assert said.startswith(f"The target itself shows too little of the {name} text")


def test_weights_that_diverged_in_the_last_step_are_not_saved(
    target: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = loop.fit

    def diverging(moving: Trainable, *rest: Any) -> Any:
        found = fit(moving, *rest)
        next(moving.model.parameters()).data[0] = float("nan")
        return found

    monkeypatch.setattr(unlearn, "fit", diverging)
    with pytest.raises(UserError, match=r"not finite.*diverged"):
        unlearned(target, corpus, tmp_path / "a", select="last")
    assert not (tmp_path / "a/model.safetensors").exists()


def test_the_score_of_a_norms_weight_is_its_gradient_whatever_the_vectors_length() -> None:
    """One row of a vector is one number: with all matrices silent, the loss's slope at it is the
    score."""
    model = tiny_model()
    ids = torch.arange(12)[None]
    spec = SureSpec(unit="row", percentile=0.0, scaled=True, also=("norm",))

    def loss() -> Any:
        yield model(input_ids=ids, labels=ids).loss

    whole = find(model, spec, loss).result.moving_units
    # Second implementation: every row's norm over the square root of its own length.
    model.zero_grad()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model(input_ids=ids, labels=ids).loss.backward()
    scores = []
    for m in matrices(model, skip=("lm_head", "embedding")):
        grad = m.parameter.grad
        assert grad is not None
        for row in grad:
            scores.append((m.name, float(row.norm()) / max(1, row.numel()) ** 0.5))
    assert whole == len(scores)
    ordered = sorted(s for _, s in scores)
    for share in (0.5, 0.9, 0.97):
        limit = ordered[int(share * len(ordered))]
        moving = find(model, spec.model_copy(update={"percentile": 100 * share}), loss).moving
        chosen = {id(p.parameter): int(p.index[-1].sum()) for p in moving}
        for m in matrices(model, skip=("lm_head", "embedding")):
            expected = sum(s > limit for n, s in scores if n == m.name)
            assert abs(chosen.get(id(m.parameter), 0) - expected) <= 1


def test_a_broken_file_does_not_reach_a_quantizer(
    folder_of: Save, model: PreTrainedModel, tmp_path: Path
) -> None:
    folder = folder_of(model, "m")
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"up_proj\.weight .*not finite"):
        transform.run(step("nf4").spec, {"model": folder}, tmp_path, silent)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
