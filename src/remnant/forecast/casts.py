"""Between float32 and bfloat16, on their bits."""

import numpy as np
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray


def value(raw):  # type: ignore[no-untyped-def]
    """A weight as float32, from itself or from its bits in bfloat16."""


@overload(value, inline="always")
def _value_of(raw):  # type: ignore[no-untyped-def]
    if raw == types.float32:
        return lambda raw: raw
    return lambda raw: np.int32(np.uint32(raw) << np.uint32(16)).view(np.float32)


@njit(nogil=True, cache=True)
def widen(raw: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    """bfloat16 bits to float32."""
    for i in range(raw.size):
        out[i] = value(raw[i])  # type: ignore[no-untyped-call]


@njit(nogil=True, cache=True)
def narrow(bits: NDArray[np.int32]) -> None:
    """Round float32 bits in place to those that bfloat16 can hold, ties to even."""
    for i in range(bits.size):
        bits[i] = (bits[i] + 0x7FFF + ((bits[i] >> 16) & 1)) & -0x10000


@njit(nogil=True, cache=True)
def _all_below(bits, exponent):  # type: ignore[no-untyped-def]
    """Whether no float among some bits has all bits of its exponent set, as infinities and NaN
    have.
    """
    found = True
    for i in range(bits.size):
        found &= bits[i] & exponent != exponent
    return found


def all_finite(dtype: str, raw: NDArray[np.uint8]) -> bool:
    """Whether bytes of a dtype of a header (F32, BF16 or F16) are finite numbers only."""
    bits, exponent = (
        (raw.view(np.uint32), np.uint32(0x7F800000))
        if dtype == "F32"
        else (raw.view(np.uint16), np.uint16(0x7C00))
    )
    return bool(_all_below(bits, np.uint16(0x7F80) if dtype == "BF16" else exponent))
