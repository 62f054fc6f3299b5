"""What a grid leaves of an update where text goes: on the outputs of the layers, not on weights."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from remnant.errors import UserError
from remnant.methods import Step
from remnant.model.activations import summed
from remnant.model.load import Matrix, matrices
from remnant.model.rounding import on_grid


class OnText(NamedTuple):
    """What a grid leaves of a change of outputs, summed over layers and tokens.

    ``gain``: of the change itself, 1 all of it, 0 nothing. ``signal_to_noise``: the root of the
    change's square over that of what rounding adds; above 0, large is a change that stands out.
    """

    gain: float
    signal_to_noise: float


class Traces(NamedTuple):
    """Sums over tokens and outputs of one layer: the change squared, what the grid leaves of it
    times it, and the difference of the two squared.
    """

    update: float
    together: float
    noise: float


@torch.no_grad()
def survival_on_text(
    target: PreTrainedModel,
    unlearned: PreTrainedModel,
    grids: Mapping[str, Step],
    batches: Iterable[Tensor],
) -> dict[str, OnText]:
    """What grids leave of the change of the layers' outputs on some text.

    With D = U - T, R = Q(U) - Q(T) and x the inputs that the text gives a layer of the unlearned
    model: gain is sum <R x, D x> / sum |D x|^2 over layers and tokens. On weights alone the same
    sums are taken with every direction counting alike, so an update of low rank, which stands out
    on the inputs that it was made for, looks weaker than it is.

    Args:
        target: before unlearning.
        unlearned: of the same shape.
        grids: by the names under which they are asked for.
        batches: token ids, each [1, T].

    Raises:
        UserError: other shapes, no text, or nothing changed.
    """
    before = {m.name: m for m in matrices(target)}
    moved = [m for m in matrices(unlearned) if _changed(before, m)]
    if not moved:
        raise UserError("No weight that a grid touches was changed.", "Give the unlearned model.")
    seconds = input_products(unlearned, [m.name for m in moved], batches)
    found = {}
    for use, by in grids.items():
        layers = [_traces(before[m.name], m, by, seconds[m.name]) for m in moved]
        found[use] = _summed(layers)
    return found


def _changed(before: Mapping[str, Matrix], matrix: Matrix) -> bool:
    other = before.get(matrix.name)
    if other is None or other.read().shape != matrix.read().shape:
        raise UserError(
            f"The target has no weight {matrix.name} of shape {tuple(matrix.read().shape)}.",
            "Give the model that this one was unlearned from.",
        )
    return matrix.parameter.ndim == 2 and not torch.equal(other.read(), matrix.read())


def _traces(before: Matrix, after: Matrix, by: Step, second: Tensor) -> Traces:
    """The sums of one layer; ``second`` [in, in]: the products of its inputs over text."""
    old, new = before.read().float(), after.read().float()
    rounded = on_grid(before, old, by), on_grid(after, new, by)
    change = (new - old).double()
    # A grid whose blocks do not divide the rows leaves the weight as it is.
    left = change if None in rounded else _difference(rounded)
    seen = change @ second
    apart = left - change
    return Traces(
        float((seen * change).sum()),
        float((seen * left).sum()),
        float(((apart @ second) * apart).sum()),
    )


def _difference(rounded: Sequence[Any]) -> Tensor:
    old, new = rounded
    difference: Tensor = new.weight.double() - old.weight.double()
    return difference


def _summed(layers: Sequence[Traces]) -> OnText:
    update, together, noise = (sum(values) for values in zip(*layers, strict=True))
    return OnText(together / update, (update / noise) ** 0.5 if noise else float("inf"))


def input_products(
    model: PreTrainedModel, names: Iterable[str], batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """The sum over tokens of x x^T, x the input of a layer; float64 [in, in] for each name.

    Args:
        model: none of its weights is changed.
        names: of the layers' weights.
        batches: token ids, each [1, T].

    Raises:
        UserError: no text comes to a layer.
    """
    names = list(names)
    found = summed(model, names, batches, lambda inputs: inputs.T @ inputs)
    for name in names:
        if name not in found:
            raise UserError(f"No text comes to the weight {name}.", "Give more text.")
    return found
