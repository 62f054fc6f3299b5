"""How long a text a model takes, how far back it looks, and what a token costs in memory, whatever
its configuration calls these.
"""

import re
from typing import Any

from torch import nn
from transformers import PreTrainedModel

# No limit that is known: layers without places, or places that are only told by their distance.
ENDLESS = 1 << 30
CONTEXT = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length",
    "max_seq_length", "model_max_length",
    "max_context_length", "max_target_positions", "seq_length", "seq_len", "context_length",
)  # fmt: skip
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
WIDTH = ("hidden_size", "n_embd", "d_model", "dim", "model_dim", "embed_dim")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads")
HEADS_KEPT = (
    "num_key_value_heads",
    "n_head_kv",
    "num_kv_heads",
    "multi_query_group_num",
    "n_kv_heads",
)
HEAD = ("head_dim", "kv_channels", "d_kv", "attention_head_dim")
INNER = (
    "intermediate_size",
    "n_inner",
    "ffn_dim",
    "d_ff",
    "ffn_hidden_size",
    "inner_dim",
    "decoder_ffn_dim",
)
STATE = ("state_size", "ssm_state_size", "mamba_d_state", "d_state", "mamba_state_dim")
CHUNK = ("chunk_size", "mamba_chunk_size")
EXPAND = ("expand", "mamba_expand", "expand_factor")

_WINDOW = re.compile(r"(?:^|_)window(?:_size)?$|^attention_chunk_size$|^index_topk$")
_PLACES = re.compile(
    r"(?:^|[._])(?:wpe|position_embeddings?|embed_positions?|pos_emb(?:ed(?:ding)?s?)?|positions_embed)$"
)
_NOT_TEXT = re.compile(r"vision|visual|image|audio|video|encoder\.")


def number(config: Any, names: tuple[str, ...]) -> int:
    """The first of ``names`` that a configuration gives a positive number.

    Of a list by layer the largest; 0 without one.
    """
    for name in names:
        try:
            value = getattr(config, name, None)
        except RuntimeError:  # transformers: it differs by layer
            value = [getattr(layer, name, None) for layer in config.per_layer_config]
        found = [
            int(v)
            for v in (value if isinstance(value, list | tuple) else [value])
            if isinstance(v, int | float) and v > 0
        ]
        if found:
            return max(found)
    return 0


def declared_context(config: Any) -> int:
    """Tokens that a configuration, or the part of it about text, says a model takes.

    ``ENDLESS`` where it says none.
    """
    return number(config.get_text_config(), CONTEXT) or number(config, CONTEXT) or ENDLESS


def longest_text(model: PreTrainedModel) -> int:
    """Tokens that a model takes: what its configuration says, and no more than it has learned
    places for.
    """
    tables = [
        _places(m)
        for name, m in model.named_modules()
        if _PLACES.search(name) and not _NOT_TEXT.search(name)
    ]
    return min([declared_context(model.config), *(t for t in tables if t > 0)])


def _places(module: nn.Module) -> int:
    """Places in a table of learned embeddings.

    The first ones may stand for padding (OPT's offset, RoBERTa's padding index).
    """
    if not isinstance(module, nn.Embedding):
        return 0
    padding = module.padding_idx
    return module.num_embeddings - int(
        getattr(module, "offset", 0 if padding is None else padding + 1)
    )


def reach(model: PreTrainedModel) -> int:
    """The fewest tokens (a window, a chunk, a number that is chosen) beyond which some layer does
    not see all; 0 where all do.
    """
    config: Any = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds and not any(re.search("sliding|chunk|local|window", str(kind)) for kind in kinds):
        kinds = ()
    found = [
        v
        for name, value in vars(config).items()
        if _WINDOW.search(name)
        and (kinds != () or name not in ("sliding_window", "attention_chunk_size"))
        for v in (value if isinstance(value, list | tuple) else [value])
    ]
    return min(
        (int(v) for v in found if isinstance(v, int) and not isinstance(v, bool) and v > 0),
        default=0,
    )


def chooses(model: PreTrainedModel) -> bool:
    """Whether some layer looks at a number of tokens only that it chooses itself."""
    return number(model.config.get_text_config(), ("index_topk",)) > 0


def bytes_per_token(model: PreTrainedModel) -> int:
    """What one token in a batch costs: keys and values (or the states of layers that have none),
    and the activations of one layer.

    What a configuration does not say is taken from the weights. State-space layers without their
    own kernels hold the states of every token at once, those that work in chunks also what each
    token of a chunk gives to each other one.
    """
    config: Any = model.config.get_text_config()
    first = next(model.parameters())
    width = number(config, WIDTH) or first.shape[-1]
    layers = number(config, LAYERS) or max(
        (len(m) for m in model.modules() if isinstance(m, nn.ModuleList)), default=1
    )
    heads = number(config, HEADS) or 1
    kept = (number(config, HEADS_KEPT) or heads) * (number(config, HEAD) or -(-width // heads))
    inner = number(config, INNER) or 4 * width
    state = number(config, STATE)
    states = 4 * (number(config, EXPAND) or 2) * width * state
    chunk = number(config, CHUNK)
    return (
        first.element_size() * (2 * layers * kept + 8 * width + 3 * inner)
        + 3 * states
        + (chunk * 4 * heads * state if state else 0)
    )
