"""The arithmetic of every grid: from a block's extremes to its scale, and from a weight to the
level that it is rounded to.

Compiled into the passes of `kernels.py`, whose results the compiler keeps until that file changes:
after a change here, touch it.
"""

from itertools import pairwise

import numpy as np
from numba import njit

from remnant.forecast.glance import FAST, ONE, ZERO
from remnant.levels import FP4_LEVELS, NF4_LEVELS

# Without fast mathematics, said in so many words: a function that leaves it open takes it over from
# the one that calls it.
strict = njit(cache=True, fastmath=False)
# A highest code that asks a float grid for a quotient.
WHOLE = np.float32(2)


@njit(inline="always", fastmath=FAST)
def kept(x, cut, normal, least):  # type: ignore[no-untyped-def]
    """Without so many bits of the mantissa, ties to even.

    Below ``normal`` a multiple of ``least``, as floats with few exponents are.
    """
    size = abs(x)
    bits = np.float32(size).view(np.int32)
    even = np.int32((bits >> np.int32(cut)) & np.int32(1))
    near = np.int32((bits + np.int32((1 << (cut - 1)) - 1) + even) & np.int32(-(1 << cut))).view(
        np.float32
    )
    v = (
        np.rint(size * np.float32(1 / least)) * np.float32(least)
        if size < np.float32(normal)
        else near
    )
    return -v if x < 0 else v


@strict
def times(w, by):  # type: ignore[no-untyped-def]
    """The product, rounded by itself: never fused with what it is added to, which would give other
    last bits than the quantizers'.
    """
    return w * by


@strict
def lifted(step, lift):  # type: ignore[no-untyped-def]
    """A step so many times as large, and its reciprocal.

    Not reassociated, which would divide by the small step itself.
    """
    larger = step * lift
    return larger, ONE / larger


@njit(cache=True, fastmath={"contract"})
def over(w, step, inverse):  # type: ignore[no-untyped-def]
    """The quotient w / step, rounded correctly, from 1 / step: weights in bfloat16 often lie on a
    tie, where the last bit decides.

    Source: Markstein 1990 (IBM Journal of Research and Development 34, 1): the product, corrected
    by its remainder.
    """
    product = w * inverse
    return product + (w - product * step) * inverse


# Scales: from a block's smallest and largest weight the step (what weights are divided by), the
# scale (what codes are multiplied with) and the zero. A block of zeros has the step one. GGUF files
# keep scales as float16.


@njit(inline="always", fastmath=FAST)
def symmetric(smallest, largest, low, high, divisor):  # type: ignore[no-untyped-def]
    """Of a grid that is the same on both sides of zero."""
    step = max(-smallest, largest) / divisor
    step = step if step > 0 else ONE
    return step, step, ZERO


@njit(inline="always", fastmath=FAST)
def asymmetric(smallest, largest, low, high, divisor):  # type: ignore[no-untyped-def]
    """From the smallest to the largest weight, zero included."""
    smallest, largest = min(smallest, ZERO), max(largest, ZERO)
    step = (largest - smallest) / divisor
    step = step if step > 0 else ONE
    return step, step, min(max(low - np.rint(smallest / step), low), high)


@njit(inline="always", fastmath=FAST)
def q8_0(smallest, largest, low, high, divisor):  # type: ignore[no-untyped-def]
    """Of GGUF's Q8_0."""
    step, _, zero = symmetric(smallest, largest, low, high, divisor)
    return step, kept(step, 13, 2.0**-14, 2.0**-24), zero


@njit(inline="always", fastmath=FAST)
def q4_0(smallest, largest, low, high, divisor):  # type: ignore[no-untyped-def]
    """Of GGUF's Q4_0: the largest weight is the lowest code, and may be positive."""
    step = (smallest if -smallest >= largest else largest) / divisor
    step = step if step != 0 else ONE
    return step, kept(step, 13, 2.0**-14, 2.0**-24), np.float32(8)


@strict
def nvfp4(smallest, largest, low, high, shared):  # type: ignore[no-untyped-def]
    """Of NVFP4: e4m3, relative to a number of the whole weight; one that is rounded to zero is 1/8.

    In the quantizer's order, nothing reassociated.
    """
    scale = max(-smallest, largest) / np.float32(6) * shared
    scale = kept(min(scale, np.float32(448)), 20, 2.0**-6, 2.0**-9)
    step = (scale if scale > 0 else np.float32(0.125)) / shared
    return step, step, ZERO


