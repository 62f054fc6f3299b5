"""Between float32 and bfloat16, on their bits."""

import numpy as np
from numba import njit
from numpy.typing import NDArray


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
