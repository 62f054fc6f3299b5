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
    "prepare": 3,
    "train": 3,
    "unlearn": 4,
    "merge": 1,
    "dequantize": 1,
    "transform": 2,
    "elicit": 1,
    "measure": 4,
    "explain": 6,
    "audit": 4,
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
    "dpo": Entry(
        _LOSS + "dpo",
        1,
        "preference of another answer over the true one",
        "arXiv 2305.18290, eq. 7",
        unit="nats",
    ),
    "alternative_nll": Entry(
        _LOSS + "alternative_nll",
        1,
        "cross entropy of another answer",
        "arXiv 2401.06121",
        unit="nats",
    ),
    "rmu": Entry(
        _LOSS + "rmu", 1, "hidden states of forget text to a random point", "arXiv 2403.03218"
    ),
    "adaptive_rmu": Entry(
        _LOSS + "adaptive_rmu",
        1,
        "the same, the point as far out as the target's states are",
        "arXiv 2408.06223",
    ),
    "hidden_mse": Entry(
        _LOSS + "hidden_mse",
        1,
        "hidden states of retain text held where the target's are",
        "arXiv 2403.03218",
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


_FORGET: Mapping[str, Recipe] = {
    "ga": Recipe(("ga",)),
    "npo": Recipe(("npo",)),
    "dpo": Recipe(("dpo",)),
    "idk_dpo": Recipe(("dpo",), alternatives="shared"),
    "idk_nll": Recipe(("alternative_nll",), alternatives="shared"),
    "altpo": Recipe(("dpo",), alternatives="each"),
}
_RETAIN: Mapping[str, tuple[str, ...]] = {"": (), "_gdr": ("gdr",), "_klr": ("klr",)}

METHODS: Mapping[str, Recipe] = {
    **{
        name + suffix: recipe._replace(retain=retain)
        for name, recipe in _FORGET.items()
        for suffix, retain in _RETAIN.items()
    },
    "rmu": Recipe(("rmu",), ("hidden_mse",)),
    "adaptive_rmu": Recipe(("adaptive_rmu",), ("hidden_mse",)),
}
