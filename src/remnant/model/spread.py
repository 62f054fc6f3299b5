"""Open a model for training, with its weights in shards where there are several ranks: every rank
reads its own rows from the files, so that no rank ever holds all of them.
"""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from remnant.model.blocks import blocks
from remnant.model.load import open_model
from remnant.ranks import count, spread


def open_spread(
    source: str, device: str, dtype: torch.dtype
) -> tuple[PreTrainedModel, Callable[[], None]]:
    """A model as ``open_model`` opens it, divided among the ranks.

    Args:
        source: folder or hub id.
        device: where it goes.
        dtype: of its weights.

    Returns:
        The model, and what makes it a plain one on the first rank (``ranks.spread``).

    Raises:
        UserError: as ``open_model``; its blocks cannot be told.
    """
    if count() == 1:
        return open_model(source, device, dtype=dtype), lambda: None
    found: list[Callable[[], None]] = []

    def divide(model: PreTrainedModel) -> None:
        found.append(spread(model, blocks, device))

    model = open_model(source, device, dtype=dtype, divide=divide)
    if not found:
        # Weights that transformers fills by itself are divided when they are there.
        divide(model)
    return model, found[0]
