"""Hidden states of one layer, with the mask that says which of them count."""

from dataclasses import dataclass

import torch

from remnant.functional.shapes import PerText, PerTime, States, TimeMask, Vector


@dataclass(frozen=True)
class Hidden:
    """What a block of a model gives for a batch.

    Args:
        states: [B, T, H], any float type; all sums are taken in float32.
        mask: [B, T] bool, True at the tokens that count. Unlike in a View the last token of a text
            has its state here, though nothing is predicted from it.

    States where the mask is False never influence any result. ``weights``: [B, T] how much each
    token counts in a mean, at least 0; all the same without them.
    """

    states: States
    mask: TimeMask
    weights: PerTime | None = None

    def counted(self) -> States:
        """[B, T, H] float32, zero where masked."""
        return self.states.float().masked_fill(~self.mask[..., None], 0.0)

    def mean(self, values: PerTime) -> PerText:
        """[B] the mean of [B, T] values over the tokens that count; 0 where none does."""
        counted, count = values.masked_fill(~self.mask, 0.0), self.mask.sum(-1).float()
        if self.weights is not None:
            counted = counted * self.weights
            count = self.weights.masked_fill(~self.mask, 0.0).sum(-1)
        return counted.sum(-1) / count.where(count > 0, 1.0)


def direction(size: int, seed: int) -> Vector:
    """[size] the unit vector along numbers drawn from [0, 1) by a seed, so all at least 0.

    >>> direction(3, seed=0).norm().item()
    1.0
    """
    drawn = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=0)
