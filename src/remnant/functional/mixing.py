"""A weight between two weights, or beyond one of them."""

import torch

from remnant.functional.quantized import numbers
from remnant.functional.shapes import AnyWeight


def mix(weight: AnyWeight, target: AnyWeight, *, share: float = 0.5) -> AnyWeight:
    """(1 - a) w + a t: on the straight line from a weight to the same weight of the target.

    Args:
        weight: any shape and float type.
        target: the same shape.
        share: a, from 0, which gives the weight, to 1, which gives the target's, both exactly.

    Returns:
        Float32 of the weight's shape.

    Raises:
        ValueError: one of the two is not finite.

    Source: Wortsman et al. 2021 (arXiv 2109.01903), eq. 1, there between a model and what
    fine-tuning made of it; here the line leads back over what unlearning did.

    >>> import torch
    >>> mix(torch.tensor([0.0, 4.0]), torch.tensor([2.0, 0.0]), share=0.25)
    tensor([0.5000, 3.0000])
    """
    return numbers(weight).lerp(numbers(target), share)


def random_update(weight: AnyWeight, target: AnyWeight, generator: torch.Generator) -> AnyWeight:
    """The target t with a random update as long as that of a model w: t + |w - t| n / |n|, n normal
    in every entry.

    Args:
        weight: of the unlearned model, any shape and float type.
        target: of the target, the same shape.
        generator: on the CPU, so that every device draws the same.

    Returns:
        Float32 of the weight's shape; the target's weight exactly where the model's is the same.

    Raises:
        ValueError: one of the two is not finite.

    Source: a control, not a published method: of an update it keeps every weight's norm and nothing
    else.

    >>> random_update(torch.tensor([1.0]), torch.tensor([3.0]), torch.Generator()).sub(3).abs()
    tensor([2.])
    """
    wide = numbers(target)
    drawn = torch.randn(wide.shape, generator=generator).to(wide.device)
    length = (numbers(weight) - wide).norm()
    return numbers(wide + drawn * (length / drawn.norm().clamp(min=1e-30)))


def task_vector(weight: AnyWeight, target: AnyWeight, *, scale: float = 1.0) -> AnyWeight:
    """The target t less a times what learning the text once more added to it: t - a (w - t).

    Args:
        weight: of the target trained further on the forget text, any shape and float type.
        target: of the target, the same shape.
        scale: a, 0 or more; 0 gives the target's weight exactly.

    Returns:
        Float32 of the weight's shape.

    Raises:
        ValueError: one of the two, or the result, is not finite.

    Source: Ilharco et al. 2022 (arXiv 2212.04089), section 3, negation. *Differs from the code of
    MUSE in*: differences are taken in float32; in bfloat16 those of a usual rate vanish.

    >>> import torch
    >>> task_vector(torch.tensor([1.5, 2.0]), torch.tensor([1.0, 2.0]), scale=2.0)
    tensor([0., 2.])
    """
    wide = numbers(target)
    return numbers(wide - scale * (numbers(weight) - wide))
