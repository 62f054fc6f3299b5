"""4-bit floats in small blocks with narrow scales: nvfp4, mxfp4."""

import numpy as np

from remnant.formats.base import Format, Grid
from remnant.records.base import Record

# The largest scale (e4m3) times the largest level (e2m1).
SCALE_AND_LEVEL = np.float32(448 * 6)


class Fixed(Record):
    """Nothing to choose: blocks and scales are the format's."""


def by_weight(largest: float) -> float:
    """The number of a whole weight to which NVFP4's scales are relative, from its largest
    magnitude; 1 where there would be none.

    >>> by_weight(2.0), by_weight(0.0)
    (1344.0, 1.0)
    """
    with np.errstate(over="ignore"):
        found = SCALE_AND_LEVEL * (1 / max(np.float32(largest), np.finfo(np.float32).tiny))
    return float(found) if np.isfinite(found) else 1.0


NVFP4 = Format(
    key="nvfp4",
    path="remnant.functional.microscaling:nvfp4",
    version=1,
    meaning="4-bit float (e2m1) in blocks of 16 with e4m3 scales",
    source="arXiv 2509.25149",
    params=Fixed,
    read=lambda name: Fixed() if name == "nvfp4" else None,
    write=lambda params: "nvfp4",
    names=("nvfp4",),
    # Beyond half of the range of float32 a decoded value may leave it.
    grid=lambda params: Grid("nvfp4", 16, -6, 6, 1, limit=2.0**127, by_weight=by_weight),
)
MXFP4 = Format(
    key="mxfp4",
    path="remnant.functional.microscaling:mxfp4",
    version=1,
    meaning="4-bit float (e2m1) in blocks of 32 with powers of two",
    source="OCP Microscaling Formats 1.0",
    params=Fixed,
    read=lambda name: Fixed() if name == "mxfp4" else None,
    write=lambda params: "mxfp4",
    names=("mxfp4",),
    # The last float32 below 1.75 * 2^127.
    grid=lambda params: Grid("mxfp4", 32, -6, 6, 1, limit=(1.75 - 2.0**-23) * 2.0**127),
)
