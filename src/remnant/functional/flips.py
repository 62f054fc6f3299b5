"""What a quantizer does to an update: which codes it changes, and how much of the update is still there behind it.

With T the target's weight, U the unlearned one, d = U - T and r = Q(U) - Q(T): a weight that lies anywhere in its bin keeps its update in
expectation (E[r] = d) and gets noise of variance |d| (D - |d|); a bin that holds T and U erases d.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from remnant.functional.quantizers import Quantized


class Sums(NamedTuple):
    """Sums over the weights of a part of a model; those of two parts may be added entry by entry.

    ``update``: <d, d>; ``restored``: <r, r>; ``together``: <r, d>; ``weights``: how many; ``changed``: d not 0; ``same_code``: codes equal;
    ``erased``: changed, and both codes the zero code.
    """

    update: float
    restored: float
    together: float
    weights: int
    changed: int
    same_code: int
    erased: int

    def plus(self, other: "Sums") -> "Sums":
        """The sums of both parts."""
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))  # type: ignore[arg-type]


class Survival(NamedTuple):
    """How an update fares under a quantizer.

    ``gain``: <r, d> / <d, d>; 0 is erased, 1 survives, above 1 is enlarged; NaN where nothing was updated.
    ``cosine``: between r and d, -1 to 1; NaN where one of them is 0. ``same_codes``: share of equal codes, 0 to 1.
    ``in_zero_bin``: share of the changed weights that the zero code holds before and after, 0 to 1; NaN where none changed.
    """

    gain: float
    cosine: float
    same_codes: float
    in_zero_bin: float


def sums(target: Tensor, unlearned: Tensor, q_target: Quantized, q_unlearned: Quantized) -> Sums:
    """The sums for one weight, in float64.

    Args:
        target: weight of the target, any shape.
        unlearned: weight of the unlearned model, same shape.
        q_target: the quantized target.
        q_unlearned: the unlearned weight quantized in the same way.
    """
    d = unlearned.double() - target.double()
    r = q_unlearned.weight.double() - q_target.weight.double()
    same = q_target.codes == q_unlearned.codes
    moved = d != 0
    erased = moved & same & (q_target.weight == 0) & (q_unlearned.weight == 0)
    return Sums(
        update=float((d * d).sum()),
        restored=float((r * r).sum()),
        together=float((r * d).sum()),
        weights=d.numel(),
        changed=int(moved.sum()),
        same_code=int(same.sum()),
        erased=int(erased.sum()),
    )


def survival(found: Sums) -> Survival:
    """The ratios of some sums."""
    nan = float("nan")
    norm = (found.update * found.restored) ** 0.5
    return Survival(
        gain=found.together / found.update if found.update else nan,
        cosine=found.together / norm if norm else nan,
        same_codes=found.same_code / found.weights if found.weights else nan,
        in_zero_bin=found.erased / found.changed if found.changed else nan,
    )


def expected_noise(update: Tensor, step: Tensor | float) -> Tensor:
    """Variance that rounding adds to an update of a weight that lies anywhere in its bin: |d| (D - |d|) for |d| up to D.

    Beyond a step the whole steps pass without noise and the rest counts. Shape of ``update``; own derivation, exact for a uniform
    position and a uniform grid of step D.
    """
    rest = torch.remainder(update.abs(), step)
    return rest * (step - rest)
