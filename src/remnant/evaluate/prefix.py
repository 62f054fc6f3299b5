"""A beginning that several texts share: computed once, and while they are continued also kept and
read once for all of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from remnant.evaluate.cache import PreallocatedLayer, keys_and_values, preallocated
from remnant.model.sizes import reach

# Scores of so many bytes are made at a time.
SCORE_BYTES = 64 * 2**20
# Attention to what is kept once is written out here; its name in transformers.
NAME = "beside_a_prefix"
# Rounding may part the two ways to attend by so much of the largest logit; of numbers with few
# bits, by so many roundings.
TOLERANCE, ROUNDINGS = 1e-4, 4


class Prefix(NamedTuple):
    """What several texts begin with: so many tokens, and their cache where there is one."""

    tokens: int = 0
    cache: DynamicCache | None = None


NO_PREFIX = Prefix()


def slides(model: PreTrainedModel, length: int) -> bool:
    """Whether attention looks back less far than ``length``.

    Then padding between prefix and prompt would shift its window.
    """
    return 0 < reach(model) < length


@torch.no_grad()
def prefix_cache(model: PreTrainedModel, ids: list[int]) -> DynamicCache:
    """The cache of one beginning, for one row."""
    cache = DynamicCache(config=model.config)
    model.base_model(
        input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True
    )
    return cache


def copied(
    model: PreTrainedModel, prefix: DynamicCache | None, rows: int, tokens: int
) -> DynamicCache:
    """A cache for so many rows of at most so many tokens, with a copy of the prefix in each if
    there is one.
    """
    cache = preallocated(model, rows, tokens)
    for place, (keys, values) in enumerate(keys_and_values(prefix) if prefix else []):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), place)
    return cache


class BesideLayer(PreallocatedLayer):
    """What the rows add to a prefix that is kept once; counts its tokens as its own."""

    prefix: tuple[Tensor, Tensor]

    def get_seq_length(self) -> int:
        """Tokens of prefix and row."""
        return self.prefix[0].shape[2] + self._filled

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = super()._show()
        vars(keys)["prefix"] = self.prefix
        return keys, values


@contextmanager
def beside(
    model: PreTrainedModel, prefix: DynamicCache, rows: int, tokens: int
) -> Iterator[DynamicCache]:
    """A cache for rows that each add at most so many tokens to the prefix.

    Valid inside the block, where the model attends to both.
    """
    cache = preallocated(model, rows, tokens, BesideLayer)
    for layer, held in zip(cache.layers, keys_and_values(prefix), strict=True):
        cast(BesideLayer, layer).prefix = held
    config: Any = model.config.get_text_config()
    before, config._attn_implementation = config._attn_implementation, NAME
    try:
        yield cache
    finally:
        config._attn_implementation = before


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """Softmax attention of [B, heads, Q, D] to the prefix that comes with ``key``, once for all
    rows, and to each row's own keys.
    """
    prefix = getattr(key, "prefix", None)
    if prefix is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **given
        )
    rows, heads, length, width = query.shape
    groups = heads // key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    own = torch.zeros(1, 1, length, key.shape[2], device=query.device)
    if attention_mask is not None:
        own = own.expand(rows, -1, -1, -1).masked_fill(
            ~attention_mask[..., prefix[0].shape[2] :], float("-inf")
        )
    size = max(1, SCORE_BYTES // (4 * heads * length * (prefix[0].shape[2] + key.shape[2])))
    parts = [
        _together(q.unflatten(1, (-1, groups)) * scale, k, v, prefix, m)
        for q, k, v, m in zip(
            query.split(size),
            key.split(size),
            value.split(size),
            own.expand(rows, -1, -1, -1).split(size),
            strict=True,
        )
    ]
    return torch.cat(parts), None


def _together(
    query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor], own: Tensor
) -> Tensor:
    """[B, Q, heads, D] of scaled queries [B, K, G, Q, D] at a prefix [1, K, P, D] and own keys [B,
    K, T, D] with mask ``own``.
    """
    rows, kinds, groups, length, width = query.shape
    flat = query.permute(1, 0, 2, 3, 4).reshape(kinds, -1, width)
    far = (flat @ prefix[0][0].mT).view(kinds, rows, groups, length, -1).transpose(0, 1)
    near = (query.flatten(2, 3) @ key.mT).unflatten(2, (groups, length)) + own[:, :, None]
    chance = torch.cat([far, near], -1).softmax(-1, dtype=torch.float32).to(query.dtype)
    to_far, to_near = chance.split([far.shape[-1], near.shape[-1]], -1)
    from_far = (
        to_far.transpose(0, 1).reshape(kinds, rows * groups * length, -1) @ prefix[1][0]
    ).view(kinds, rows, groups, length, -1)
    from_near = (to_near.flatten(2, 3) @ value).unflatten(2, (groups, length))
    out: Tensor = from_far.transpose(0, 1) + from_near
    return out.permute(0, 3, 1, 2, 4).flatten(2, 3)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


@torch.no_grad()
def can_be_beside(model: PreTrainedModel) -> bool:
    """Whether the model attends to a prefix that is kept once as to one that is copied, tried out
    on a few tokens.
    """
    config: Any = model.config.get_text_config()
    plain = all(isinstance(layer, PreallocatedLayer) for layer in preallocated(model, 1, 1).layers)
    if config._attn_implementation != "sdpa" or not plain:
        return False
    prefix = prefix_cache(model, list(range(8)))
    given = {
        "input_ids": torch.tensor([[8, 9], [0, 10]], device=model.device),
        "attention_mask": torch.tensor([[1] * 10, [1] * 8 + [0, 1]], device=model.device),
        "position_ids": torch.tensor([[8, 9], [7, 8]], device=model.device),
        "use_cache": True,
    }
    expected = model(**given, past_key_values=copied(model, prefix, 2, 10)).logits[:, -1]
    try:
        with beside(model, prefix, 2, 2) as cache:
            found = model(**given, past_key_values=cache).logits[:, -1]
    except RuntimeError:  # the keys did not come as the cache gave them
        return False
    near = max(TOLERANCE, ROUNDINGS * torch.finfo(expected.dtype).eps)
    return bool((found - expected).abs().max() <= near * expected.abs().max())
