"""One look at two equal-shaped runs of weights, compiled and vectorized: the update and the
extremes.

Weights are float32, or the bits of bfloat16, which are widened one by one or compared as they are.
The compiler caches what it made of a file until that file changes: after a change here, touch
`kernels.py`, which has these functions inside.
"""

import numpy as np
from numba import njit, types
from numba.extending import overload

from remnant.forecast.casts import value

# Sums may be taken in any order, and values are taken to be numbers: `update`, which is not
# compiled so, finds the ones that are not.
FAST = {"reassoc", "contract", "nsz", "nnan"}
compiled = njit(nogil=True, cache=True, fastmath=FAST)
# Sums of so many terms are exact enough in float32.
SPAN = 1024
# Weights that are looked at at a time.
RUN = 8192
ZERO, ONE = np.float32(0), np.float32(1)


@njit(nogil=True, cache=True, fastmath=FAST - {"nnan"})
def update(t, u, out):  # type: ignore[no-untyped-def]
    """Add <d, d> and the number of changed weights to two float64."""
    for start in range(0, t.size, SPAN):
        x, y = t[start : start + SPAN], u[start : start + SPAN]
        square, changed = ZERO, ZERO
        for i in range(x.size):
            d = value(y[i]) - value(x[i])  # type: ignore[no-untyped-call]
            square += d * d
            changed += ONE if d != 0 else ZERO
        out[0] += square
        out[1] += changed


@njit(inline="always")
def _ordered(bits, sign, rest):  # type: ignore[no-untyped-def]
    """Float bits as an integer in the order of the floats, and back.

    ``sign``: where the sign stands, ``rest``: all other bits.
    """
    return bits ^ ((bits >> sign) & rest)


def extremes(raw, block, low, high):  # type: ignore[no-untyped-def]
    """Smallest and largest of every block of some weights, float32 or bits of bfloat16.

    The last block may be short.

    Compared as integers in the order of the floats, since a loop over the floats themselves is not
    vectorized.
    """


@overload(extremes)
def _extremes_of(raw, block, low, high):  # type: ignore[no-untyped-def]
    signed, stored, places = (
        (np.int32, np.float32, 31) if raw.dtype == types.float32 else (np.int16, np.uint16, 15)
    )
    sign, rest = signed(places), signed((1 << places) - 1)

    def compared(raw, block, low, high):  # type: ignore[no-untyped-def]
        bits = raw.view(signed)
        found = np.empty(2, signed)
        for b in range(low.size):
            x = bits[b * block : (b + 1) * block]
            smallest, largest = rest, signed(-rest)
            for i in range(x.size):
                place = signed(_ordered(x[i], sign, rest))
                smallest, largest = min(smallest, place), max(largest, place)
            found[0], found[1] = (
                signed(_ordered(smallest, sign, rest)),
                signed(_ordered(largest, sign, rest)),
            )
            low[b], high[b] = value(found.view(stored)[0]), value(found.view(stored)[1])  # type: ignore[no-untyped-call]

    return compared


@compiled
def look(t, u, out):  # type: ignore[no-untyped-def]
    """One look at two runs of weights, float32 or bits of bfloat16.

    Adds <d, d> and the number of changed weights to the first two of six float64; the others get
    smallest and largest of both runs.
    """
    low, high = np.empty(2, np.float32), np.empty(2, np.float32)
    out[2], out[3], out[4], out[5] = np.inf, -np.inf, np.inf, -np.inf
    for start in range(0, t.size, RUN):
        x, y = t[start : start + RUN], u[start : start + RUN]
        update(x, y, out)
        extremes(x, RUN, low[:1], high[:1])  # type: ignore[no-untyped-call]
        extremes(y, RUN, low[1:], high[1:])  # type: ignore[no-untyped-call]
        out[2], out[3] = min(out[2], low[0]), max(out[3], high[0])
        out[4], out[5] = min(out[4], low[1]), max(out[5], high[1])
