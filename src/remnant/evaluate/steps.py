"""Rows of tokens that grow side by side by one token a step: from a cache, or by reading every row
again.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer

from remnant.evaluate.cache import PreallocatedLayer, preallocated
from remnant.evaluate.prefix import NO_PREFIX, Prefix

# Under which name a model takes back what it remembers of the tokens so far.
CACHES = ("past_key_values", "cache_params", "state")
# Layers of a cache that hold keys and values and nothing else.
KEYS_AND_VALUES = (PreallocatedLayer, DynamicSlidingWindowLayer)

T = TypeVar("T")


def accepted(module: nn.Module, given: Mapping[str, T]) -> dict[str, T]:
    """What of ``given`` a model's forward, or the inner model's to which it hands everything on,
    takes by name.
    """
    names = dict(inspect.signature(module.forward).parameters)
    inner = getattr(module, "base_model", module)
    if any(n.kind is inspect.Parameter.VAR_KEYWORD for n in names.values()) and inner is not module:
        names |= inspect.signature(inner.forward).parameters
    return {name: value for name, value in given.items() if name in names}


def cache_name(model: PreTrainedModel) -> str:
    """The name of the model's cache among its arguments; empty where it keeps none."""
    return next(iter(accepted(model, dict.fromkeys(CACHES))), "")


def kept_rows(cache: Any, rows: Tensor) -> object:
    """A cache with some of its rows only: changed in place, or new where it is a list of [rows,
    ...] tensors.
    """
    if isinstance(cache, list | tuple):
        return [tensor[rows] for tensor in cache]
    for layer in cache.layers:
        # Of layers with more than keys and values only the other one takes everything along.
        (
            layer.batch_select_indices
            if isinstance(layer, PreallocatedLayer)
            else layer.reorder_cache
        )(rows)
    return cache


class Cached:
    """Rows behind a cache; where their lengths differ they are padded on the left.

    Args:
        model: any causal model with a cache.
        tails: what is not in the cache yet, by row.
        most: so many tokens at most will be added to each.
        pad: the id that fills up; never attended to.
        begun: what every row has in a cache of as many rows already; without a cache the model's
            own or an empty one.
        positions: whether the model is told the place of each token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tails: Sequence[Sequence[int]],
        most: int,
        pad: int = 0,
        begun: Prefix = NO_PREFIX,
        positions: bool = True,
    ) -> None:
        shared = begun.tokens
        width = max(map(len, tails))
        self._model, self._name, self._told = model, cache_name(model), positions
        self._ids = torch.tensor(
            [[pad] * (width - len(t)) + list(t) for t in tails], device=model.device
        )
        self._mask = torch.tensor(
            [[1] * shared + [0] * (width - len(t)) + [1] * len(t) for t in tails],
            device=model.device,
        )
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, shared:]
        # Layers that are no attention take a mask of the whole text for one of the new tokens.
        self._masked = shared > 0 or not bool(self._mask.all()) or is_plain(model)
        self._cache: Any = begun.cache
        if self._cache is None:
            self._cache = _empty(model, len(tails), width + most)

    def step(self) -> Tensor:
        """[rows, V] logits of the token that comes next."""
        given: dict[str, Any] = {
            "input_ids": self._ids,
            self._name: self._cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        if self._masked:
            given["attention_mask"] = self._mask
        if self._told:
            given["position_ids"] = self._positions
        out = self._model(**accepted(self._model, given))
        self._cache = getattr(out, self._name, None) or self._cache
        logits: Tensor = out.logits[:, -1]
        return logits

    def add(self, tokens: Tensor) -> None:
        """Put one token [rows] behind each row."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], -1)
        self._ids, self._positions = tokens[:, None], self._positions[:, -1:] + 1

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows only, given by their places."""
        self._cache = kept_rows(self._cache, rows)
        self._mask, self._ids, self._positions = (
            self._mask[rows],
            self._ids[rows],
            self._positions[rows],
        )


class Whole:
    """Rows that are read from their beginning at every step: slow, and right for every model that
    reads from left to right.

    Args:
        model: any causal model.
        head: its output head (``plain_head``), so that no logits of all positions are made.
        rows: the tokens so far.
        padded: rows may stand side by side, filled up on the right.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        head: Callable[[Tensor], Tensor] | None,
        rows: Sequence[Sequence[int]],
        padded: bool,
    ) -> None:
        self._model, self._head, self._rows = model, head, [list(r) for r in rows]
        self._padded = padded and head is not None

    def step(self) -> Tensor:
        """[rows, V] logits of the token that comes next."""
        if not self._padded or self._head is None:
            return torch.stack([self._alone(row) for row in self._rows])
        width = max(map(len, self._rows))
        ids = torch.tensor(
            [r + [0] * (width - len(r)) for r in self._rows], device=self._model.device
        )
        mask = torch.tensor(
            [[1] * len(r) + [0] * (width - len(r)) for r in self._rows], device=self._model.device
        )
        base = self._model.base_model
        states = base(
            **accepted(base, {"input_ids": ids, "attention_mask": mask, "use_cache": False})
        ).last_hidden_state
        last = torch.tensor([len(r) - 1 for r in self._rows], device=ids.device)
        return self._head(states[torch.arange(len(last), device=ids.device), last])

    def _alone(self, row: list[int]) -> Tensor:
        given = {
            "input_ids": torch.tensor([row], device=self._model.device),
            "use_cache": False,
            "logits_to_keep": 1,
        }
        logits: Tensor = self._model(**accepted(self._model, given)).logits[0, -1]
        return logits

    def add(self, tokens: Tensor) -> None:
        """Put one token [rows] behind each row."""
        for row, token in zip(self._rows, tokens.tolist(), strict=True):
            row.append(token)

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows only, given by their places."""
        self._rows = [self._rows[i] for i in rows.tolist()]


def is_plain(model: PreTrainedModel) -> bool:
    """Whether all that the model remembers of a text are keys and values of its tokens, in layers
    of transformers' own kinds.
    """
    if cache_name(model) != "past_key_values":
        return False
    try:
        layers = preallocated(model, 1, 1).layers
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        NotImplementedError,
    ):  # a configuration of its own
        return False
    return bool(layers) and all(type(layer) in KEYS_AND_VALUES for layer in layers)


def _empty(model: PreTrainedModel, rows: int, tokens: int) -> Any:
    """A cache in memory that is taken once.

    None, so that the model makes its own, where it keeps other things.
    """
    return preallocated(model, rows, tokens) if is_plain(model) else None
