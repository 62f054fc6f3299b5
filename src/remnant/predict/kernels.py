"""Passes over two equal-shaped blocks of float32 weights, compiled and vectorized; every sum of `functional/flips.py` for one grid.

``t`` is the target's weight, ``u`` the unlearned one, flat. Counts are kept in float32, which is exact over a span and leaves all of a
loop in vectors of one width. Integer grids divide by the step, levels multiply by its reciprocal, as the quantizers do: weights in
bfloat16 often lie on a tie.
"""

from itertools import pairwise

import numpy as np
from numba import njit
from numpy.typing import NDArray

from remnant.levels import FP4_LEVELS, NF4_LEVELS

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

# Sums may be taken in any order, and values are taken to be numbers: `update`, which is not compiled so, finds the ones that are not.
FAST = {"reassoc", "contract", "nsz", "nnan"}
_compiled = njit(nogil=True, cache=True, fastmath=FAST)
# Sums of this many terms are exact enough in float32; longer blocks are cut.
SPAN = 4096
ZERO, ONE = np.float32(0), np.float32(1)


@njit(nogil=True, cache=True)
def widen(raw: NDArray[np.uint16], out: NDArray[np.uint32]) -> None:
    """bfloat16 bits to float32 bits."""
    for i in range(raw.size):
        out[i] = np.uint32(raw[i]) << np.uint32(16)


@njit(nogil=True, cache=True)
def narrow(bits: NDArray[np.int32]) -> None:
    """Round float32 bits in place to those that bfloat16 can hold, ties to even."""
    for i in range(bits.size):
        bits[i] = (bits[i] + 0x7FFF + ((bits[i] >> 16) & 1)) & -0x10000


@njit(nogil=True, cache=True, fastmath=FAST - {"nnan"})
def update(t: Floats, u: Floats, length: Floats, out: Doubles) -> None:
    """The sum of |d| of every block; add <d, d>, the sum of |d| and the number of changed weights to three float64."""
    block = t.size // length.size
    span = min(block, SPAN)
    for b in range(length.size):
        whole = ZERO
        for start in range(b * block, (b + 1) * block, span):
            stop = min(start + span, (b + 1) * block)
            x, y = t[start:stop], u[start:stop]
            square, distance, changed = ZERO, ZERO, ZERO
            for i in range(x.size):
                d = y[i] - x[i]
                square += d * d
                distance += abs(d)
                changed += ONE if d != 0 else ZERO
            out[0] += square
            out[1] += distance
            out[2] += changed
            whole += distance
        length[b] = whole


@_compiled
def extremes(w: Floats, low: Floats, high: Floats) -> None:
    """Smallest and largest weight of every block."""
    block = w.size // low.size
    for b in range(low.size):
        x = w[b * block : (b + 1) * block]
        smallest, largest = x[0], x[0]
        for i in range(x.size):
            smallest = x[i] if x[i] < smallest else smallest
            largest = x[i] if x[i] > largest else largest
        low[b] = smallest
        high[b] = largest


@_compiled
def join(short: Floats, wide: Floats) -> None:
    """What is known of longer blocks, from what is known of short ones."""
    times = short.shape[1] // wide.shape[1]
    for b in range(wide.shape[1]):
        a, c, d, e, length = short[0, b * times], short[1, b * times], short[2, b * times], short[3, b * times], ZERO
        for i in range(b * times, (b + 1) * times):
            a, c = min(a, short[0, i]), max(c, short[1, i])
            d, e = min(d, short[2, i]), max(e, short[3, i])
            length += short[4, i]
        wide[0, b], wide[1, b], wide[2, b], wide[3, b], wide[4, b] = a, c, d, e, length


@njit(inline="always", fastmath=FAST)
def _kept(x, cut, normal, least):  # type: ignore[no-untyped-def]
    """Without so many bits of the mantissa, ties to even; below ``normal`` a multiple of ``least``, as floats with few exponents are."""
    size = abs(x)
    bits = np.float32(size).view(np.int32)
    even = np.int32((bits >> np.int32(cut)) & np.int32(1))
    near = np.int32((bits + np.int32((1 << (cut - 1)) - 1) + even) & np.int32(-(1 << cut))).view(np.float32)
    v = np.rint(size * np.float32(1 / least)) * np.float32(least) if size < np.float32(normal) else near
    return -v if x < 0 else v


@njit(inline="always", fastmath=FAST)
def _half(x):  # type: ignore[no-untyped-def]
    """As a scale is stored in a GGUF file."""
    return _kept(x, 13, 2.0**-14, 2.0**-24)


# Scales: from a block's smallest and largest weight the step (what weights are divided by), the scale (what codes are multiplied with)
# and the zero. A block of zeros has the step one.


@njit(inline="always", fastmath=FAST)
def _symmetric(smallest, largest, low, high, divisor):  # type: ignore[no-untyped-def]
    step = max(-smallest, largest) / divisor
    step = step if step > 0 else ONE
    return step, step, ZERO


