"""How much of an update is left behind a quantizer, as sums over weights and their ratios.

No torch.

With T the target's weight, U the unlearned one, d = U - T and r = Q(U) - Q(T): a weight that lies
anywhere in its bin keeps its update in expectation (E[r] = d) and gets noise of variance |d| (D -
|d|); a bin that holds T and U erases d.
"""

import math
import re
from collections.abc import Mapping
from operator import add
from typing import NamedTuple

# Where fewer of the weights than these can move, bfloat16 forgets little or nothing (docs/why.md).
FEW = 0.1
# Where the number of a transformer's block stands in the name of a weight.
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks?)\.(\d+)\.")


class Sums(NamedTuple):
    """Sums over the weights of a part of a model; those of two parts may be added entry by entry.

    ``update``: <d, d>; ``restored``: <r, r>; ``together``: <r, d>; ``over_scale``: sum of |d| /
    scale of the weight's block (the scale is the step of an integer grid, the largest magnitude on
    a float grid); ``weights``: how many; ``changed``: d not 0; ``same_code``: codes equal, or both
    decoded to 0; ``erased``: changed, and both decoded to 0.
    """

    update: float = 0.0
    restored: float = 0.0
    together: float = 0.0
    over_scale: float = 0.0
    weights: int = 0
    changed: int = 0
    same_code: int = 0
    erased: int = 0

    def plus(self, other: "Sums") -> "Sums":
        """The sums of both parts."""
        return Sums(*map(add, self, other))


def untouched(update: float, weights: int, changed: int) -> Sums:
    """The sums of weights that no quantizer touches, where r = d: <d, d>, how many there are, and
    how many of them changed.
    """
    return Sums(update, update, update, 0.0, weights, changed, weights - changed, 0)


class Survival(NamedTuple):
    """How an update fares under a quantizer.

    None where a ratio is undefined (nothing was updated, or nothing is left).

    ``gain``: <r, d> / <d, d>; 0 is erased, 1 survives, above 1 is enlarged. ``cosine``: between r
    and d, -1 to 1. ``signal_to_noise``: |gain d| / |r - gain d|, 0 or more; the part of r along the
    update against the rest. ``same_codes``: share of equal codes, 0 to 1. ``in_zero_bin``: share of
    the changed weights that decode to 0 before and after, 0 to 1. ``update_over_scale``: mean of
    |d| / scale over the changed weights, 0 or more. ``changed``: share of changed weights, 0 to 1.
    ``early_gain``, ``late_gain``: of a whole model, the mean gain of the matrices in the first
    quarter of its blocks and of all others.
    """

    gain: float | None
    cosine: float | None
    signal_to_noise: float | None
    same_codes: float | None
    in_zero_bin: float | None
    update_over_scale: float | None
    changed: float | None
    early_gain: float | None = None
    late_gain: float | None = None


def survival(found: Sums) -> Survival:
    """The ratios of some sums."""
    gain = _ratio(found.together, found.update)
    norm = (found.update * found.restored) ** 0.5
    noise = None if gain is None else max(0.0, found.restored - gain * found.together) ** 0.5
    return Survival(
        gain=gain,
        cosine=_ratio(found.together, norm),
        signal_to_noise=None
        if gain is None or noise is None
        else _ratio(abs(gain) * found.update**0.5, noise),
        same_codes=_ratio(found.same_code, found.weights),
        in_zero_bin=_ratio(found.erased, found.changed),
        update_over_scale=_ratio(found.over_scale, found.changed),
        changed=_ratio(found.changed, found.weights),
    )


def survival_of_model(found: Mapping[str, Sums]) -> Survival:
    """The ratios of a whole model from the sums of its weights by their names."""
    blocks = {name: int(place[1]) if (place := _BLOCK.search(name)) else None for name in found}
    depth = 1 + max((b for b in blocks.values() if b is not None), default=-1)
    whole = Sums()
    early: list[float] = []
    late: list[float] = []
    for name, sums in found.items():
        whole = whole.plus(sums)
        if (gain := _ratio(sums.together, sums.update)) is not None:
            block = blocks[name]
            (early if block is not None and block < max(1, depth // 4) else late).append(gain)
    return survival(whole)._replace(
        early_gain=_ratio(sum(early), len(early)), late_gain=_ratio(sum(late), len(late))
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def movable_below(rate: float) -> float:
    """The magnitude below which a step of this size moves a weight kept in bfloat16.

    A step is kept where it is at least half a unit of the weight's last place, of 8 digits. A power
    of two.

    Args:
        rate: size of the step, above 0; AdamW's is about its learning rate.

    >>> movable_below(6e-5)
    0.015625
    """
    return 2.0 ** (math.floor(math.log2(rate) + 8) + 1)
