"""What quantizers touch: names and shapes of public architectures, against what their modules
are."""

import pytest

from remnant.functional.touched import KINDS, LEFT_ALONE, is_quantized_by_default, kind_of

# (name, shape, kind) as transformers writes them: Llama, GPT-2, NeoX, Bloom, OPT, Mixtral, gpt-oss,
# Qwen3-Next, Mamba, RWKV, Griffin, LFM2.
KNOWN = (
    ("model.layers.0.self_attn.q_proj.weight", (64, 64), "linear"),
    ("model.layers.0.mlp.gate_proj.weight", (128, 64), "linear"),
    ("transformer.h.0.attn.c_attn.weight", (64, 192), "linear"),
    ("transformer.h.0.ln_1.weight", (64,), "norm"),
    ("transformer.wpe.weight", (128, 64), "embedding"),
    ("gpt_neox.embed_in.weight", (256, 64), "embedding"),
    ("embed_out.weight", (256, 64), "lm_head"),
    ("transformer.word_embeddings_layernorm.weight", (64,), "norm"),
    ("model.decoder.embed_positions.weight", (130, 64), "embedding"),
    ("model.layers.0.self_attn.q_proj.bias", (64,), "bias"),
    ("model.layers.0.block_sparse_moe.gate.weight", (8, 64), "router"),
    ("model.layers.0.block_sparse_moe.experts.0.w1.weight", (128, 64), "linear"),
    ("model.layers.0.mlp.experts.gate_up_proj", (8, 256, 64), "experts"),
    ("model.layers.0.mlp.experts.gate_up_proj_bias", (8, 256), "bias"),
    ("model.layers.0.mlp.router.weight", (8, 64), "router"),
    ("model.layers.0.mlp.shared_expert_gate.weight", (1, 64), "router"),
    ("model.layers.0.mlp.gate.e_score_correction_bias", (8,), "bias"),
    ("model.layers.0.self_attn.sinks", (8,), "state"),
    ("model.layers.0.linear_attn.A_log", (8,), "state"),
    ("model.layers.0.linear_attn.dt_bias", (8,), "state"),
    ("model.layers.0.linear_attn.conv1d.weight", (192, 1, 4), "conv"),
    ("model.layers.0.linear_attn.in_proj_qkvz.weight", (256, 64), "linear"),
    ("backbone.layers.0.mixer.A_log", (128, 16), "state"),
    ("backbone.layers.0.mixer.D", (128,), "state"),
    ("backbone.layers.0.mixer.dt_proj.weight", (128, 4), "linear"),
    ("rwkv.blocks.0.attention.time_mix_key", (1, 1, 64), "state"),
    ("model.layers.0.temporal_block.rg_lru.input_gate_weight", (4, 16, 16), "state"),
    ("model.layers.0.temporal_block.conv_1d.weight", (64, 1, 4), "conv"),
    ("model.layers.0.conv.conv.weight", (64, 1, 3), "conv"),
    ("model.layers.0.conv.in_proj.weight", (192, 64), "linear"),
    ("model.layers.0.self_attn.output_gate.weight", (64, 64), "linear"),
    ("model.norm.weight", (64,), "norm"),
    ("lm_head.weight", (256, 64), "lm_head"),
)


@pytest.mark.parametrize(("name", "shape", "kind"), KNOWN, ids=[k[0] for k in KNOWN])
def test_a_weight_is_known_by_its_name_and_shape(
    name: str, shape: tuple[int, ...], kind: str
) -> None:
    assert kind in KINDS
    assert kind_of(name, shape) == kind
    assert is_quantized_by_default(name, shape) == (kind in ("linear", "experts"))
    assert (kind in LEFT_ALONE) != is_quantized_by_default(name, shape)
