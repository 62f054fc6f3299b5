"""Passes over two equal-shaped runs of weights, compiled and vectorized.

Every sum of `functional/flips.py` for many grids at once.

``t`` is the target's weight, ``u`` the unlearned one, flat. A run of some rows is widened once and
stays in the cache while every grid passes over it. Counts are kept in float32, which is exact over
a span and leaves all of a loop in vectors of one width.
"""

from pathlib import Path

import numpy as np
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray

from remnant.forecast.casts import widen
from remnant.forecast.glance import FAST, ONE, SPAN, ZERO, compiled, extremes, update
from remnant.forecast.rounding import (
    WHOLE,
    asymmetric,
    away,
    e2m1,
    fp4,
    fp8,
    half_up,
    integer,
    lifted,
    mxfp4,
    nf4,
    nvfp4,
    q4_0,
    q8_0,
    symmetric,
    times,
)

Floats = NDArray[np.float32]
# Blocks whose largest weight is below TINY are rounded as if all were LIFT times as large, since 1
# / step is no float32 there.
TINY, LIFT = np.float32(2.0**-60), np.float32(2.0**90)


@njit(inline="always", fastmath=FAST)
def _terms(d, a, c, tz, uz, ts, us):  # type: ignore[no-untyped-def]
    """What one weight adds to <r, r>, <r, d>, equal codes and erased weights."""
    one, other = times(a, ts), times(c, us)
    r = other - one
    nothing = (one == 0) & (other == 0)
    return (
        r * r,
        r * d,
        ONE if (a + tz == c + uz) | nothing else ZERO,
        ONE if nothing & (d != 0) else ZERO,
    )


@njit(inline="always", fastmath=FAST)
def _lift(low, high, other_low, other_high):  # type: ignore[no-untyped-def]
    """How many times as large as they are a block's weights in both models are looked at.

    A power of two, so that no quotient changes.
    """
    x, y = max(-low, high), max(-other_low, other_high)
    return LIFT if (x < TINY) & (x > 0) | (y < TINY) & (y > 0) else ONE


@compiled
def _sided(x, smallest):  # type: ignore[no-untyped-def]
    """The smallest weight of a block whose largest is as far from zero, or zero where the largest
    comes first.
    """
    for i in range(x.size):
        if abs(x[i]) == -smallest:
            return smallest if x[i] < 0 else ZERO
    return smallest


def _long_pass(scales, code):  # type: ignore[no-untyped-def]
    """The pass of one kind of grid over blocks of at least a span, whose scales stay in registers.

    See ``_pass``.
    """

    @compiled
    def long(t, u, block, ends, low, high, divisors, out):  # type: ignore[no-untyped-def]
        for b in range(ends.shape[1]):
            q, s, z = scales(ends[0, b], ends[1, b], low, high, divisors[0])
            p, v, w = scales(ends[2, b], ends[3, b], low, high, divisors[1])
            lift = _lift(ends[0, b], ends[1, b], ends[2, b], ends[3, b])
            q, qi = lifted(q, lift)
            p, pi = lifted(p, lift)
            last = min((b + 1) * block, t.size)
            for start in range(b * block, last, SPAN):
                x, y = t[start : min(start + SPAN, last)], u[start : min(start + SPAN, last)]
                square, product, same, erased, distance = ZERO, ZERO, ZERO, ZERO, ZERO
                for i in range(x.size):
                    d = y[i] - x[i]
                    a, c = (
                        code(times(x[i], lift), q, qi, z, low, high),
                        code(times(y[i], lift), p, pi, w, low, high),
                    )
                    found = _terms(d, a, c, z, w, s, v)
                    square += found[0]
                    product += found[1]
                    same += found[2]
                    erased += found[3]
                    distance += abs(times(d, lift))
                out[0] += square
                out[1] += product
                out[2] += same
                out[3] += erased
                out[4] += distance * abs(qi)

    return long


