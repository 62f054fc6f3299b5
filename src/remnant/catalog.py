"""Every built-in loss by its name, as data: where its function lives, its version, meaning and
source. Formats of weights stand in `formats/`, metrics in `corpus/`.

This file imports nothing heavy, so plans are checked without torch. To add a method, write its
function and add one line here; the version enters the identity of every artefact made with it, so
raise it when results change.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

# Raise a stage's version when its results change; artefacts of older versions are then made again.
STAGE_VERSIONS: Mapping[str, int] = {
    "prepare": 2,
    "train": 2,
    "unlearn": 3,
    "merge": 1,
    "perturb": 2,
    "measure": 4,
    "explain": 6,
    "judge": 3,
    "deploy": 3,
}


class Entry(NamedTuple):
    """One built-in: ``path`` is "module:function"."""

    path: str
    version: int
    meaning: str
    source: str
    unit: str = ""


_LOSS = "remnant.functional.losses:"
LOSSES: Mapping[str, Entry] = {
    "ga": Entry(_LOSS + "ga", 1, "gradient ascent on forget text", "arXiv 2210.01504", unit="nats"),
    "npo": Entry(
        _LOSS + "npo",
        1,
        "negative preference optimisation on sequence likelihoods",
        "arXiv 2404.05868, eq. 3",
        unit="nats",
    ),
    "gdr": Entry(_LOSS + "gdr", 1, "cross entropy on retain text", "arXiv 2401.06121", unit="nats"),
    "klr": Entry(
        _LOSS + "klr",
        1,
        "KL from target to policy on retain text",
        "arXiv 2410.16454, eq. 10",
        unit="nats",
    ),
}


class Recipe(NamedTuple):
    """A named method: its forget terms, and its retain terms, which ``alpha`` weighs.

    ``alternatives``: the form in which it wants other answers, if one is part of its name: the same
    list for all questions, or one for each.
    """

    forget: tuple[str, ...]
    retain: tuple[str, ...] = ()
    alternatives: Literal["shared", "each"] | None = None


METHODS: Mapping[str, Recipe] = {
    "ga": Recipe(("ga",)),
    "ga_gdr": Recipe(("ga",), ("gdr",)),
    "ga_klr": Recipe(("ga",), ("klr",)),
    "npo": Recipe(("npo",)),
    "npo_gdr": Recipe(("npo",), ("gdr",)),
    "npo_klr": Recipe(("npo",), ("klr",)),
}
