"""What a model on the disk is, by content and never by the name of its folder. No torch."""

from typing import NamedTuple


class Lineage(NamedTuple):
    """Where a model comes from.

    ``digest``: sha256 of its content, or of everything that it was made from. ``origin``: the
    digest of the model that it is a version of, its own where it is none. ``apart``: the weights in
    which it differs from its origin.
    """

    digest: str
    origin: str
    apart: frozenset[str] = frozenset()