def _short_pass(scales, code, own_scale, zeroed, ordered):  # type: ignore[no-untyped-def]
    """The pass of one kind of grid over shorter blocks; see ``_pass``.

    Steps, inverses, scales and zeros are laid out weight by weight, a span at a time, so that the
    ends of blocks do not cut the loop into pieces; a kind whose scale is its step, or that has no
    zero, reads fewer of them.
    """

    @compiled
    def short(t, u, block, ends, low, high, divisors, laid, out):  # type: ignore[no-untyped-def]
        tq, ti, ts, tz, uq, ui, us, uz = (
            laid[0],
            laid[1],
            laid[2],
            laid[3],
            laid[4],
            laid[5],
            laid[6],
            laid[7],
        )
        for start in range(0, t.size, SPAN):
            stop = min(start + SPAN, t.size)
            lift = ONE
            for b in range(start // block, (stop - 1) // block + 1):
                lift = max(lift, _lift(ends[0, b], ends[1, b], ends[2, b], ends[3, b]))
            for b in range(start // block, (stop - 1) // block + 1):
                t_low, u_low = ends[0, b], ends[2, b]
                if ordered:
                    t_low = (
                        _sided(t[b * block : (b + 1) * block], t_low)
                        if -t_low == ends[1, b]
                        else t_low
                    )
                    u_low = (
                        _sided(u[b * block : (b + 1) * block], u_low)
                        if -u_low == ends[3, b]
                        else u_low
                    )
                q, s, z = scales(t_low, ends[1, b], low, high, divisors[0])
                p, v, w = scales(u_low, ends[3, b], low, high, divisors[1])
                q, qi = lifted(q, lift)
                p, pi = lifted(p, lift)
                first, last = max(start, b * block) - start, min(stop, (b + 1) * block) - start
                tq[first:last], ti[first:last], uq[first:last], ui[first:last] = q, qi, p, pi
                if own_scale:
                    ts[first:last], us[first:last] = s, v
                if zeroed:
                    tz[first:last], uz[first:last] = z, w
            x, y, back = t[start:stop], u[start:stop], ONE / lift
            square, product, same, erased, distance = ZERO, ZERO, ZERO, ZERO, ZERO
            for i in range(x.size):
                z, w = (tz[i], uz[i]) if zeroed else (ZERO, ZERO)
                s, v = (ts[i], us[i]) if own_scale else (times(tq[i], back), times(uq[i], back))
                d = y[i] - x[i]
                a = code(times(x[i], lift), tq[i], ti[i], z, low, high)
                c = code(times(y[i], lift), uq[i], ui[i], w, low, high)
                found = _terms(d, a, c, z, w, s, v)
                square += found[0]
                product += found[1]
                same += found[2]
                erased += found[3]
                distance += abs(times(times(d, lift), ti[i]))
            out[0] += square
            out[1] += product
            out[2] += same
            out[3] += erased
            out[4] += distance

    return short


def _pass(scales, code, *, own_scale=False, zeroed=False, ordered=False):  # type: ignore[no-untyped-def]
    """The pass for one kind of grid: adds <r, r>, <r, d>, equal codes, erased weights and the sum
    of |d| / step to five float64.

    ``ends`` [4, blocks]: smallest and largest of both models; the last block may be short. ``low``
    and ``high`` bound the codes; ``divisors``: what the steps of the two models
    are made with. ``own_scale``: the scale is not the step; ``zeroed``: there is a zero;
    ``ordered``: of two largest weights the first sets the scale.
    """
    long = _long_pass(scales, code)  # type: ignore[no-untyped-call]
    short = _short_pass(scales, code, own_scale, zeroed, ordered)  # type: ignore[no-untyped-call]

    @compiled
    def blocks(t, u, block, ends, low, high, divisors, laid, out):  # type: ignore[no-untyped-def]
        if block >= SPAN:
            long(t, u, block, ends, low, high, divisors, out)
        else:
            short(t, u, block, ends, low, high, divisors, laid, out)

    return blocks


_INTEGER = _pass(symmetric, integer)  # type: ignore[no-untyped-call]
_ASYMMETRIC = _pass(asymmetric, integer, zeroed=True)  # type: ignore[no-untyped-call]
_GGUF8 = _pass(q8_0, away, own_scale=True)  # type: ignore[no-untyped-call]
_GGUF4 = _pass(q4_0, half_up, own_scale=True, zeroed=True, ordered=True)  # type: ignore[no-untyped-call]
_NORMAL4, _FLOAT4, _FLOAT8 = _pass(symmetric, nf4), _pass(symmetric, fp4), _pass(symmetric, fp8)  # type: ignore[no-untyped-call]
_NVIDIA4, _MICRO4 = _pass(nvfp4, e2m1), _pass(mxfp4, e2m1)  # type: ignore[no-untyped-call]
# Their numbers, by which a table of grids names them.
KINDS = ("rtn", "asym", "q8_0", "q4_0", "nf4", "fp4", "fp8", "nvfp4", "mxfp4")


def _blockwise(grid):  # type: ignore[no-untyped-def]
    """Whole blocks times a reciprocal, a last, cut one divided: as `functional/quantizers.py` and
    bitsandbytes do.

    ``high`` below ``WHOLE`` asks for the product.
    """

    @compiled
    def blocks(t, u, block, ends, divisors, laid, out):  # type: ignore[no-untyped-def]
        whole = t.size // block * block
        if whole:
            grid(t[:whole], u[:whole], block, ends, -ONE, ONE, divisors, laid, out)
        if whole < t.size:
            grid(t[whole:], u[whole:], block, ends[:, -1:], -ONE, WHOLE, divisors, laid, out)

    return blocks


_NORMAL4_BLOCKS, _FLOAT4_BLOCKS = _blockwise(_NORMAL4), _blockwise(_FLOAT4)  # type: ignore[no-untyped-call]


@compiled
def scan(t, u, run, base, kinds, blocks, bounds, whole, sums):  # type: ignore[no-untyped-def]
    """All grids over some whole rows.

    Args:
        t: flat weights of the target, float32 or bits of bfloat16.
        u: the unlearned ones.
        run: so many weights are widened at a time and stay in the cache; a number of whole blocks.
        base: a length that divides every block and every run.
        kinds: [grids] places in ``KINDS``.
        blocks: [grids] weights that share a scale; 0 for the whole weight.
        bounds: [grids, 4] lowest and highest code, and what the largest weight is divided by in
            the target and in the unlearned model.
        whole: [4, 1] smallest and largest of the whole weight, in the target and in the unlearned
            model.
        sums: [grids, 7] is added to: update, changed, restored, together, equal codes, erased, |d|
            / step.
    """
    size = min(run, t.size)
    wide, laid = np.empty((2, size), np.float32), np.empty((8, SPAN), np.float32)
    for start in range(0, t.size, run):
        short = np.empty((4, min(run, t.size - start) // base), np.float32)
        x = _wide(t[start : start + run], wide[0], base, short[0], short[1])  # type: ignore[no-untyped-call]
        y = _wide(u[start : start + run], wide[1], base, short[2], short[3])  # type: ignore[no-untyped-call]
        _run(x, y, short, base, kinds, blocks, bounds, whole, laid, sums)


def _wide(raw, out, block, low, high):  # type: ignore[no-untyped-def]
    """Weights as float32, themselves or bits of bfloat16 widened into ``out``, and the extremes of
    their blocks.
    """


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
        ends = (
            whole if blocks[g] == 0 else short if block == base else _joined(short, block // base)
        )
        low, high, divisors, out = bounds[g, 0], bounds[g, 1], bounds[g, 2:], sums[g, 2:]
        kind = kinds[g]
        if kind == 0:
            _INTEGER(t, u, block, ends, low, high, divisors, laid, out)
        elif kind == 1:
            _ASYMMETRIC(t, u, block, ends, low, high, divisors, laid, out)
        elif kind == 2:
            _GGUF8(t, u, block, ends, low, high, divisors, laid, out)
        elif kind == 3:
            _GGUF4(t, u, block, ends, low, high, divisors, laid, out)
        elif kind == 4:
            _NORMAL4_BLOCKS(t, u, block, ends, divisors, laid, out)
        elif kind == 5:
            _FLOAT4_BLOCKS(t, u, block, ends, divisors, laid, out)
        elif kind == 6:
            _FLOAT8(t, u, block, ends, low, high, divisors, laid, out)
        elif kind == 7:
            _NVIDIA4(t, u, block, ends, low, high, divisors, laid, out)
        else:
            _MICRO4(t, u, block, ends, low, high, divisors, laid, out)


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


def must_compile() -> bool:
    """Whether this is the first time after installing, so that a minute goes into compiling the
    passes.
    """
    written = Path(__file__).stat().st_mtime
    return not any(
        kept.stat().st_mtime > written
        for kept in Path(str(scan.stats.cache_path)).glob("kernels.scan-*.nbi")
    )
