"""Questions with several answers to choose from. No torch."""

from collections.abc import Sequence

from remnant.errors import Unscorable
from remnant.functional.tokens import Tokens


def accuracy(choices: Sequence[Tokens], right: int) -> float:
    """Whether the most probable choice is the right one, 0 or 1; of equals the first counts.

    Source: multiple choice in lm-evaluation-harness (``acc``), by the summed log-probability of a
    choice's tokens.

    >>> import numpy as np
    >>> said = [Tokens(np.array([x]), *[np.zeros(0)] * 3) for x in (-2.0, -1.0, -3.0)]
    >>> accuracy(said, 1), accuracy(said, 0)
    (1.0, 0.0)

    Args:
        choices: what the model says of each behind the question.
        right: the place of the right one.

    Raises:
        Unscorable: fewer than two choices, or one without a token.
    """
    if len(choices) < 2:
        raise Unscorable("there is nothing to choose from")
    if not all(len(choice.logp) for choice in choices):
        raise Unscorable("a choice has no token")
    sums = [float(choice.logp.sum()) for choice in choices]
    return float(sums.index(max(sums)) == right)
