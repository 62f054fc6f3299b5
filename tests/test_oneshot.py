"""GPTQ, AWQ and AutoRound through the library: codes on the grid, less output error than rounding,
the same twice, limits said."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.functional.quantized import Quantized
from remnant.functional.quantizers import rtn
from remnant.functional.touched import LEFT_ALONE
from remnant.lab.tokenizer import train_tokenizer
from remnant.methods import step
from remnant.model.load import matrices, open_model, save_model
from remnant.runtimes import bnb
from remnant.runtimes.order import Order
from remnant.stages import transform
from remnant.testing import tiny_model
from tests.conftest import silent

pytest.importorskip("llmcompressor", reason="the extra 'oneshot' is not installed")
from remnant.runtimes import oneshot

# AutoRound learns its rounding, which takes minutes on a busy machine.
SHOTS = ["gptq", "awq", pytest.param("autoround", marks=pytest.mark.slow)]


def outlier_model() -> PreTrainedModel:
    """A model in which a few channels of every norm are 20 times larger, as in real ones."""
    model = tiny_model(
        vocab=64, hidden_size=128, intermediate_size=256, head_dim=32, num_key_value_heads=4
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "layernorm" in name:
                p[::16] *= 20.0
    return model


def batches(count: int = 24, length: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 64, (1, length), generator=generator) for _ in range(count)]


def inputs_of(model: PreTrainedModel, texts: list[Tensor]) -> dict[str, Tensor]:
    """What enters every linear layer of the untouched model."""
    found: dict[str, list[Tensor]] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            hooks.append(
                module.register_forward_pre_hook(
                    lambda m, args, name=name: found.setdefault(name, []).append(args[0][0])
                )
            )
    with torch.no_grad():
        for text in texts:
            model(input_ids=text)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(rows) for name, rows in found.items()}


def final_error(model: PreTrainedModel, quantized: PreTrainedModel, texts: list[Tensor]) -> float:
    with torch.no_grad():
        return sum(
            float((model(input_ids=t).logits - quantized(input_ids=t).logits).square().mean())
            for t in texts
        )


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    """From a folder, as the library looks up the configuration by the model's path."""
    folder = tmp_path_factory.mktemp("outliers")
    outlier_model().save_pretrained(folder)
    return open_model(str(folder))


def quantize(model: PreTrainedModel, name: str) -> tuple[PreTrainedModel, dict[str, Quantized]]:
    copied = copy.deepcopy(model)
    more = {"steps": 8} if name == "autoround" else {}
    found = getattr(oneshot, name)(
        copied,
        train_tokenizer(["a b c"], 260),
        batches(),
        [m.name for m in matrices(copied)],
        **more,
    )
    return copied, found


def test_gptqs_layer_output_error_is_below_rounding(original: PreTrainedModel) -> None:
    given = inputs_of(original, batches())
    plain = {m.name: m.read().clone() for m in matrices(original)}
    _, found = quantize(original, "gptq")
    errors: dict[str, float] = {"gptq": 0.0, "rtn": 0.0}
    for name, weight in plain.items():
        x = given[name.removesuffix(".weight")]
        scale = float((x @ weight.T).square().mean())
        errors["gptq"] += float((x @ (found[name].weight - weight).T).square().mean()) / scale
        errors["rtn"] += (
            float((x @ (rtn(weight, scheme="half-step").weight - weight).T).square().mean()) / scale
        )
    assert errors["gptq"] < 0.8 * errors["rtn"]


@pytest.mark.parametrize("name", SHOTS)
def test_the_models_output_error_is_below_rounding(name: str, original: PreTrainedModel) -> None:
    rounded = copy.deepcopy(original)
    for m in matrices(rounded):
        m.write(rtn(m.read(), scheme="asym" if name == "awq" else "half-step").weight)
    unseen = batches(40)[24:]
    assert final_error(original, quantize(original, name)[0], unseen) < final_error(
        original, rounded, unseen
    )


def first_outputs(model: PreTrainedModel, texts: list[Tensor]) -> list[Tensor]:
    """Outputs of the first block's projections, before which nothing is rounded."""
    found: list[Tensor] = []
    attention = model.get_submodule("model.layers.0.self_attn")
    layers = [attention.get_submodule(n) for n in ("q_proj", "k_proj", "v_proj")]
    hooks = [
        layer.register_forward_hook(lambda m, args, out: found.append(out)) for layer in layers
    ]
    with torch.no_grad():
        for text in texts:
            model(input_ids=text)
    for hook in hooks:
        hook.remove()
    return found


def test_awqs_layer_output_error_is_below_rounding(original: PreTrainedModel) -> None:
    rounded = copy.deepcopy(original)
    for m in matrices(rounded):
        m.write(rtn(m.read(), scheme="asym").weight)
    texts = batches()
    plain = first_outputs(original, texts)

    def error(net: PreTrainedModel) -> float:
        pairs = zip(plain, first_outputs(net, texts), strict=True)
        return sum(float((a - b).square().mean()) for a, b in pairs)

    assert error(quantize(original, "awq")[0]) < 0.8 * error(rounded)


@pytest.mark.parametrize("name", SHOTS)
def test_codes_decode_to_the_dense_copy_and_runs_agree(
    name: str, original: PreTrainedModel
) -> None:
    dense, found = quantize(original, name)
    again, _ = quantize(original, name)
    for own, other in zip(matrices(dense), matrices(again), strict=True):
        q = found[own.name]
        zero = q.zero if q.zero is not None else 0.0
        assert torch.equal((q.codes.float() - zero) * q.scale, own.read())
        assert int(q.codes.max()) <= 7
        assert int(q.codes.min()) >= -8
        assert torch.equal(own.read(), other.read())


