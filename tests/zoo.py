"""Tiny random models of the architectures in transformers that are opened as causal language
models."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
MOE: dict[str, Any] = {
    "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts": 4, "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "shared_expert_intermediate_size": 32,
}  # fmt: skip
# Keys and values behind a narrow matrix; None leaves a size to the architecture.
MLA: dict[str, Any] = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16, "v_head_dim": 16,
    "head_dim": None,
}  # fmt: skip
INDEXED = {**MLA, **MOE, "index_head_dim": 16, "index_n_heads": 2, "index_topk": 24}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 32}
DELTA = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
WINDOW = {"sliding_window": 24}
PER_LAYER = {
    **WINDOW, "layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 8,
}  # fmt: skip
DECODER = {"is_decoder": True}
NO_HEAD = {"head_dim": None}

# Nothing but SIZES is needed by these.
SIMPLE = (
    "llama", "qwen2", "qwen3", "gemma", "gpt2", "gpt_neox", "gpt_bigcode", "gpt_neox_japanese",
    "openai-gpt", "ctrl", "biogpt", "bloom",
    "mpt", "phi", "phi3", "stablelm", "starcoder2", "cohere", "olmo", "olmo2", "granite", "glm",
    "glm4", "helium", "nemotron", "persimmon",
    "diffllama", "bitnet", "arcee", "smollm3", "seed_oss", "ernie4_5", "nanochat",
    "hunyuan_v1_dense", "apertus", "jais2", "ministral3",
    "hyperclovax", "fuyu", "mamba", "falcon_mamba", "camembert", "ernie", "big_bird", "xlm", "doge",
    "cpmant",
)  # fmt: skip
EXPERTS = (
    "mixtral", "qwen2_moe", "qwen3_moe", "phimoe", "olmoe", "flex_olmo", "granitemoe", "dots1",
    "glm4_moe", "minimax_m2", "jetmoe",
)  # fmt: skip
WINDOWED = ("mistral", "gemma2", "gemma3_text", "cohere2", "exaone4", "olmo3")
DECODERS = ("bert", "roberta", "electra", "xlm-roberta")
# The others with what each needs, by model_type.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    **{name: {} for name in SIMPLE},
    **dict.fromkeys(EXPERTS, MOE),
    **dict.fromkeys(WINDOWED, WINDOW),
    **dict.fromkeys(DECODERS, DECODER),
    # Attention to everything.
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "xglm": {"ffn_dim": 128, "attention_heads": 4},
    "falcon": {**NO_HEAD, "multi_query": True},
    "gptj": {**NO_HEAD, "rotary_dim": 8},
    "codegen": {**NO_HEAD, "rotary_dim": 8},
    # Mixtures of experts, narrow keys, attention to chosen tokens.
    "ernie4_5_moe": {**MOE, "moe_num_experts": 4, "moe_k": 2},
    "deepseek_v2": {**MLA, **MOE},
    "deepseek_v3": {**MLA, **MOE},
    "glm4_moe_lite": {**MLA, **MOE},
    "deepseek_v32": INDEXED,
    "glm_moe_dsa": INDEXED,
    "dbrx": {
        **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim",
        "max_position_embeddings")),
        "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 512,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    # Windows and chunks.
    "gpt_oss": {**MOE, **WINDOW},
    "mimo_v2_flash": {**MOE, **WINDOW},
    "afmoe": {**MOE, **WINDOW},
    "llama4_text": {**MOE, "attention_chunk_size": 24},
    "gpt_neo": {"num_hidden_layers": None, "num_layers": 2, "attention_types": [[["global",
    "local"], 1]], "window_size": 24},
    "gemma3n_text": {**PER_LAYER, "laurel_rank": 4, "activation_sparsity_pattern": None},
    "gemma4_text": PER_LAYER,
    "modernbert-decoder": {"local_attention": 24},
    # Layers that are no attention, alone or between others.
    "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2, "state_size": 16, "n_groups": 2,
    "chunk_size": 32},
    "rwkv": {"context_length": 512},
    "xlstm": {**NO_HEAD, "num_heads": 4, "num_blocks": 2},
    "bamba": {**MAMBA2, "attn_layer_indices": [1]},
    "falcon_h1": {**MAMBA2, "mamba_d_ssm": 128},
    "granitemoehybrid": {**MAMBA2, **MOE, **NO_HEAD, "layer_types": ["mamba", "attention"]},
    "jamba": {
        **NO_HEAD, "use_mamba_kernels": False, "num_hidden_layers": 4, "attn_layer_period": 2,
        "attn_layer_offset": 1, "mamba_d_state": 8,
        "num_experts": 2,
    },
    "zamba2": {
        **NO_HEAD, "num_key_value_heads": None, "num_hidden_layers": 3, "mamba_d_state": 8,
        "n_mamba_heads": 8, "mamba_headdim": 16,
        "chunk_size": 32, "use_mamba_kernels": False, "layers_block_type": ["mamba", "hybrid",
        "mamba"], "num_mem_blocks": 1,
    },
    "nemotron_h": {
        **MOE, "layers_block_type": ["mamba", "attention", "moe", "mamba"], "num_hidden_layers": 4,
        "mamba_num_heads": 8,
        "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2, "chunk_size": 32,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 24, "lru_width": 64},
    "qwen3_next": {**DELTA, **MOE},
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": {**DELTA, **MOE},
    "olmo_hybrid": {**NO_HEAD, "layer_types": DELTA["layer_types"]},
    "kimi_linear": {**MLA, **MOE, "linear_head_dim": 16, "linear_num_heads": 4,
    "layer_types": DELTA["layer_types"]},
    "minimax": {**MOE, "layer_types": DELTA["layer_types"], "block_size": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {**MOE, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    # Other ways to attend, and half of an encoder-decoder.
    "reformer": {
        **DECODER, "num_key_value_heads": None, "attn_layers": ["local", "lsh"],
        "attention_head_size": 16, "axial_pos_embds": False,
    },
    "prophetnet": {"num_hidden_layers": None, "num_decoder_layers": 2, "num_encoder_layers": 1,
    "num_decoder_attention_heads": 4},
}  # fmt: skip


def shape_of(name: str, vocabulary: int) -> dict[str, Any]:
    """Everything that the configuration of an architecture is given."""
    own = ARCHITECTURES[name]
    more = (
        {"vocab_size_per_layer_input": vocabulary} if "hidden_size_per_layer_input" in own else {}
    )
    return {
        k: v
        for k, v in (SIZES | own | more | {"vocab_size": vocabulary}).items()
        if v is not None or k == "activation_sparsity_pattern"
    }


@torch.no_grad()
def zoo_model(name: str, vocabulary: int) -> PreTrainedModel:
    """A random model all of whose weights matter: also biases, decays and norms differ from what
    they begin with."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **shape_of(name, vocabulary))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    return model
