"""Passes over two equal-shaped blocks of float32 weights, compiled and vectorized; every sum of `functional/flips.py` for one grid.

A grid's kernel adds to ``out``, five float64: <r, r>, <r, d>, equal codes, erased weights, |d| / scale. ``t`` is the target's weight,
``u`` the unlearned one, flat. Integer grids divide by the scale, levels multiply by its reciprocal, as the quantizers do: weights in
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
def update(t: Floats, u: Floats, out: Doubles) -> None:
    """Add <d, d>, the sum of |d| and the number of changed weights to three float64."""
    for start in range(0, t.size, SPAN):
        square, length, changed = np.float32(0), np.float32(0), np.int32(0)
        for i in range(start, min(start + SPAN, t.size)):
            d = u[i] - t[i]
            square += d * d
            length += abs(d)
            changed += np.int32(d != 0)
        out[0] += square
        out[1] += length
        out[2] += changed


@_compiled
def extremes(w: Floats, block: int, low: Floats, high: Floats) -> None:
    """Smallest and largest weight of every block."""
    for b in range(w.size // block):
        smallest, largest = w[b * block], w[b * block]
        for i in range(b * block, (b + 1) * block):
            smallest = min(smallest, w[i])
            largest = max(largest, w[i])
        low[b] = smallest
        high[b] = largest


@_compiled
def integers(
    t: Floats, u: Floats, block: int, t_step: Floats, t_scale: Floats, t_zero: Floats, u_step: Floats, u_scale: Floats, u_zero: Floats,
    low: np.float32, high: np.float32, out: Doubles,
) -> None:  # fmt: skip
    """An integer grid: value = (code - zero) * scale, code = clamp(round(w / step) + zero); scale is step as it is stored."""
    span = min(block, SPAN)
    for b in range(t.size // block):
        tq, ts, tz, uq, us, uz = t_step[b], t_scale[b], t_zero[b], u_step[b], u_scale[b], u_zero[b]
        for start in range(b * block, (b + 1) * block, span):
            square, product, length = np.float32(0), np.float32(0), np.float32(0)
            same, erased = np.int32(0), np.int32(0)
            for i in range(start, min(start + span, (b + 1) * block)):
                a = min(max(np.rint(t[i] / tq) + tz, low), high) - tz
                c = min(max(np.rint(u[i] / uq) + uz, low), high) - uz
                d = u[i] - t[i]
                r = c * us - a * ts
                square += r * r
                product += r * d
                length += abs(d)
                equal = ((a + tz) == (c + uz)) | ((a == 0) & (c == 0))
                same += np.int32(equal)
                erased += np.int32((d != 0) & (a == 0) & (c == 0))
            out[0] += square
            out[1] += product
            out[2] += same
            out[3] += erased
            out[4] += length / abs(tq)


NF4 = tuple(np.float32(v) for v in NF4_LEVELS)
_E = tuple(np.float32((a + b) / np.float32(2)) for a, b in pairwise(NF4))


@njit(inline="always", fastmath=FAST)
def _nf4(x):  # type: ignore[no-untyped-def]
    """The nearest level of NormalFloat; written out, since a loop over levels is not vectorized."""
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
def _fp4(x):  # type: ignore[no-untyped-def]
    """The nearest level of the 4-bit float."""
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


def _grid(nearest):  # type: ignore[no-untyped-def]
    """The pass over blocks for one grid of fixed levels: value = nearest(w / scale) * scale."""

    @_compiled
    def blocks(t, u, block, t_scale, u_scale, out):  # type: ignore[no-untyped-def]
        span = min(block, SPAN)
        for b in range(t.size // block):
            ts, us = t_scale[b], u_scale[b]
            ti, ui = np.float32(1) / ts, np.float32(1) / us
            for start in range(b * block, (b + 1) * block, span):
                square, product, length = np.float32(0), np.float32(0), np.float32(0)
                same, erased = np.int32(0), np.int32(0)
                for i in range(start, min(start + span, (b + 1) * block)):
                    a, c = nearest(t[i] * ti), nearest(u[i] * ui)
                    d = u[i] - t[i]
                    r = c * us - a * ts
                    square += r * r
                    product += r * d
                    length += abs(d)
                    same += np.int32(a == c)
                    erased += np.int32((d != 0) & (a == 0) & (c == 0))
                out[0] += square
                out[1] += product
                out[2] += same
                out[3] += erased
                out[4] += length / ts

    return blocks


nf4, fp4 = _grid(_nf4), _grid(_fp4)  # type: ignore[no-untyped-call]


@njit(nogil=True, cache=True)
def _to_e4m3(w: Floats, scale: np.float32, scaled: Floats, rounded: Floats) -> None:
    """Round w / scale to four significant bits, ties to even; below 1/64 to multiples of 1/512."""
    for i in range(w.size):
        scaled[i] = w[i] / scale
    bits, kept = scaled.view(np.int32), rounded.view(np.int32)
    for i in range(w.size):
        kept[i] = (bits[i] + 0x7FFFF + ((bits[i] >> 20) & 1)) & -0x100000
    for i in range(w.size):
        small = np.rint(scaled[i] * np.float32(512)) * np.float32(1 / 512)
        rounded[i] = small if abs(scaled[i]) < np.float32(0.015625) else rounded[i]


@_compiled
def fp8(t: Floats, u: Floats, block: int, t_scale: Floats, u_scale: Floats, out: Doubles) -> None:
    """The 8-bit float e4m3 times the scale of the block."""
    span = min(block, SPAN)
    x, a, c = np.empty(span, np.float32), np.empty(span, np.float32), np.empty(span, np.float32)
    for b in range(t.size // block):
        for start in range(b * block, (b + 1) * block, span):
            stop = min(start + span, (b + 1) * block)
            _to_e4m3(t[start:stop], t_scale[b], x[: stop - start], a[: stop - start])
            _to_e4m3(u[start:stop], u_scale[b], x[: stop - start], c[: stop - start])
            square, product, length = np.float32(0), np.float32(0), np.float32(0)
            same, erased = np.int32(0), np.int32(0)
            for i in range(stop - start):
                d = u[start + i] - t[start + i]
                r = c[i] * u_scale[b] - a[i] * t_scale[b]
                square += r * r
                product += r * d
                length += abs(d)
                same += np.int32(a[i] == c[i])
                erased += np.int32((d != 0) & (a[i] == 0) & (c[i] == 0))
            out[0] += square
            out[1] += product
            out[2] += same
            out[3] += erased
            out[4] += length / t_scale[b]
