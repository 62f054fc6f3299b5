"""Key-value caches of a batch of rows, in memory that is taken once."""

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer; a step writes its own and copies none of the others.

    Args:
        rows: of the batch.
        tokens: the most there will be in a row.
    """

    def __init__(self, rows: int, tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rows, self._tokens, self._filled = rows, tokens, 0
        self._room: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add [rows or 1, heads, new tokens, width]; one row is added to all.

        Returns all keys and values.
        """
        given = (key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(*given)
            self._room = [
                new.new_empty(self._rows, new.shape[1], self._tokens, new.shape[3]) for new in given
            ]
        start, self._filled = self._filled, self._filled + key_states.shape[2]
        for room, new in zip(self._room, given, strict=True):
            room[:, :, start : self._filled] = new
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows only."""
        self._room = [room[indices] for room in self._room]
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (room[:, :, : self._filled] for room in self._room)
        return self.keys, self.values


def preallocated(
    model: PreTrainedModel,
    rows: int,
    tokens: int,
    layer_type: type[PreallocatedLayer] = PreallocatedLayer,
) -> DynamicCache:
    """An empty cache for so many rows of at most so many tokens.

    Layers that look back less far keep their own kind.
    """
    cache = DynamicCache(config=model.config)
    cache.layers = [
        layer_type(rows, tokens) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def keys_and_values(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """What a cache holds, by layer."""
    layers: Any = cache.layers  # only those of attention are kept
    return [(layer.keys, layer.values) for layer in layers]
