"""Memory of freed tensors, which the C library keeps for itself until it is asked to let go."""

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Return the free pages of this process to the system; nothing where the C library is not
    glibc.

    A pass makes and frees tensors of a few megabytes between small ones that stay (nodes of the
    graph). glibc gives what is aligned only to requests that leave room for the alignment, so a
    tensor never fits into the hole that one of its size has left: every block takes new memory, and
    a forward pass of 150 million weights beside adapters held 0.4 GB in holes.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
