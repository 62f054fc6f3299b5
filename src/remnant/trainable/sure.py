"""SURE: find the modules that matter most for the forget text, so that only they move.

Units: ``module`` is each attention head's slice of q, k, v and o (key and value heads where they
are shared) and each MLP projection; ``layer`` is all of a block; ``row`` is one output row;
``weight`` is one number.

Source: Zhang et al. 2024 (arXiv 2410.16454), eqs. 4-6: s_i = norm of the gradient of the forget
loss at the target's weights, m_i = 1 where s_i is at least the percentile gamma of all s. The
released code differs: rows, per mini-batch, and its mask is never applied.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from remnant.errors import UserError
from remnant.functional.touched import LEFT_ALONE
from remnant.functional.weights import among_equals, at_least_percentile
from remnant.model.load import Matrix, matrices
from remnant.ranks import in_shards, local, percentile, span, total, totals
from remnant.records import SureResult, SureSpec
from remnant.trainable.parts import Part
from remnant.trainable.trainable import Renewal, Trainable, of_weights, release

_ROWS = re.compile(r"\.(q_proj|k_proj|v_proj)\.weight$")
_COLUMNS = re.compile(r"\.o_proj\.weight$")
_BLOCK = re.compile(r"^(.*?\.\d+)\.")


class Unit(NamedTuple):
    """One module in the sense of the paper: some parts of weights that move or stand still
    together.
    """

    name: str
    parts: tuple[Part, ...]


class Saliency(NamedTuple):
    """Which parts may move, and what the choice was made from."""

    moving: list[Part]
    result: SureResult


def salient(
    model: PreTrainedModel,
    spec: SureSpec,
    loss_over_all: Callable[[], Iterable[Tensor]],
    seed: int = 0,
) -> Trainable:
    """The parts that SURE chooses now and, where it renews its choice, later.

    A checkpoint of a choice that is renewed holds every weight that might be chosen.
    """
    found = find(model, spec, loss_over_all, seed)
    if not spec.renew_every:
        return of_weights(model, found.moving, result=found.result)

    def choose() -> list[Part]:
        parts = find(model, spec, loss_over_all).moving
        release(model, parts)
        return parts

    return of_weights(
        model,
        found.moving,
        Renewal(spec.renew_every, choose),
        [matrix.parameter for matrix in candidates(model, spec)],
        found.result,
    )


def candidates(model: PreTrainedModel, spec: SureSpec) -> list[Matrix]:
    """The weights that SURE chooses from."""
    return list(matrices(model, skip=tuple({*LEFT_ALONE} - {"router", *spec.also})))


def find(
    model: PreTrainedModel,
    spec: SureSpec,
    loss_over_all: Callable[[], Iterable[Tensor]],
    seed: int = 0,
) -> Saliency:
    """Score all units by the gradient of the forget loss over the whole forget set, and choose.

    Args:
        model: the target, before any step; its gradients are cleared afterwards.
        spec: unit, percentile, scaling, which kinds of weights.
        loss_over_all: gives the loss of one part of the forget set after the other, their sum being
            the loss of all of it.
        seed: of units that are drawn in the place of the salient ones.

    Raises:
        UserError: no weight of the wanted kinds, attention that is not four projections, or units
            at random on several ranks.
    """
    chosen = candidates(model, spec)
    if spec.random and _in_shards(chosen):
        raise UserError("Random units are drawn on one device.", "Leave random out, or devices.")
    release(model, [Part(matrix.parameter) for matrix in chosen])
    for loss in loss_over_all():
        loss.backward()
    drawn = torch.Generator().manual_seed(seed) if spec.random else None
    if spec.unit in ("row", "weight"):
        found = _fine(chosen, spec, drawn)
    else:
        found = _coarse(model, chosen, spec, drawn)
    for matrix in chosen:
        matrix.parameter.grad = None
    return found


def _coarse(
    model: PreTrainedModel, chosen: list[Matrix], spec: SureSpec, drawn: torch.Generator | None
) -> Saliency:
    """Whole slices: one number per unit, gradients reduced and freed one matrix after the other."""
    squares: dict[str, float] = {}
    sizes: dict[str, int] = {}
    members: dict[str, list[Part]] = {}
    for matrix in chosen:
        for unit in units_of(model, matrix, spec.unit):
            for part in unit.parts:
                grad = part.gradient()
                squares[unit.name] = squares.get(unit.name, 0.0) + (
                    float(grad.float().square().sum()) if grad is not None else 0.0
                )
                sizes[unit.name] = sizes.get(unit.name, 0) + part.read().numel()
                members.setdefault(unit.name, []).append(part)
        matrix.parameter.grad = None
    if _in_shards(chosen):
        squares = dict(zip(squares, totals([*squares.values()]), strict=True))
        sizes = dict(zip(sizes, map(int, totals([*sizes.values()])), strict=True))
    scores = torch.tensor(
        [squares[n] ** 0.5 / (sizes[n] ** 0.5 if spec.scaled else 1.0) for n in squares]
    )
    if drawn:
        scores = among_equals(scores, torch.tensor([float(sizes[n]) for n in squares]), drawn)
    mask = at_least_percentile(scores, spec.percentile)
    moving = [
        part
        for name, keep in zip(squares, mask.tolist(), strict=True)
        if keep
        for part in members[name]
    ]
    top = sorted(zip(squares, scores.tolist(), strict=True), key=lambda pair: -pair[1])[:10]
    result = _result(spec, len(scores), int(mask.sum()), moving, chosen)
    return Saliency(moving, result.model_copy(update={"most_salient": () if drawn else tuple(top)}))


def _fine(chosen: list[Matrix], spec: SureSpec, drawn: torch.Generator | None = None) -> Saliency:
    """Rows or single weights: one tensor of scores per matrix, one threshold over all of them, and
    over the shards of all ranks.
    """
    spread = _in_shards(chosen)
    if spread and spec.unit == "row" and any(m.transposed for m in chosen):
        raise UserError(
            "This model keeps its weights by columns, so its rows lie on all devices.",
            'Use unit = "weight" or "layer", or run it on one device.',
        )
    scores = [_row_norms(m) if spec.unit == "row" else _gradient(m).abs() for m in chosen]
    if spec.scaled and spec.unit == "row":
        scores = [s / _length(m) ** 0.5 for s, m in zip(scores, chosen, strict=True)]
    every = torch.cat([s.flatten() for s in scores])
    if drawn:
        sizes = [_length(m) if spec.unit == "row" else 1 for m in chosen]
        counts = torch.tensor([s.numel() for s in scores])
        every = among_equals(
            every, torch.tensor(sizes).float().repeat_interleave(counts).to(every.device), drawn
        )
    mask = (
        every.double() >= percentile(scores, spec.percentile)
        if spread
        else at_least_percentile(every, spec.percentile)
    )
    moving, start = [], 0
    for matrix, score in zip(chosen, scores, strict=True):
        own = mask[start : start + score.numel()].view(score.shape)
        start += score.numel()
        if total(bool(own.any())) if spread else bool(own.any()):
            index = own.T if matrix.transposed and spec.unit == "weight" else own
            moving.append(
                Part(
                    matrix.parameter,
                    (slice(None), own) if matrix.transposed and spec.unit == "row" else (index,),
                )
            )
    units, masked = (mask.numel(), int(mask.sum()))
    if spread:
        units, masked = (int(total(n)) for n in (units, masked))
    return Saliency(moving, _result(spec, units, masked, moving, chosen))


def _length(matrix: Matrix) -> int:
    """Of a row; a norm's weight is a row of one number after the other."""
    return matrix.read().shape[-1] if matrix.read().ndim > 1 else 1


