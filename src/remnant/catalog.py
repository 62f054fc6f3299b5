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
    "attack": 2,
    "audit": 5,
    "deploy": 3,
}


class Entry(NamedTuple):
    """One built-in: ``path`` is "module:function".

    ``formula``: in plain letters; S is the sum and m the mean of log p over the tokens that count,
    a the other answer, _ref the target's. ``published``: the settings under which its source or
    the code released with it reports numbers. ``labels``: whether its value depends on which
    tokens are the true ones, or only on where they stand.
    """

    path: str
    version: int
    meaning: str
    source: str
    unit: str = ""
    formula: str = ""
    published: str = ""
    labels: bool = True


_FUNCTIONAL = "remnant.functional."
LOSSES: Mapping[str, Entry] = {
    "ga": Entry(
        _FUNCTIONAL + "losses:ga",
        1,
        "gradient ascent on forget text",
        "arXiv 2210.01504",
        unit="nats",
        formula="m",
        published="TOFU: lr 1e-5, 5 epochs, batch 32; MUSE: lr 1e-5, 10 epochs, batch 32",
    ),
    "npo": Entry(
        _FUNCTIONAL + "losses:npo",
        1,
        "negative preference optimisation on sequence likelihoods",
        "arXiv 2404.05868, eq. 3",
        unit="nats",
        formula="-(2/beta) log sigmoid(-beta (S - S_ref))",
        published="TOFU and MUSE: beta 0.1, lr 1e-5, 10 epochs, batch 32",
    ),
    "simnpo": Entry(
        _FUNCTIONAL + "losses:simnpo",
        1,
        "the same by the length and without a reference",
        "arXiv 2410.07163",
        unit="nats",
        formula="-(2/beta) log sigmoid(-beta m - margin)",
        published=(
            "TOFU: forget05 beta 2.5, weight 0.1375, forget10 beta 4.5, weight 0.125, retain "
            "weight 1, lr 1e-5, 10 epochs; MUSE: beta 0.7 (news), 0.75 (books), by code that reads "
            "no label"
        ),
    ),
    "dpo": Entry(
        _FUNCTIONAL + "losses:dpo",
        1,
        "preference of another answer over the true one",
        "arXiv 2305.18290, eq. 7",
        unit="nats",
        formula="-(2/beta) log sigmoid(beta ((S(a) - S_ref(a)) - (S - S_ref)))",
        published=(
            "TOFU: refusals beta 0.1, lr 1e-5; five invented answers (AltPO) beta 0.1, lr 5e-5, 2 "
            "epochs, batch 35"
        ),
    ),
    "alternative_nll": Entry(
        _FUNCTIONAL + "losses:alternative_nll",
        1,
        "cross entropy of another answer",
        "arXiv 2401.06121",
        unit="nats",
        formula="-m(a)",
        published="TOFU: lr 1e-5, 5 epochs, batch 32",
    ),
    "wga": Entry(
        _FUNCTIONAL + "confidence:wga",
        1,
        "ascent weighted by what each token's probability still is",
        "arXiv 2502.19301",
        unit="nats",
        formula="mean p^beta log p",
        published="TOFU: beta 5 (authors) or 1 (open-unlearning), lr 1e-5, 5 epochs, batch 16",
    ),
    "tnpo": Entry(
        _FUNCTIONAL + "confidence:tnpo",
        1,
        "NPO's weight token by token",
        "arXiv 2502.19301",
        unit="nats",
        formula="mean w log p, w = 2 p^(beta + power) / (p^beta + p_ref^beta)",
        published="TOFU: beta 4, power 0 or 1.5, lr 1e-5 (Phi: 2e-5), 5 epochs, batch 16",
    ),
    "satimp": Entry(
        _FUNCTIONAL + "confidence:satimp",
        1,
        "ascent weighted by saturation and importance",
        "arXiv 2505.11953, section 5",
        unit="nats",
        formula="mean p^beta1 (1 - p)^beta2 log p",
        published=(
            "TOFU: beta1 5, beta2 1, forget to retain 1 to 0.1 (open-unlearning's file has 0.1 to "
            "1), lr 1e-5, 5 epochs"
        ),
    ),
    "undial": Entry(
        _FUNCTIONAL + "distributions:undial",
        1,
        "distillation of the target with the true token lowered",
        "arXiv 2402.10052",
        unit="nats",
        formula="mean KL(softmax(z_ref - beta onehot) || p)",
        published="TOFU: beta 10, lr 1e-4, 10 epochs, no retain term; LoRA rank 8 in the paper",
    ),
    "whp": Entry(
        _FUNCTIONAL + "distributions:whp",
        1,
        "Who's Harry Potter: cross entropy against generic labels",
        "arXiv 2310.02238",
        unit="nats",
        formula="-mean log p(g), g = argmax (log p_ref - strength relu(log p_plus - log p_ref))",
        published=(
            "Harry Potter: strength 5, names replaced, lr 3e-6, 2 epochs; MUSE has the labels' "
            "logits at inference in place of training"
        ),
        labels=False,
    ),
    "unlikelihood": Entry(
        _FUNCTIONAL + "distributions:unlikelihood",
        1,
        "CE-U: cross entropy against what the model says without the true token",
        "arXiv 2503.01224",
        unit="nats",
        formula="mean -log(1 - p)",
        published="TOFU: first token left out, lr 1e-5, 10 epochs, batch 32, no retain term",
    ),
    "max_entropy": Entry(
        _FUNCTIONAL + "distributions:max_entropy",
        1,
        "every next token equally probable",
        "arXiv 2410.08109",
        unit="nats",
        formula="mean KL(uniform || p)",
        published="TOFU: weight 0.1, questions counted too, lr 1e-5, 5 epochs, batch 32",
        labels=False,
    ),
    "logit_margin": Entry(
        _FUNCTIONAL + "distributions:logit_margin",
        1,
        "the greatest logit down to the mean logit",
        "arXiv 2506.05314",
        formula="mean (max z - mean z)^2",
        published=(
            "TOFU: retain weight from 50 or 100, bound 0.3 above the target's loss, dual step 5, "
            "warm-up 5 epochs; MUSE: bound 1.5 or 0.8 (news), 0.1 or 0.6 (books), dual step 1"
        ),
        labels=False,
    ),
    "flat": Entry(
        _FUNCTIONAL + "answers:flat",
        1,
        "total variation between another answer and the true one",
        "arXiv 2410.11143",
        formula="(tanh P - tanh P(a)) / 2, P = mean p",
        published="TOFU: lr 1e-5, 5 epochs, batch 64; Harry Potter: lr 2e-7; no retain term",
    ),
    "rmu": Entry(
        _FUNCTIONAL + "losses:rmu",
        1,
        "hidden states of forget text to a random point",
        "arXiv 2403.03218",
        formula="mean |h - scale r/|r||^2 / d",
        published=(
            "WMDP: block 7 of Zephyr-7B, down-projections of blocks 5 to 7, scale 6.5, retain "
            "weight 1200, lr 5e-5, 150 batches of 4"
        ),
    ),
    "adaptive_rmu": Entry(
        _FUNCTIONAL + "losses:adaptive_rmu",
        1,
        "the same, the point as far out as the target's states are",
        "arXiv 2408.06223",
        formula="mean |h - scale n r/|r||^2 / d, n = mean |h_ref|",
        published="WMDP: scale 5, retain weight 1200, 500 batches",
    ),
    "hidden_mse": Entry(
        _FUNCTIONAL + "losses:hidden_mse",
        1,
        "hidden states of retain text held where the target's are",
        "arXiv 2403.03218",
        formula="mean |h - h_ref|^2 / d",
    ),
    "gdr": Entry(
        _FUNCTIONAL + "losses:gdr",
        1,
        "cross entropy on retain text",
        "arXiv 2401.06121",
        unit="nats",
        formula="-m",
    ),
    "klr": Entry(
        _FUNCTIONAL + "losses:klr",
        1,
        "KL from target to policy on retain text",
        "arXiv 2410.16454, eq. 10",
        unit="nats",
        formula="mean KL(p_ref || p)",
    ),
    "answer_preservation": Entry(
        _FUNCTIONAL + "answers:answer_preservation",
        1,
        "AP: the true answer of retain questions above another",
        "arXiv 2410.08109",
        unit="nats",
        formula="-(1/beta) log sigmoid(beta (S - S(a)))",
        published="TOFU: beta 0.1, weight 1, with refusals on the forget side, lr 1e-5, 5 epochs",
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
    "simnpo": Recipe(("simnpo",)),
    "wga": Recipe(("wga",)),
    "tnpo": Recipe(("tnpo",)),
    "satimp": Recipe(("satimp",)),
    "undial": Recipe(("undial",)),
    "whp": Recipe(("whp",)),
    "ceu": Recipe(("unlikelihood",)),
    "me": Recipe(("max_entropy",)),
    "flat": Recipe(("flat",)),
}
_RETAIN: Mapping[str, tuple[str, ...]] = {"": (), "_gdr": ("gdr",), "_klr": ("klr",)}

METHODS: Mapping[str, Recipe] = {
    **{
        name + suffix: recipe._replace(retain=retain)
        for name, recipe in _FORGET.items()
        for suffix, retain in _RETAIN.items()
    },
    "idk_ap": Recipe(("alternative_nll",), ("answer_preservation",), "shared"),
    "pdu": Recipe(("logit_margin",), ("gdr",)),
    "rmu": Recipe(("rmu",), ("hidden_mse",)),
    "adaptive_rmu": Recipe(("adaptive_rmu",), ("hidden_mse",)),
}
