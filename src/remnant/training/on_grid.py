"""Steps that look at the weights and at their rounding to a grid: straight-through, or as noise.

The loss of a step is the mean of that at the weights and that at one version of them, drawn by the
run's seed. Both passes of the version stand on its values, so that its gradient is that of a plain
model with these weights; it is taken as the weights' own (straight-through), forget and retain
terms alike. Source: Bengio et al. 2013 (arXiv 1308.3432) for the straight-through estimator.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from remnant.durable import digest_of
from remnant.errors import UserError
from remnant.functional.cells import cells, width
from remnant.methods import Step, grid, levels
from remnant.model.load import Matrix
from remnant.model.rounding import check_rounds, on_grid, quantizable, replaced, rounded
from remnant.ranks import count
from remnant.records import UnlearnSpec
from remnant.trainable.trainable import Trainable


def trained_on_grids(moving: Trainable, spec: UnlearnSpec) -> Trainable:
    """What moves, with the grids of a spec among the versions of the weights; itself without any.

    Raises:
        UserError: a grid that rounds no weight by itself, noise on one whose cells are not known,
            or weights in shards.
    """
    if spec.grids is None:
        return moving
    if count() > 1:
        raise UserError(
            "Weights that are spread over several devices are not rounded while they train.",
            "Leave grids out, or run it on one device.",
        )
    named = {use: grid(use) for use in spec.grids.use}
    check_rounds(moving.model, named)
    found = [named[use] for use in spec.grids.use]
    noise = spec.grids.by == "noise"

    def versions(step: int) -> list[AbstractContextManager[None]]:
        by = drawn(found, spec.seed, step)
        moved = noisy(moving.model, by, spec.seed, step) if noise else rounded(moving.model, by)
        return [nullcontext(), moved]

    return moving._replace(versions=versions)


def drawn(among: Sequence[Step], seed: int, step: int) -> Step:
    """The grid of a step: the same whenever it is asked for, so that a run that was cut goes on as
    it would have.
    """
    return random.Random(f"{seed} {step}").choice(among)


@contextmanager
def noisy(model: nn.Module, by: Step, seed: int, step: int) -> Iterator[None]:
    """A model whose weights are moved at random within their cells until the end of the context."""
    with torch.no_grad():
        found = [(m, moved(m, by, seed, step)) for m in quantizable(model, by)]
    with replaced([(m, value) for m, value in found if value is not None]):
        yield


def moved(matrix: Matrix, by: Step, seed: int, step: int) -> Tensor | None:
    """A weight w as w + D u, D the width of its cell and u uniform in -1/2 to 1/2; None where the
    blocks do not divide the rows.

    Source: rounding as additive noise. On a uniform grid its variance, D^2 / 12, is that of the
    error of rounding a weight that lies anywhere in its cell.
    """
    weight = matrix.read().float()
    found = on_grid(matrix, weight, by)
    if found is None:
        return None
    own = torch.Generator().manual_seed(int(digest_of([seed, step, matrix.name])[:15], 16))
    noise = torch.rand(found.weight.shape, generator=own).to(weight.device) - 0.5
    return weight.view(noise.shape) + width(cells(found, levels(by))) * noise