def test_a_saved_copy_opens_as_a_plain_model(
    tokenizer: PreTrainedTokenizerBase, corpus: Path, tmp_path: Path
) -> None:
    model = tiny_model(vocab=len(tokenizer), max_position_embeddings=1024)
    save_model(model, tokenizer, tmp_path / "m")
    for name in ("gptq4", "awq4", "gptq3", "gptq8-g32"):
        out = tmp_path / name
        out.mkdir()
        said = transform.run(
            step(name, {"calibration_tokens": 48}).spec,
            {"model": tmp_path / "m", "corpus": corpus},
            out,
            silent,
        )
        assert said.calibration
        assert said.calibration.samples > 0
        text = torch.arange(10)[None]
        with torch.no_grad():
            assert bool(open_model(str(out))(input_ids=text).logits.isfinite().all())
        assert "quantization_config" not in (out / "config.json").read_text()


def test_layers_that_the_library_cannot_quantize_are_refused(
    tokenizer: PreTrainedTokenizerBase, corpus: Path, tmp_path: Path
) -> None:
    save_model(tiny_model("gpt2", vocab=len(tokenizer)), tokenizer, tmp_path / "m")
    out = tmp_path / "o"
    out.mkdir()
    with pytest.raises(UserError, match="linear layers only"):
        transform.run(step("gptq4").spec, {"model": tmp_path / "m", "corpus": corpus}, out, silent)


def corpus_inputs(
    model: PreTrainedModel, folder: Path, corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Path]:
    save_model(model, tokenizer, folder)
    return {"model": folder, "corpus": corpus}


def test_layers_that_the_groups_do_not_divide_are_left_out_and_named(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    odd = tiny_model(vocab=len(tokenizer), intermediate_size=96)
    inputs = corpus_inputs(odd, tmp_path / "m", corpus, tokenizer)
    (tmp_path / "q").mkdir()
    said = transform.run(
        step("gptq4-g64", {"calibration_samples": 2}).spec, inputs, tmp_path / "q", silent
    )
    assert list(said.left_out) == [f"model.layers.{i}.mlp.down_proj.weight" for i in range(2)]
    copied = open_model(str(tmp_path / "q")).state_dict()
    assert torch.equal(copied[said.left_out[0]], odd.state_dict()[said.left_out[0]])
    (tmp_path / "r").mkdir()
    with pytest.raises(UserError, match="Groups of 128 divide the columns of no layer"):
        transform.run(step("ct-w4a16").spec, inputs, tmp_path / "r", silent)


@pytest.mark.parametrize(
    ("architecture", "shape", "name", "says"),
    [
        (
            "opt",
            {"ffn_dim": 128, "word_embed_proj_dim": 64},
            "awq4",
            "cannot quantize this 'opt' model with awq",
        ),
    ],
)
def test_what_the_library_cannot_do_is_one_sentence(
    architecture: str,
    shape: dict[str, int],
    name: str,
    says: str,
    corpus: Path,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    inputs = corpus_inputs(
        tiny_model(architecture, vocab=len(tokenizer), **shape), tmp_path / "m", corpus, tokenizer
    )
    (tmp_path / "q").mkdir()
    with pytest.raises(UserError, match=says):
        transform.run(step(name, {"calibration_samples": 2}).spec, inputs, tmp_path / "q", silent)


# Sizes of mixtures of experts that transformers keeps as one weight per layer.
FUSED: dict[str, dict[str, int]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 64, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize("architecture", FUSED)
def test_experts_in_one_weight_are_refused_by_name_or_left_out_when_that_is_said(
    architecture: str, corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    inputs = corpus_inputs(
        tiny_model(architecture, vocab=len(tokenizer), **FUSED[architecture]),
        tmp_path / "m",
        corpus,
        tokenizer,
    )
    says = r"llm-compressor quantizes linear layers only, and model\.layers\.0\.mlp\.experts\."
    for name in ("gptq4", "awq4", "ct-w8a16"):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=f"{says}gate_up_proj is all experts in one weight"):
            transform.run(step(name).spec, inputs, tmp_path / name, silent)
    settings = {"skip": [*LEFT_ALONE, "experts"], "calibration_samples": 2}
    said = transform.run(step("gptq4", settings).spec, inputs, tmp_path / "gptq4", silent)
    before = open_model(str(tmp_path / "m")).state_dict()
    after = open_model(str(tmp_path / "gptq4")).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(said.changed)
    assert all("self_attn" in name for name in changed)
    assert len(changed) == 8


@pytest.mark.parametrize("architecture", FUSED)
def test_a_library_that_would_leave_experts_alone_in_silence_is_not_asked(
    architecture: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Of gpt-oss the files were near enough to the dense copy to pass for it."""
    pytest.importorskip("bitsandbytes")
    model = tiny_model(architecture, vocab=len(tokenizer), **FUSED[architecture])
    names = [m.name for m in matrices(model)]
    order = Order(
        "bnb-4bit", {"levels": "nf4", "block": 64, "double": False}, model, tokenizer, names,
        tmp_path, torch.zeros(1, 4, dtype=torch.long),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"experts\.gate_up_proj is all experts in one weight"):
        bnb.save(order, tmp_path)
