"""A start away from the target: weights shrunk, with noise in the place of what they lost."""

import torch

from remnant.errors import UserError
from remnant.functional.noise import shrink_and_perturb
from remnant.ranks import count
from remnant.records import UnlearnSpec
from remnant.trainable.trainable import Trainable


@torch.no_grad()
def perturb(moving: Trainable, spec: UnlearnSpec) -> None:
    """Move the weights that a run trains away from the target, in place, by the run's seed; nothing
    without ``spec.shrink_perturb``. What the terms read of the target was read before.

    Raises:
        UserError: the weights are in shards.
    """
    if spec.shrink_perturb is None:
        return
    if count() > 1:
        raise UserError(
            "A perturbed start is not made of weights that are spread over several devices.",
            "Leave shrink_perturb out, or run it on one device.",
        )
    generator = torch.Generator().manual_seed(spec.seed)
    for part in moving.parts:
        part.write(shrink_and_perturb(part.read(), generator, share=spec.shrink_perturb))
