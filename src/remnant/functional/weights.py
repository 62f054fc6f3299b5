"""Rules on weights: how a value is rounded when it is stored, and which of them may move."""

import torch

from remnant.functional.shapes import AnyMask, AnyWeight, Vector
from remnant.functional.survival import movable_below


def stochastic_round(
    weight: AnyWeight,
    generator: torch.Generator | None = None,
    rows: tuple[int, slice] | None = None,
) -> AnyWeight:
    """Round float32 to bfloat16, up or down with probability by distance, so that the expectation
    is the value itself.

    Args:
        weight: float32 of any shape; infinities and NaN are kept.
        generator: source of the random bits, on the tensor's device.
        rows: where the tensor holds some rows of a larger one: how many that has, and which; it is
            rounded as it would be within that.

    Source: Zamirai et al. 2020 (arXiv 2010.06192), section 3.
    """
    bits = weight.contiguous().view(torch.int32)
    shape = (rows[0], *weight.shape[1:]) if rows else weight.shape
    noise = torch.randint(
        0, 1 << 16, shape, dtype=torch.int32, device=weight.device, generator=generator
    )
    noise = noise[rows[1]] if rows else noise
    rounded = ((bits + noise) & -65536).view(torch.float32)
    return torch.where(weight.isfinite(), rounded, weight).to(torch.bfloat16)


def movable(weight: AnyWeight, rate: float) -> AnyMask:
    """True where a step of this size moves a weight that is kept in bfloat16. Bool, same shape.

    >>> movable(torch.tensor([0.5, 0.01]), 6e-5).tolist()
    [False, True]
    """
    return weight.abs() < movable_below(rate)


def among_equals(scores: Vector, sizes: Vector, generator: torch.Generator) -> Vector:
    """The scores of some units given to others of the same size, at random: of every size as many
    units have a score in any range as before.

    Args:
        scores: [size].
        sizes: [size] of each unit.
        generator: on the CPU, so that every device draws the same.

    Returns:
        [size].

    >>> among_equals(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.Generator())
    tensor([1., 2.])
    """
    found = scores.clone()
    for size in sizes.unique().tolist():
        places = (sizes == size).nonzero().flatten()
        order = torch.randperm(len(places), generator=generator).to(places.device)
        found[places] = scores[places[order]]
    return found


def at_least_percentile(scores: AnyWeight, percentile: float) -> AnyMask:
    """True where a score is at least the given percentile of all scores (linear interpolation).

    Bool, shape of ``scores``.

    At 0 everything is True; at 100 only the largest. Raises ValueError outside 0 to 100 or without
    scores.

    Source: Zhang et al. 2024 (arXiv 2410.16454), eq. 5.
    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"the percentile must be 0 to 100, not {percentile}")
    if not scores.numel():
        raise ValueError("no scores")
    flat = scores.flatten().double().sort().values
    place = percentile / 100 * (len(flat) - 1)
    low, high = flat[int(place)], flat[min(int(place) + 1, len(flat) - 1)]
    return scores.double() >= low + (high - low) * (place - int(place))
