"""How much of an update is left behind a quantizer, as sums over weights and their ratios. No torch.

With T the target's weight, U the unlearned one, d = U - T and r = Q(U) - Q(T): a weight that lies anywhere in its bin keeps its update in
expectation (E[r] = d) and gets noise of variance |d| (D - |d|); a bin that holds T and U erases d.
"""

from typing import NamedTuple


class Sums(NamedTuple):
    """Sums over the weights of a part of a model; those of two parts may be added entry by entry.

    ``update``: <d, d>; ``restored``: <r, r>; ``together``: <r, d>; ``over_scale``: sum of |d| / scale of the weight's block (the scale is
    the step of an integer grid, the largest magnitude on a float grid); ``weights``: how many; ``changed``: d not 0; ``same_code``: codes
    equal, or both decoded to 0; ``erased``: changed, and both decoded to 0.
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
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))  # type: ignore[arg-type]


def untouched(update: float, weights: int, changed: int) -> Sums:
    """The sums of weights that no quantizer touches, where r = d: <d, d>, how many there are, and how many of them changed."""
    return Sums(update, update, update, 0.0, weights, changed, weights - changed, 0)


class Survival(NamedTuple):
    """How an update fares under a quantizer; None where a ratio is undefined (nothing was updated, or nothing is left).

    ``gain``: <r, d> / <d, d>; 0 is erased, 1 survives, above 1 is enlarged. ``cosine``: between r and d, -1 to 1.
    ``signal_to_noise``: |gain d| / |r - gain d|, 0 or more; the part of r along the update against the rest.
    ``same_codes``: share of equal codes, 0 to 1. ``in_zero_bin``: share of the changed weights that decode to 0 before and after, 0 to 1.
    ``update_over_scale``: mean of |d| / scale over the changed weights, 0 or more. ``changed``: share of changed weights, 0 to 1.
    """

    gain: float | None
    cosine: float | None
    signal_to_noise: float | None
    same_codes: float | None
    in_zero_bin: float | None
    update_over_scale: float | None
    changed: float | None


def survival(found: Sums) -> Survival:
    """The ratios of some sums."""
    gain = _ratio(found.together, found.update)
    norm = (found.update * found.restored) ** 0.5
    noise = None if gain is None else max(0.0, found.restored - gain * found.together) ** 0.5
    return Survival(
        gain=gain,
        cosine=_ratio(found.together, norm),
        signal_to_noise=None if gain is None or noise is None else _ratio(abs(gain) * found.update**0.5, noise),
        same_codes=_ratio(found.same_code, found.weights),
        in_zero_bin=_ratio(found.erased, found.changed),
        update_over_scale=_ratio(found.over_scale, found.changed),
        changed=_ratio(found.changed, found.weights),
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
