"""Passes over two equal-shaped runs of weights, compiled and vectorized; every sum of `functional/flips.py` for many grids at once.

``t`` is the target's weight, ``u`` the unlearned one, flat. A run of some rows is widened once and stays in the cache while every grid
passes over it. Counts are kept in float32, which is exact over a span and leaves all of a loop in vectors of one width.
"""

from itertools import pairwise

import numpy as np
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray

from remnant.levels import FP4_LEVELS, NF4_LEVELS
from remnant.predict.casts import widen
from remnant.predict.glance import FAST, ONE, SPAN, ZERO, compiled, extremes, update

Floats = NDArray[np.float32]


@njit(inline="always", fastmath=FAST)
def _kept(x, cut, normal, least):  # type: ignore[no-untyped-def]
    """Without so many bits of the mantissa, ties to even; below ``normal`` a multiple of ``least``, as floats with few exponents are."""
    size = abs(x)
    bits = np.float32(size).view(np.int32)
    even = np.int32((bits >> np.int32(cut)) & np.int32(1))
    near = np.int32((bits + np.int32((1 << (cut - 1)) - 1) + even) & np.int32(-(1 << cut))).view(np.float32)
    v = np.rint(size * np.float32(1 / least)) * np.float32(least) if size < np.float32(normal) else near
    return -v if x < 0 else v


@njit(cache=True, fastmath={"contract"})
def _over(w, step, inverse):  # type: ignore[no-untyped-def]
    """The quotient w / step, rounded correctly, from 1 / step: weights in bfloat16 often lie on a tie, where the last bit decides.

    Source: Markstein 1990 (IBM Journal of Research and Development 34, 1): the product, corrected by its remainder.
    """
    product = w * inverse
    return product + (w - product * step) * inverse


# Scales: from a block's smallest and largest weight the step (what weights are divided by), the scale (what codes are multiplied with)
# and the zero. A block of zeros has the step one. GGUF files keep scales as float16.


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
    return step, _kept(step, 13, 2.0**-14, 2.0**-24), zero


@njit(inline="always", fastmath=FAST)
def _q4_0(smallest, largest, low, high, divisor):  # type: ignore[no-untyped-def]
    step = (smallest if -smallest >= largest else largest) / divisor
    step = step if step != 0 else ONE
    return step, _kept(step, 13, 2.0**-14, 2.0**-24), np.float32(8)


# Codes: a weight over the step, rounded to what the grid holds, as a multiple of the scale.


@njit(inline="always", fastmath=FAST)
def _nearest(w, step, inverse, zero, low, high):  # type: ignore[no-untyped-def]
    """On a grid that ends at the largest weight."""
    return np.rint(_over(w, step, inverse))


@njit(inline="always", fastmath=FAST)
def _integer(w, step, inverse, zero, low, high):  # type: ignore[no-untyped-def]
    x = np.rint(_over(w, step, inverse)) + zero
    x = x if x > low else low
    return (x if x < high else high) - zero


NF4 = tuple(np.float32(v) for v in NF4_LEVELS)
_E = tuple(np.float32((a + b) / np.float32(2)) for a, b in pairwise(NF4))


@njit(inline="always", fastmath=FAST)
def _nf4(w, step, inverse, zero, low, high):  # type: ignore[no-untyped-def]
    """The nearest level of NormalFloat; written out, since a loop over levels is not vectorized."""
    x = w * inverse
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


FP4 = tuple(np.float32(v) for v in sorted({abs(v) for v in FP4_LEVELS}))
_H = tuple(np.float32((a + b) / np.float32(2)) for a, b in pairwise(FP4))


@njit(inline="always", fastmath=FAST)
def _fp4(w, step, inverse, zero, low, high):  # type: ignore[no-untyped-def]
    """The nearest level of the 4-bit float, whose levels lie on both sides of zero alike."""
    x = w * inverse
    size = abs(x)
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
def _fp8(w, step, inverse, zero, low, high):  # type: ignore[no-untyped-def]
    """e4m3: four significant bits, below 1/64 a multiple of 1/512."""
    return _kept(_over(w, step, inverse), 20, 2.0**-6, 2.0**-9)


@njit(inline="always", fastmath=FAST)
def _terms(d, a, c, tz, uz, ts, us):  # type: ignore[no-untyped-def]
    """What one weight adds to <r, r>, <r, d>, equal codes and erased weights."""
    r = c * us - a * ts
    nothing = (a == 0) & (c == 0)
    return r * r, r * d, ONE if (a + tz == c + uz) | nothing else ZERO, ONE if nothing & (d != 0) else ZERO