@njit(inline="always", fastmath=FAST)
def _asymmetric(smallest, largest, low, high, divisor):  # type: ignore[no-untyped-def]
    smallest, largest = min(smallest, ZERO), max(largest, ZERO)
    step = (largest - smallest) / divisor
    step = step if step > 0 else ONE
    return step, step, min(max(low - np.rint(smallest / step), low), high)


@njit(inline="always", fastmath=FAST)
def _q8_0(smallest, largest, low, high, divisor):  # type: ignore[no-untyped-def]
    step, _, zero = _symmetric(smallest, largest, low, high, divisor)
    return step, _half(step), zero


@njit(inline="always", fastmath=FAST)
def _q4_0(smallest, largest, low, high, divisor):  # type: ignore[no-untyped-def]
    step = (smallest if -smallest >= largest else largest) / divisor
    step = step if step != 0 else ONE
    return step, _half(step), np.float32(8)


# Codes: a weight over the step, rounded to what the grid holds, as a multiple of the scale.


@njit(inline="always", fastmath=FAST)
def _integer(w, step, zero, low, high):  # type: ignore[no-untyped-def]
    x = np.rint(w / step) + zero
    x = x if x > low else low
    return (x if x < high else high) - zero


NF4 = tuple(np.float32(v) for v in NF4_LEVELS)
_E = tuple(np.float32((a + b) / np.float32(2)) for a, b in pairwise(NF4))


@njit(inline="always", fastmath=FAST)
def _nf4(w, step, zero, low, high):  # type: ignore[no-untyped-def]
    """The nearest level of NormalFloat; written out, since a loop over levels is not vectorized."""
    x = w * (ONE / step)
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


FP4 = tuple(np.float32(v) for v in sorted({v + 0.0 for v in FP4_LEVELS}))
_H = tuple(np.float32((a + b) / np.float32(2)) for a, b in pairwise(FP4))


@njit(inline="always", fastmath=FAST)
def _fp4(w, step, zero, low, high):  # type: ignore[no-untyped-def]
    """The nearest level of the 4-bit float."""
    x = w * (ONE / step)
    v = FP4[0]
    v = FP4[1] if x > _H[0] else v
    v = FP4[2] if x > _H[1] else v
    v = FP4[3] if x > _H[2] else v
    v = FP4[4] if x > _H[3] else v
    v = FP4[5] if x > _H[4] else v
    v = FP4[6] if x > _H[5] else v
    v = FP4[7] if x > _H[6] else v
    v = FP4[8] if x > _H[7] else v
    v = FP4[9] if x > _H[8] else v
    v = FP4[10] if x > _H[9] else v
    v = FP4[11] if x > _H[10] else v
    v = FP4[12] if x > _H[11] else v
    v = FP4[13] if x > _H[12] else v
    return FP4[14] if x > _H[13] else v


@njit(inline="always", fastmath=FAST)
def _fp8(w, step, zero, low, high):  # type: ignore[no-untyped-def]
    """e4m3: four significant bits, below 1/64 a multiple of 1/512."""
    return _kept(w / step, 20, 2.0**-6, 2.0**-9)


def _pass(scales, code):  # type: ignore[no-untyped-def]
    """The pass for one kind of grid: adds <r, r>, <r, d>, equal codes, erased weights and the sum of |d| / step to five float64.

    ``known`` [5, blocks]: smallest and largest of the target, of the unlearned model, sum of |d|. ``low`` and ``high`` bound the codes.
    """

    @_compiled
    def blocks(t, u, known, low, high, divisor, out):  # type: ignore[no-untyped-def]
        block = t.size // known.shape[1]
        span = min(block, SPAN)
        for b in range(known.shape[1]):
            tq, ts, tz = scales(known[0, b], known[1, b], low, high, divisor)
            uq, us, uz = scales(known[2, b], known[3, b], low, high, divisor)
            for start in range(b * block, (b + 1) * block, span):
                stop = min(start + span, (b + 1) * block)
                x, y = t[start:stop], u[start:stop]
                square, product, same, erased = ZERO, ZERO, ZERO, ZERO
                for i in range(x.size):
                    a, c = code(x[i], tq, tz, low, high), code(y[i], uq, uz, low, high)
                    d = y[i] - x[i]
                    r = c * us - a * ts
                    square += r * r
                    product += r * d
                    nothing = (a == 0) & (c == 0)
                    same += ONE if (a + tz == c + uz) | nothing else ZERO
                    erased += ONE if nothing & (d != 0) else ZERO
                out[0] += square
                out[1] += product
                out[2] += same
                out[3] += erased
            out[4] += known[4, b] / abs(tq)

    return blocks


integers, asymmetric = _pass(_symmetric, _integer), _pass(_asymmetric, _integer)  # type: ignore[no-untyped-call]
q8_0, q4_0 = _pass(_q8_0, _integer), _pass(_q4_0, _integer)  # type: ignore[no-untyped-call]
nf4, fp4, fp8 = _pass(_symmetric, _nf4), _pass(_symmetric, _fp4), _pass(_symmetric, _fp8)  # type: ignore[no-untyped-call]
