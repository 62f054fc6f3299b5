"""Small models from scratch, in any architecture that transformers knows."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.records import TrainSpec


def fresh_model(spec: TrainSpec, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A randomly initialised float32 model of the shape in ``spec``.

    Equal seeds give equal weights.

    Raises:
        UserError: transformers does not know the architecture, or the shape is not possible.
    """
    shape: dict[str, Any] = {
        "hidden_size": spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "intermediate_size": spec.intermediate,
        "max_position_embeddings": spec.context,
        "head_dim": spec.hidden // spec.heads,
        "tie_word_embeddings": False,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if spec.init_std is not None:
        shape["initializer_range"] = spec.init_std
    try:
        if hasattr(AutoConfig.for_model(spec.architecture), "n_inner"):  # GPT-2's name for it
            shape["n_inner"] = spec.intermediate
        config = AutoConfig.for_model(spec.architecture, **shape)
        with torch.random.fork_rng():
            torch.manual_seed(spec.seed)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"No model of architecture '{spec.architecture}' with this shape: {error}."
        ) from error
    return model