def _in_shards(chosen: list[Matrix]) -> bool:
    """Whether the ranks hold different rows of the weights."""
    return in_shards(m.parameter for m in chosen)


def _gradient(matrix: Matrix) -> Tensor:
    """The gradient as [..., out, in], of a weight in shards what this rank holds of it."""
    grad = matrix.parameter.grad
    grad = local(torch.zeros_like(matrix.parameter) if grad is None else grad)
    return (grad.T if matrix.transposed else grad).float()


def _row_norms(matrix: Matrix) -> Tensor:
    gradient = _gradient(matrix)
    return gradient.abs() if gradient.ndim == 1 else gradient.norm(dim=-1)


def _result(
    spec: SureSpec, units: int, masked: int, moving: list[Part], chosen: list[Matrix]
) -> SureResult:
    weights = sum(p.read().numel() for p in moving)
    weights = int(total(weights)) if _in_shards(chosen) else weights
    return SureResult(
        unit=spec.unit,
        percentile=spec.percentile,
        units=units,
        moving_units=masked,
        moving_weights=weights,
        share_of_weights=weights / sum(m.parameter.numel() for m in chosen),
    )


def units_of(model: PreTrainedModel, matrix: Matrix, unit: str) -> Iterator[Unit]:
    """The units that one weight belongs to: slices per head, whole projections, or its block.

    Raises:
        UserError: attention in one fused projection, which has no slices per head of its own.
    """
    if unit == "layer":
        block = _BLOCK.match(matrix.name)
        yield Unit(block[1] if block else matrix.name, (Part(matrix.parameter),))
        return
    rows, columns = _ROWS.search(matrix.name), _COLUMNS.search(matrix.name)
    if re.search(r"(query_key_value|c_attn|qkv_proj)\.weight$", matrix.name):
        raise UserError(
            f"{matrix.name} fuses query, key and value, so heads cannot be told apart.",
            'Use unit = "row" or "layer".',
        )
    if not rows and not columns:
        yield Unit(matrix.name, (Part(matrix.parameter),))
        return
    size = _head_size(model)
    length = matrix.read().shape[0] if rows else matrix.read().shape[1]
    for head, start in enumerate(range(0, length, size)):
        place = slice(start, start + size)
        index = (_here(matrix, place),) if rows else (slice(None), place)
        yield Unit(f"{matrix.name}[head {head}]", (Part(matrix.parameter, index),))


def _here(matrix: Matrix, rows: slice) -> slice:
    """Which of the rows that this rank holds are among some rows of a weight."""
    own = span(matrix.parameter)
    first = max(rows.start, own.start) - own.start
    return slice(first, max(first, min(rows.stop, own.stop) - own.start))


def _head_size(model: PreTrainedModel) -> int:
    config: Any = model.config.get_text_config()
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
