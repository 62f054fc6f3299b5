"""What a model says about the tokens of one text. No torch."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
COLUMNS = ("logp", "rank", "mean", "std")


class Tokens(NamedTuple):
    """One number per counted token of a text (the first token of all has none, as nothing stands
    before it).

    ``logp``: log-probability in nats, at most 0. ``rank``: how many tokens of the vocabulary were
    more probable; 0 for the greedy one. ``mean``, ``std``: mean and standard deviation of the
    log-probability over the vocabulary, in nats. What was not asked for, or is not given away by
    the model's server, is empty. ``cut``: whether the text went on behind the end of the model's
    context.
    """

    logp: Array
    rank: Array
    mean: Array
    std: Array
    cut: bool = False
