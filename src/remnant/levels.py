"""The levels of 4-bit float grids, as data for everything that rounds to them. No torch."""

# The 16 levels of NormalFloat as published with QLoRA (arXiv 2305.14314, appendix E), code 0 first.
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# e2m1 scaled to a maximum of one, in the code order of bitsandbytes: sign in the highest bit.
_FP4_MAGNITUDES = (0.0, 0.0625 / 12, 8 / 12, 1.0, 4 / 12, 6 / 12, 2 / 12, 3 / 12)
FP4_LEVELS = (*_FP4_MAGNITUDES, *(-m for m in _FP4_MAGNITUDES))
# e2m1 as NVFP4 and MXFP4 have it, without the sign.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def levels_of(kind: str, low: float, high: float) -> tuple[float, ...]:
    """The levels of a grid in units of a block's scale, ascending; none of a kind without a scale
    that the largest magnitude of a block alone decides.

    Args:
        kind: arithmetic of the grid (``formats.base.Grid``).
        low: the lowest code, of integers.
        high: the highest.

    >>> levels_of("rtn", -2, 1), levels_of("cast", 0, 0)
    ((-2.0, -1.0, 0.0, 1.0), ())
    """
    both = (*E2M1, *(-level for level in E2M1))
    tables = {"nf4": NF4_LEVELS, "fp4": FP4_LEVELS, "nvfp4": both, "mxfp4": both}
    if kind in tables:
        return tuple(sorted({*tables[kind]}))
    # GGUF's codes are counted from 0 in the file, from -8 here.
    shift = {"rtn": 0, "asym": 0, "q8_0": 0, "q4_0": 8}.get(kind)
    return () if shift is None else tuple(float(c - shift) for c in range(int(low), int(high) + 1))
