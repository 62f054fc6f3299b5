"""Log-probabilities of given texts, padded side by side, without ever holding the logits of all
positions.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from remnant.evaluate.prefix import NO_PREFIX, Prefix, copied
from remnant.evaluate.requests import GradNorm, Refused, not_finite
from remnant.evaluate.steps import accepted
from remnant.functional.tokens import COLUMNS, Array, Tokens
from remnant.model.data import Batch, collate
from remnant.model.head import head_of

# Logits are made for so many bytes of positions at a time.
HEAD_BYTES = 32 * 2**20

Head = Callable[[Tensor], Tensor]


class Text:
    """A text as ids, the number of its tokens that are not counted, and whether it was cut."""

    def __init__(self, ids: Sequence[int], skip: int, limit: int) -> None:
        self.ids = list(ids[:limit])
        self.first = max(1, skip)
        self.cut = len(ids) > limit

    @property
    def counted(self) -> int:
        """How many tokens are counted."""
        return max(0, len(self.ids) - self.first)


@torch.no_grad()
def plain_head(model: PreTrainedModel) -> Head | None:
    """The output head where it can be applied to some positions only, tried out on a few tokens."""
    ids = torch.arange(4, device=model.device)[None]
    # The whole model first: compressed-tensors unpacks its weights in a hook of the whole.
    base = model.base_model
    logits = model(**accepted(model, {"input_ids": ids, "use_cache": False})).logits
    hidden = (
        None
        if base is model
        else getattr(
            base(**accepted(base, {"input_ids": ids, "use_cache": False})),
            "last_hidden_state",
            None,
        )
    )
    weight = getattr(model.get_output_embeddings(), "weight", None)
    if (
        hidden is None
        or weight is None
        or weight.shape[-1] != hidden.shape[-1]
        or hidden.shape[:-1] != logits.shape[:-1]
    ):
        return None
    return head_of(model, hidden, logits)


def states(
    model: PreTrainedModel,
    inner: bool,
    batch: Batch,
    prefix: Prefix = NO_PREFIX,
    positions: bool = True,
) -> Tensor:
    """The hidden states [B, T, H] of a batch behind a prefix, or the logits [B, T, V] where not
    ``inner``.
    """
    shared = prefix.tokens
    mask = (
        torch.cat([batch.mask.new_ones(len(batch.ids), shared), batch.mask], -1)
        if shared
        else batch.mask
    )
    given: dict[str, Any] = {
        "input_ids": batch.ids,
        "attention_mask": mask,
        "use_cache": prefix.cache is not None,
    }
    if prefix.cache is not None:
        given["past_key_values"] = copied(model, prefix.cache, *mask.shape)
        if positions:
            given["position_ids"] = torch.arange(
                shared, shared + batch.ids.shape[1], device=model.device
            ).expand_as(batch.ids)
    module = model.base_model if inner else model
    found = module(**accepted(module, given))
    source: Tensor = found.last_hidden_state if inner else found.logits
    return source


@torch.no_grad()
def read(
    model: PreTrainedModel,
    head: Head | None,
    texts: Sequence[Text],
    columns: Collection[str],
    prefix: Prefix = NO_PREFIX,
    positions: bool = True,
) -> list[Tokens | Refused]:
    """What the model says about every counted token; refused where that is not finite.

    Args:
        model: any causal model.
        head: its output head (``plain_head``); None to take whole logits from the model.
        texts: all with at least one counted token.
        columns: fields of Tokens to compute.
        prefix: what all texts begin with; fewer tokens than are skipped in each.
        positions: whether the model is told the place of each token behind a prefix.
    """
    shared = prefix.tokens
    batch = collate([t.ids[shared:] for t in texts], 0, model.device)
    source = states(model, head is not None, batch, prefix, positions)
    rows = torch.tensor(
        [i for i, t in enumerate(texts) for _ in range(t.counted)], device=model.device
    )
    places = torch.tensor(
        [p - shared for t in texts for p in range(t.first, len(t.ids))], device=model.device
    )
    found = _in_chunks(
        source[rows, places - 1],
        batch.ids[rows, places],
        head,
        columns,
        model.config.get_text_config().vocab_size,
    )
    ends = np.cumsum([t.counted for t in texts])[:-1]
    split = {name: np.split(values, ends) for name, values in found.items()}
    nothing = [np.zeros(0)] * len(texts)
    logp, rank, mean, std = (split.get(name, nothing) for name in COLUMNS)
    return [sound(Tokens(logp[i], rank[i], mean[i], std[i], t.cut)) for i, t in enumerate(texts)]


def sound(tokens: Tokens) -> Tokens | Refused:
    """What was read if all of it is finite."""
    return (
        tokens
        if all(np.isfinite(getattr(tokens, column)).all() for column in COLUMNS)
        else not_finite()
    )


def _in_chunks(
    source: Tensor, targets: Tensor, head: Head | None, columns: Collection[str], vocabulary: int
) -> dict[str, Array]:
    """Columns of [N] counted tokens from their hidden states (or logits) [N, ...]."""
    size = max(1, HEAD_BYTES // (4 * vocabulary))
    parts: dict[str, list[Tensor]] = {c: [] for c in columns}
    for states, wanted in zip(source.split(size), targets.split(size), strict=True):
        logits = (head(states) if head else states).float()
        total = logits.logsumexp(-1, keepdim=True)
        chosen = logits.gather(-1, wanted[:, None])
        parts.setdefault("logp", []).append((chosen - total)[:, 0])
        if "rank" in columns:
            parts["rank"].append((logits > chosen).sum(-1))
        if "mean" in columns or "std" in columns:
            logp = logits - total
            chance = logp.exp()
            mean = (chance * logp).sum(-1)
            variance = (chance * (logp - mean[:, None]).square()).sum(-1)
            for name, values in (("mean", mean), ("std", variance.sqrt())):
                parts.setdefault(name, []).append(values)
    return {c: torch.cat(values).double().cpu().numpy() for c, values in parts.items()}


def grad_norm(model: PreTrainedModel, text: Text) -> GradNorm | Refused:
    """The Euclidean norm of the gradient of the mean loss of a text at all weights.

    Refused where it is not finite.
    """
    batch = collate([text.ids], 0, model.device)
    model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        given = {
            "input_ids": batch.ids,
            "attention_mask": batch.mask,
            "labels": batch.labels,
            "use_cache": False,
        }
        model(**accepted(model, given)).loss.backward()
    squares = [p.grad.float().square().sum() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    found = float(torch.stack(squares).sum().sqrt())
    return GradNorm(found, text.cut) if math.isfinite(found) else not_finite()
