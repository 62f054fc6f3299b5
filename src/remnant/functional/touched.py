"""Which weights a quantizer touches, by name and shape alone: one rule for open models and for
checkpoints on disk. No torch.
"""

import re

KINDS = ("linear", "experts", "embedding", "lm_head", "norm", "router", "conv", "state", "bias")
# What nobody rounds: embeddings and heads, vectors, routers, short convolutions and the state of
# recurrent layers.
LEFT_ALONE = ("lm_head", "embedding", "norm", "router", "conv", "state", "bias")

_STATE = re.compile(r"(^|\.)(A_log|D|dt_bias|A|sinks|time_\w+|rg_lru\.\w+)(\.weight)?$")
_CONV = re.compile(r"(^|[._])(short_?)?conv(_?1d)?s?\.weight$", re.IGNORECASE)
_ROUTER = re.compile(
    r"(^|\.)(\w*router|gate|shared_expert_gate)(\.(layer|wg|classifier|proj))?\.weight$"
)
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_projection)(\.\w+)?\.weight$|^head\.weight$")
_EMBEDDING = re.compile(r"(^|\.)(embed\w*|\w+_embed|\w*embeddings?(\.\w+)?|wte|wpe)\.weight$")
_NORM = re.compile(r"(norm\w*|(^|[._])ln(_\w+|\d)?)\.weight$", re.IGNORECASE)


def kind_of(name: str, shape: tuple[int, ...]) -> str:
    """What a weight is: linear, experts, embedding, lm_head, norm, router, conv, state or bias.

    Args:
        name: as in a checkpoint, "model.layers.0.mlp.up_proj.weight".
        shape: of the weight as it is stored.

    ``experts`` are [experts, ., .]; ``norm`` is every vector that is nothing else, ``conv`` what
    has four or more dimensions; ``state`` what a recurrent or state-space layer keeps beside its
    projections (A_log, D, dt_bias, decays).
    """
    leaf = name.rpartition(".")[2]
    if _STATE.search(name):
        return "state"
    if "bias" in leaf:
        return "bias"
    for kind, pattern in (
        ("lm_head", _HEAD),
        ("router", _ROUTER),
        ("conv", _CONV),
        ("norm", _NORM),
        ("embedding", _EMBEDDING),
    ):
        if pattern.search(name):
            return kind
    if sum(size > 1 for size in shape) < 2 and len(shape) != 2:
        return "norm"
    return {2: "linear", 3: "experts"}.get(len(shape), "conv")


def is_quantized_by_default(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a quantizer touches a weight when nothing else was asked for: linear layers and
    experts.
    """
    return kind_of(name, shape) not in LEFT_ALONE
