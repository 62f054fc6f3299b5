"""One weight as a transform leaves it, and a model whose weights are rounded for a while."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from remnant.errors import UserError
from remnant.functional.quantized import Indivisible, Quantized
from remnant.methods import Step
from remnant.model.load import Matrix, matrices
from remnant.resolve import Method
from remnant.uninterrupted import uninterrupted


def changed_by(
    matrix: Matrix,
    weight: Tensor,
    method: Method,
    function: Callable[..., Any],
    offered: Mapping[str, Any],
) -> Quantized | Tensor:
    """What a transform makes of one weight.

    Args:
        matrix: for its name.
        weight: its values, [..., out, in] or a vector, which becomes one row.
        method: says what the function reads.
        function: of the transform.
        offered: other readings by their names.

    Raises:
        Indivisible: the blocks do not divide the rows.
        UserError: the function refuses the weight.
    """
    wide = weight.float()
    values = {**offered, "weight": wide if wide.ndim > 1 else wide[None]}
    try:
        found = function(*(values[name] for name in method.reads), **method.params)
    except Indivisible:
        raise
    except ValueError as error:
        raise UserError(
            f"The weight {matrix.name} of shape {tuple(wide.shape)} cannot be changed by "
            f"{method.use}: {error}."
        ) from error
    whole: Quantized | Tensor = Quantized(**found) if isinstance(found, dict) else found
    return whole


def on_grid(matrix: Matrix, weight: Tensor, by: Step) -> Quantized | None:
    """A weight on a grid; None where the grid's blocks do not divide its rows, so that it stays.

    Raises:
        UserError: the grid refuses it, or gives no codes.
    """
    try:
        found = changed_by(matrix, weight, by.method, by.method.load(), {})
    except Indivisible:
        return None
    if isinstance(found, Tensor):
        raise UserError(
            f"'{by.spec.use}' gives no codes.", "Name a grid such as int4-g128, nf4 or nvfp4."
        )
    return found


def quantizable(model: nn.Module, by: Step) -> list[Matrix]:
    """The weights that a grid touches."""
    return list(matrices(model, by.spec.skip))


def check_rounds(model: nn.Module, grids: Mapping[str, Step]) -> None:
    """See that every grid rounds some weight of a model.

    Raises:
        UserError: the blocks of one divide no rows, so that nothing would come of it.
    """
    for use, by in grids.items():
        if all(on_grid(m, m.read(), by) is None for m in quantizable(model, by)):
            raise UserError(
                f"The blocks of '{use}' divide the rows of no weight of this model.",
                "Name a grid whose group size divides them, or one without groups.",
            )


@contextmanager
def replaced(values: Sequence[tuple[Matrix, Tensor]]) -> Iterator[None]:
    """A model with other values in some weights, [..., out, in], until the end of the context.

    What is computed in it must also be differentiated in it: gradients are then those of a model
    with these values, and are gathered for the parameters.
    """
    kept = [(matrix.parameter, matrix.parameter.data) for matrix, _ in values]
    try:
        for matrix, value in values:
            own = value.view(matrix.read().shape).to(matrix.parameter.dtype)
            matrix.parameter.data = own.T.contiguous() if matrix.transposed else own
        yield
    finally:
        with uninterrupted():
            for parameter, data in kept:
                parameter.data = data


@contextmanager
def rounded(model: nn.Module, by: Step) -> Iterator[None]:
    """A model with its weights rounded to a grid until the end of the context (``replaced``)."""
    with torch.no_grad():
        found = [(m, on_grid(m, m.read(), by)) for m in quantizable(model, by)]
    with replaced([(m, q.weight) for m, q in found if q is not None]):
        yield
