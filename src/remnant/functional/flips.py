"""What a quantizer does to an update, weight by weight, on tensors: the exact form of the sums in
`survival.py`.
"""

import torch
from torch import Tensor

from remnant.functional.cells import per_weight
from remnant.functional.quantized import Quantized
from remnant.functional.shapes import AnyMask, AnyWeight
from remnant.functional.survival import Sums


def sums(
    target: AnyWeight, unlearned: AnyWeight, q_target: Quantized, q_unlearned: Quantized
) -> Sums:
    """The sums for one weight, in float64.

    Args:
        target: weight of the target, any shape.
        unlearned: weight of the unlearned model, same shape.
        q_target: the quantized target.
        q_unlearned: the unlearned weight quantized in the same way.
    """
    d = unlearned.double() - target.double()
    r = q_unlearned.weight.double() - q_target.weight.double()
    moved = d != 0
    zeros = (q_target.weight == 0) & (q_unlearned.weight == 0)
    scale = per_weight(q_target.scale, d).double().abs()
    scale = torch.where(scale > 0, scale, 1.0)
    return Sums(
        update=float((d * d).sum()),
        restored=float((r * r).sum()),
        together=float((r * d).sum()),
        over_scale=float((d.abs() / scale).sum()),
        weights=d.numel(),
        changed=int(moved.sum()),
        same_code=int((_same(q_target, q_unlearned) | zeros).sum()),
        erased=int((moved & zeros).sum()),
    )


def _same(one: Quantized, other: Quantized) -> AnyMask:
    """Where the codes are equal; without codes, where the decoded values are."""
    if one.codes.numel() == 0 or other.codes.numel() == 0:
        return one.weight == other.weight
    return one.codes == other.codes


def expected_noise(update: AnyWeight, step: Tensor | float) -> AnyWeight:
    """Variance that rounding adds to an update of a weight that lies anywhere in its bin: |d| (D -
    |d|) for |d| up to D.

    Beyond a step the whole steps pass without noise and the rest counts. Shape of ``update``; own
    derivation, exact for a uniform position and a uniform grid of step D.
    """
    rest = torch.remainder(update.abs(), step)
    return rest * (step - rest)