def _long_pass(scales, code):  # type: ignore[no-untyped-def]
    """The pass of one kind of grid over blocks of at least a span, whose scales stay in registers; see ``_pass``."""

    @compiled
    def long(t, u, block, ends, low, high, divisor, out):  # type: ignore[no-untyped-def]
        for b in range(ends.shape[1]):
            q, s, z = scales(ends[0, b], ends[1, b], low, high, divisor)
            p, v, w = scales(ends[2, b], ends[3, b], low, high, divisor)
            qi, pi = ONE / q, ONE / p
            last = min((b + 1) * block, t.size)
            for start in range(b * block, last, SPAN):
                x, y = t[start : min(start + SPAN, last)], u[start : min(start + SPAN, last)]
                square, product, same, erased, distance = ZERO, ZERO, ZERO, ZERO, ZERO
                for i in range(x.size):
                    d = y[i] - x[i]
                    found = _terms(d, code(x[i], q, qi, z, low, high), code(y[i], p, pi, w, low, high), z, w, s, v)
                    square += found[0]
                    product += found[1]
                    same += found[2]
                    erased += found[3]
                    distance += abs(d)
                out[0] += square
                out[1] += product
                out[2] += same
                out[3] += erased
                out[4] += distance * abs(qi)

    return long


def _short_pass(scales, code, own_scale, zeroed):  # type: ignore[no-untyped-def]
    """The pass of one kind of grid over shorter blocks; see ``_pass``.

    Steps, inverses, scales and zeros are laid out weight by weight, a span at a time, so that the ends of blocks do not cut the loop into
    pieces; a kind whose scale is its step, or that has no zero, reads fewer of them.
    """

    @compiled
    def short(t, u, block, ends, low, high, divisor, laid, out):  # type: ignore[no-untyped-def]
        tq, ti, ts, tz, uq, ui, us, uz = laid[0], laid[1], laid[2], laid[3], laid[4], laid[5], laid[6], laid[7]
        for start in range(0, t.size, SPAN):
            stop = min(start + SPAN, t.size)
            for b in range(start // block, (stop - 1) // block + 1):
                q, s, z = scales(ends[0, b], ends[1, b], low, high, divisor)
                p, v, w = scales(ends[2, b], ends[3, b], low, high, divisor)
                first, last = max(start, b * block) - start, min(stop, (b + 1) * block) - start
                tq[first:last], ti[first:last], uq[first:last], ui[first:last] = q, ONE / q, p, ONE / p
                if own_scale:
                    ts[first:last], us[first:last] = s, v
                if zeroed:
                    tz[first:last], uz[first:last] = z, w
            x, y = t[start:stop], u[start:stop]
            square, product, same, erased, distance = ZERO, ZERO, ZERO, ZERO, ZERO
            for i in range(x.size):
                z, w = (tz[i], uz[i]) if zeroed else (ZERO, ZERO)
                s, v = (ts[i], us[i]) if own_scale else (tq[i], uq[i])
                d = y[i] - x[i]
                found = _terms(d, code(x[i], tq[i], ti[i], z, low, high), code(y[i], uq[i], ui[i], w, low, high), z, w, s, v)
                square += found[0]
                product += found[1]
                same += found[2]
                erased += found[3]
                distance += abs(d * ti[i])
            out[0] += square
            out[1] += product
            out[2] += same
            out[3] += erased
            out[4] += distance

    return short


def _pass(scales, code, *, own_scale=False, zeroed=False):  # type: ignore[no-untyped-def]
    """The pass for one kind of grid: adds <r, r>, <r, d>, equal codes, erased weights and the sum of |d| / step to five float64.

    ``ends`` [4, blocks]: smallest and largest of both models; the last block may be short. ``low`` and ``high`` bound the codes.
    """
    long = _long_pass(scales, code)  # type: ignore[no-untyped-call]
    short = _short_pass(scales, code, own_scale, zeroed)  # type: ignore[no-untyped-call]

    @compiled
    def blocks(t, u, block, ends, low, high, divisor, laid, out):  # type: ignore[no-untyped-def]
        if block >= SPAN:
            long(t, u, block, ends, low, high, divisor, out)
        else:
            short(t, u, block, ends, low, high, divisor, laid, out)

    return blocks


_NEAREST, _CLAMPED = _pass(_symmetric, _nearest), _pass(_symmetric, _integer)  # type: ignore[no-untyped-call]
_ASYMMETRIC = _pass(_asymmetric, _integer, zeroed=True)  # type: ignore[no-untyped-call]
_GGUF8 = _pass(_q8_0, _nearest, own_scale=True)  # type: ignore[no-untyped-call]
_GGUF4 = _pass(_q4_0, _integer, own_scale=True, zeroed=True)  # type: ignore[no-untyped-call]
_NORMAL4, _FLOAT4, _FLOAT8 = _pass(_symmetric, _nf4), _pass(_symmetric, _fp4), _pass(_symmetric, _fp8)  # type: ignore[no-untyped-call]
# Their numbers, by which a table of grids names them.
KINDS = ("sym", "clamped", "asym", "q8_0", "q4_0", "nf4", "fp4", "fp8")


@compiled
def survey(t, u, run, base, kinds, blocks, bounds, whole, sums):  # type: ignore[no-untyped-def]
    """All grids over some whole rows.

    Args:
        t: flat weights of the target, float32 or bits of bfloat16.
        u: the unlearned ones.
        run: so many weights are widened at a time and stay in the cache; a number of whole blocks.
        base: a length that divides every block and every run.
        kinds: [grids] places in ``KINDS``.
        blocks: [grids] weights that share a scale; 0 for the whole weight.
        bounds: [grids, 3] lowest and highest code, and what the largest weight is divided by.
        whole: [4, 1] smallest and largest of the whole weight, in the target and in the unlearned model.
        sums: [grids, 7] is added to: update, changed, restored, together, equal codes, erased, |d| / step.
    """
    size = min(run, t.size)
    wide, laid = np.empty((2, size), np.float32), np.empty((8, SPAN), np.float32)
    for start in range(0, t.size, run):
        short = np.empty((4, min(run, t.size - start) // base), np.float32)
        x = _wide(t[start : start + run], wide[0], base, short[0], short[1])  # type: ignore[no-untyped-call]
        y = _wide(u[start : start + run], wide[1], base, short[2], short[3])  # type: ignore[no-untyped-call]
        _run(x, y, short, base, kinds, blocks, bounds, whole, laid, sums)


def _wide(raw, out, block, low, high):  # type: ignore[no-untyped-def]
    """Weights as float32, themselves or bits of bfloat16 widened into ``out``, and the extremes of their blocks."""


@overload(_wide)
def _wide_of(raw, out, block, low, high):  # type: ignore[no-untyped-def]
    if raw.dtype == types.float32:

        def same(raw, out, block, low, high):  # type: ignore[no-untyped-def]
            extremes(raw, block, low, high)  # type: ignore[no-untyped-call]
            return raw

        return same

    def widened(raw, out, block, low, high):  # type: ignore[no-untyped-def]
        part = out[: raw.size]
        widen(raw, part)
        extremes(raw, block, low, high)  # type: ignore[no-untyped-call]
        return part

    return widened


@compiled
def _run(t, u, short, base, kinds, blocks, bounds, whole, laid, sums):  # type: ignore[no-untyped-def]
    moved = np.zeros(2)
    update(t, u, moved)
    for g in range(kinds.size):
        sums[g, 0] += moved[0]
        sums[g, 1] += moved[1]
        block = blocks[g] if blocks[g] > 0 else t.size
        ends = whole if blocks[g] == 0 else short if block == base else _joined(short, block // base)
        low, high, divisor, out = bounds[g, 0], bounds[g, 1], bounds[g, 2], sums[g, 2:]
        kind = kinds[g]
        if kind == 0:
            _NEAREST(t, u, block, ends, low, high, divisor, laid, out)
        elif kind == 1:
            _CLAMPED(t, u, block, ends, low, high, divisor, laid, out)
        elif kind == 2:
            _ASYMMETRIC(t, u, block, ends, low, high, divisor, laid, out)
        elif kind == 3:
            _GGUF8(t, u, block, ends, low, high, divisor, laid, out)
        elif kind == 4:
            _GGUF4(t, u, block, ends, low, high, divisor, laid, out)
        elif kind == 5:
            _NORMAL4(t, u, block, ends, low, high, divisor, laid, out)
        elif kind == 6:
            _FLOAT4(t, u, block, ends, low, high, divisor, laid, out)
        else:
            _FLOAT8(t, u, block, ends, low, high, divisor, laid, out)


@compiled
def _joined(short: Floats, times: int) -> Floats:
    """The extremes of blocks so many times as long; the last one may be short."""
    count = -(-short.shape[1] // times)
    wide = np.empty((4, count), np.float32)
    for b in range(count):
        first, last = b * times, min((b + 1) * times, short.shape[1])
        for row in range(4):
            found = short[row, first]
            for i in range(first + 1, last):
                found = min(found, short[row, i]) if row % 2 == 0 else max(found, short[row, i])
            wide[row, b] = found
    return wide
