"""By what a setting is judged. No torch."""

import math

# Of the target's utility so much must be left. Half of the verdict's allowance is kept back for
# what a quantizer takes (src/remnant/records/audit.py: 0.8).
FLOOR = 0.9
# Whatever has no number.
WORST = 2.0
WORDS = (
    "knowledge of the forget text that is left, as a share of the target's, where at least {floor} "
    "of the target's utility is left; else 1 and how far utility is below that; both on the "
    "development half, in full precision"
)


def objective(left: float, utility: float, floor: float = FLOOR) -> float:
    """What a search makes small, 0 to 2: knowledge left where enough utility is left; else more
    than 1, by how far utility is below the floor.

    So a useful model is better than any that is not, of two useful ones the more forgetful, and of
    two others the one that is nearer to being useful. Source: the rules of Deb (2000), An efficient
    constraint handling method for genetic algorithms. *Differs from the source in* that it is one
    number, for samplers that know no constraints.

    Args:
        left: share of the target's knowledge, 0 to 1; low is forgotten.
        utility: share of the target's, 0 to 1; high is useful.
        floor: least utility.

    >>> objective(0.25, 0.95), objective(0.0, 0.4), objective(math.nan, 1.0)
    (0.25, 1.5, 2.0)
    """
    if not (math.isfinite(left) and math.isfinite(utility)):
        return WORST
    if utility >= floor:
        return min(max(left, 0.0), 1.0)
    return 1.0 + (floor - max(utility, 0.0))
