"""What llama.cpp calls each architecture, which facts its file must state, and how its weights are
kept there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from remnant.errors import UserError

Array = NDArray[np.float32]


class Family(NamedTuple):
    """One architecture of llama.cpp.

    Attributes:
        name: llama.cpp's.
        state: writes the architecture's facts with a GGUFWriter.
        keep: the form of a weight of transformers in the file, by its name.
        give: a matrix of the file in its form in transformers.
    """

    name: str
    state: Callable[[Any, Any], None]
    keep: Callable[[Array, str, Any], Array]
    give: Callable[[Array, str, Any], Array]


def family(config: PreTrainedConfig) -> Family:
    """The family of a model.

    Raises:
        UserError: llama.cpp's form of this architecture is not known here.
    """
    kind = str(config.model_type)
    if kind not in FAMILIES:
        raise UserError(
            f"GGUF files of '{kind}' models are not written here.",
            f"Known: {', '.join(FAMILIES)}; or use llama.cpp's converter.",
        )
    return FAMILIES[kind]


def _state_shape(writer: Any, config: Any, inner: int) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)


def _head_size(config: Any) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _state_rotary(writer: Any, config: Any) -> None:
    _state_shape(writer, config, config.intermediate_size)
    size = _head_size(config)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(size)
    rope = config.rope_parameters
    writer.add_rope_freq_base(_theta(rope.get("full_attention", rope)))


def _state_gemma(writer: Any, config: Any) -> None:
    _state_rotary(writer, config)
    pattern = [
        "full_attention" if (i + 1) % GEMMA_FULL == 0 else "sliding_attention"
        for i in range(config.num_hidden_layers)
    ]
    if (
        config.layer_types != pattern
        or config.final_logit_softcapping
        or config.attn_logit_softcapping
    ):
        raise UserError(
            (
                "llama.cpp has no form of this Gemma 3: its order of sliding layers, or capped "
                "logits, are not the published ones."
            ),
            "Deploy another format of this model.",
        )
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base_swa(_theta(config.rope_parameters["sliding_attention"]))


def _state_gpt2(writer: Any, config: Any) -> None:
    _state_shape(writer, config, config.n_inner or 4 * config.n_embd)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _theta(rope: Any) -> float:
    """The base of the rotary angles; scaled ones are not known here."""
    if rope.get("rope_type", "default") != "default":
        raise UserError(
            f"Rotary scaling '{rope['rope_type']}' is not written to GGUF here.",
            "Use llama.cpp's own converter.",
        )
    return float(rope["rope_theta"])


def _same(values: Array, name: str, config: Any) -> Array:
    return values


def _pairs(values: Array, name: str, config: Any) -> Array:
    """Rows of a head reordered from halves (transformers) to pairs (llama.cpp)."""
    if not (heads := _heads_of(name, config)):
        return values
    shape = values.shape
    return np.ascontiguousarray(
        values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
    )


def _halves(values: Array, name: str, config: Any) -> Array:
    if not (heads := _heads_of(name, config)):
        return values
    shape = values.shape
    return (
        values.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
    )


def _heads_of(name: str, config: Any) -> int:
    if "q_proj" in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if "k_proj" in name else 0


def _gemma_norms(values: Array, name: str, config: Any) -> Array:
    """Gemma's norms scale by 1 + weight, llama.cpp's by the weight.

    Where it scales scores otherwise, the queries' norm makes up for it.
    """
    if not name.endswith("norm.weight"):
        return values
    scaled_by = (
        config.hidden_size / config.num_attention_heads
        if config.num_hidden_layers == GEMMA_27B
        else _head_size(config)
    )
    factor = (
        (scaled_by / config.query_pre_attn_scalar) ** 0.5 if name.endswith("q_norm.weight") else 1.0
    )
    return ((values + 1) * factor).astype(np.float32)


def _turned(values: Array, name: str, config: Any) -> Array:
    """GPT-2's layers are kept as [in, out] by transformers."""
    layer = values.ndim == 2 and ".c_" in name
    return np.ascontiguousarray(values.T) if layer else values


# Every so many layers of Gemma 3 one looks back without limit; by so many layers llama.cpp knows
# the size that scales scores otherwise.
GEMMA_FULL, GEMMA_27B = 6, 62

FAMILIES = {
    "llama": Family("llama", _state_rotary, _pairs, _halves),
    "mistral": Family("llama", _state_rotary, _pairs, _halves),
    "qwen3": Family("qwen3", _state_rotary, _same, _same),
    "gemma3_text": Family("gemma3", _state_gemma, _gemma_norms, _same),
    "gpt2": Family("gpt2", _state_gpt2, _turned, _turned),
}
