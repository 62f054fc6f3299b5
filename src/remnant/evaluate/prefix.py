"""The key-value cache of a beginning that several texts share, computed once."""

import copy
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel


def slides(model: PreTrainedModel, length: int) -> bool:
    """Whether attention looks back less far than ``length``; then padding between prefix and prompt would shift its window."""
    config: Any = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or length
    return int(window) < length


@torch.no_grad()
def prefix_cache(model: PreTrainedModel, ids: list[int]) -> DynamicCache:
    """The cache of one beginning, for one row."""
    cache = DynamicCache(config=model.config)
    model.base_model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True)
    return cache


def for_rows(model: PreTrainedModel, prefix: DynamicCache | None, rows: int) -> DynamicCache:
    """A cache of its own for so many rows that all begin with the prefix; empty without one."""
    if prefix is None:
        return DynamicCache(config=model.config)
    cache = copy.deepcopy(prefix)
    cache.batch_repeat_interleave(rows)
    return cache