@njit(inline="always", fastmath=FAST)
def mxfp4(smallest, largest, low, high, divisor):  # type: ignore[no-untyped-def]
    """Of MXFP4: the power of two of the largest weight over 4, the next from 1.75 times it on."""
    bits = np.float32(max(-smallest, largest)).view(np.int32)
    power = np.int32((bits + np.int32(1 << 21)) & np.int32(0x7F800000)).view(np.float32)
    step = max(times(power, np.float32(0.25)), np.float32(2.0**-127))
    return step, step, ZERO


# Codes: a weight over the step, rounded to what the grid holds, as a multiple of the scale.


@njit(inline="always", fastmath=FAST)
def away(w, step, inverse, zero, low, high):  # type: ignore[no-untyped-def]
    """Halves away from zero, of a product with the reciprocal, as llama.cpp does."""
    x = times(w, inverse)
    v = np.floor(abs(x) + np.float32(0.5))
    return -v if x < 0 else v


@njit(inline="always", fastmath=FAST)
def half_up(w, step, inverse, zero, low, high):  # type: ignore[no-untyped-def]
    """Halves upwards, as llama.cpp does."""
    x = np.trunc(times(w, inverse) + np.float32(8.5))
    return (x if x < high else high) - zero


@njit(inline="always", fastmath=FAST)
def integer(w, step, inverse, zero, low, high):  # type: ignore[no-untyped-def]
    """On a grid of whole numbers, ties to even."""
    x = np.rint(over(w, step, inverse)) + zero
    x = x if x > low else low
    return (x if x < high else high) - zero


NF4 = tuple(np.float32(v) for v in NF4_LEVELS)
_E = tuple(np.float32((a + b) / np.float32(2)) for a, b in pairwise(NF4))


@njit(inline="always", fastmath=FAST)
def nf4(w, step, inverse, zero, low, high):  # type: ignore[no-untyped-def]
    """The nearest level of NormalFloat; written out, since a loop over levels is not vectorized.

    ``high``: see ``_blockwise``.
    """
    x = times(w, inverse) if high < WHOLE else over(w, step, inverse)
    v = NF4[0]
    v = NF4[1] if x > _E[0] else v
    v = NF4[2] if x > _E[1] else v
    v = NF4[3] if x > _E[2] else v
    v = NF4[4] if x > _E[3] else v
    v = NF4[5] if x > _E[4] else v
    v = NF4[6] if x > _E[5] else v
    v = NF4[7] if x > _E[6] else v
    v = NF4[8] if x > _E[7] else v
    v = NF4[9] if x > _E[8] else v
    v = NF4[10] if x > _E[9] else v
    v = NF4[11] if x > _E[10] else v
    v = NF4[12] if x > _E[11] else v
    v = NF4[13] if x > _E[12] else v
    v = NF4[14] if x > _E[13] else v
    return NF4[15] if x > _E[14] else v


FP4 = tuple(np.float32(v) for v in sorted(set(map(abs, FP4_LEVELS))))
_H = tuple(np.float32((a + b) / np.float32(2)) for a, b in pairwise(FP4))


@njit(inline="always", fastmath=FAST)
def fp4(w, step, inverse, zero, low, high):  # type: ignore[no-untyped-def]
    """The nearest level of the 4-bit float, whose levels lie on both sides of zero alike.

    A tie goes to the lower level.

    So below zero, where the lower level is the larger one, the next larger float is looked at.
    ``high``: see ``_blockwise``.
    """
    x = times(w, inverse) if high < WHOLE else over(w, step, inverse)
    size = np.int32(np.float32(abs(x)).view(np.int32) + np.int32(1 if x < 0 else 0)).view(
        np.float32
    )
    v = FP4[0]
    v = FP4[1] if size > _H[0] else v
    v = FP4[2] if size > _H[1] else v
    v = FP4[3] if size > _H[2] else v
    v = FP4[4] if size > _H[3] else v
    v = FP4[5] if size > _H[4] else v
    v = FP4[6] if size > _H[5] else v
    v = FP4[7] if size > _H[6] else v
    return -v if x < 0 else v


@njit(inline="always", fastmath=FAST)
def fp8(w, step, inverse, zero, low, high):  # type: ignore[no-untyped-def]
    """e4m3: four significant bits, below 1/64 a multiple of 1/512.

    ``low`` and ``high`` are its ends.
    """
    x = over(w, step, inverse)
    x = x if x > low else low
    return kept(x if x < high else high, 20, 2.0**-6, 2.0**-9)


@njit(inline="always", fastmath=FAST)
def e2m1(w, step, inverse, zero, low, high):  # type: ignore[no-untyped-def]
    """Two significant bits, below 1 a multiple of 1/2; ``low`` and ``high`` are its ends."""
    x = over(w, step, inverse)
    x = x if x > low else low
    return kept(x if x < high else high, 22, 1.0, 0.5)
