"""The record that every way of training gives: what moves, how it is kept and how it is settled."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from remnant.ranks import fill
from remnant.records import Chosen, Weights
from remnant.trainable.parts import Part

State = Mapping[str, Tensor]
# Contexts within which the model has the weights that a step looks at, one after the other.
Versions = Callable[[int], list[AbstractContextManager[None]]]


def as_they_are(step: int) -> list[AbstractContextManager[None]]:
    """The weights themselves, at every step."""
    return [nullcontext()]


class Renewal(NamedTuple):
    """Choosing the moving parts again, every so many steps."""

    every: int
    choose: Callable[[], list[Part]]


class Trainable(NamedTuple):
    """What may move in a model; everything else stays as it is, bit for bit.

    ``model``: as it is trained; only what may move wants gradients. ``parts``: what moves, until a
    renewal. ``renewal``: how and how often other parts are chosen. ``state``: all that may ever
    move, for a checkpoint, in the memory of the model, of weights in shards what this rank holds;
    ``restore`` takes it whole, the first rank's being that of all. ``settle``: the plain model with
    what was learned in it, once there are no more steps. ``result``: what was chosen and why.
    ``weights``: the regime of the parts where it is not the spec's. ``apart``: writes what was
    learned as files of its own, which are saved in the place of the model. ``versions``: of the
    weights, by the step; its loss is the mean over them.
    """

    model: PreTrainedModel
    parts: list[Part]
    state: Callable[[], State]
    restore: Callable[[State], None]
    settle: Callable[[], PreTrainedModel]
    renewal: Renewal | None = None
    result: Chosen | None = None
    weights: Weights | None = None
    apart: Callable[[Path], None] | None = None
    versions: Versions = as_they_are


def of_weights(
    model: PreTrainedModel,
    parts: list[Part],
    renewal: Renewal | None = None,
    ever: Iterable[nn.Parameter] | None = None,
    result: Chosen | None = None,
) -> Trainable:
    """Parts of the model's own weights.

    Args:
        model: the model; its other weights want no gradients from now on.
        parts: what moves.
        renewal: how other parts are chosen later.
        ever: every weight of which a part may ever move; by default those of ``parts``.
        result: of the choice.
    """
    own = ever or [part.parameter for part in parts]
    moving = {id(parameter) for parameter in own}
    kept = {name: p for name, p in model.named_parameters() if id(p) in moving}
    release(model, parts)

    def state() -> State:
        return {name: p.detach() for name, p in kept.items()}

    def restore(state: State) -> None:
        for name, parameter in kept.items():
            fill(parameter, state.get(name))

    return Trainable(model, parts, state, restore, lambda: model, renewal, result)


def release(model: nn.Module, parts: list[Part]) -> None:
    """Gradients for the parameters that parts belong to, and for no others."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for part in parts:
        part.parameter.requires_grad_(True)
