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
