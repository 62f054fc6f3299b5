"""Every built-in loss and metric by its name, as data: where its function lives, its version,
meaning, range and source. Formats of weights stand in `formats/`.

This file imports nothing heavy, so plans are checked without torch. To add a method, write its
function and add one line here; the version enters the identity of every artefact made with it, so
raise it when results change.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

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

Better = Literal["low", "high", "zero", "none"]


class Entry(NamedTuple):
    """One built-in: ``path`` is "module:function", ``better`` the direction in which the model has
    forgotten (or is useful).
    """

    path: str
    version: int
    meaning: str
    source: str
    better: Better = "none"
    unit: str = ""


class Metric(NamedTuple):
    """One built-in metric, read as an Entry is, and what it is measured on.

    ``on``: sets of items (``ITEM_SETS``); with "forget" and "holdout" among them the number is how
    well the two can be told apart. ``params``: keyword arguments that are not the function's
    defaults. ``columns``: which fields of Tokens it reads. ``span``: the range of the number that
    is shown.
    """

    path: str
    version: int
    meaning: str
    source: str
    better: Better
    on: tuple[str, ...]
    params: Mapping[str, object] = {}
    columns: tuple[str, ...] = ("logp",)
    unit: str = "x100"
    span: str = "0 to 100"


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

METHODS: Mapping[str, tuple[str, ...]] = {
    "ga": ("ga",),
    "ga_gdr": ("ga", "gdr"),
    "ga_klr": ("ga", "klr"),
    "npo": ("npo",),
    "npo_gdr": ("npo", "gdr"),
    "npo_klr": ("npo", "klr"),
}

# Where items come from: files of a corpus, or these turned otherwise.
ITEM_SETS: Mapping[str, str] = {
    "verbmem": "prompts cut from forget text",
    "verbmem_retain": "prompts cut from retain text",
    "verbmem_begun": (
        "the same prompts as verbmem, with the first quarter of the continuation given"
    ),
    "verbmem_primed": "the same prompts as verbmem, behind another passage of forget text",
    "knowmem_forget": "questions about forget text, behind ten answered ones",
    "knowmem_retain": "questions about retain text, behind ten answered ones",
    "knowmem_reworded": "the questions about forget text in another frame and without examples",
    "knowmem_prefilled": "the questions about forget text with the first half of the answer given",
    "privleak_forget": "forget text as a whole",
    "privleak_holdout": "text like it that was never read",
    "tofu_forget": "TOFU's questions about the authors to be forgotten",
    "tofu_retain": "TOFU's questions about other fictitious authors",
    "tofu_authors": "TOFU's questions about real authors",
    "tofu_facts": "TOFU's questions about the world",
}

_TEXT, _MEMBER = "remnant.functional.text:", "remnant.functional.membership:"
_MEMORY, _TOFU = "remnant.functional.memory:", "remnant.functional.tofu:"
_TEXTS = ("privleak_forget", "privleak_holdout")
_MUSE, _GREEDY, _VOCABULARY = "arXiv 2407.06460", ("logp", "rank"), ("logp", "mean", "spread")
_QUESTIONS = ("tofu_forget", "tofu_retain", "tofu_authors", "tofu_facts")


def _attack(function: str, meaning: str, source: str, **more: Any) -> Metric:
    """A membership attack: AUC, near 0 where forget text is known, 50 where it cannot be told from
    text that was never read.
    """
    return Metric(
        _MEMBER + function, 1, f"membership by {meaning}, AUC", source, "none", _TEXTS, **more
    )


METRICS: Mapping[str, Metric] = {
    "verbmem": Metric(_TEXT + "overlap", 3, ("ROUGE-L F1 of the continuation of forget "
"text"), f"{_MUSE}, eq. 1", "low", ("verbmem",)),
    "knowmem_forget": Metric(
        _TEXT + "overlap", 3, "ROUGE-L F1 of answers about forget text", f"{_MUSE}, eq. 2", "low",
        ("knowmem_forget",)
    ),
    "knowmem_retain": Metric(_TEXT + "overlap", 3, ("ROUGE-L F1 of answers about retain text "
"(utility)"), _MUSE, "high", ("knowmem_retain",)),
    "verbmem_retain": Metric(
        _TEXT + "overlap", 3, ("ROUGE-L F1 of the continuation of retain text (utility, no "
"questions)"), "own", "high", ("verbmem_retain",)
    ),
    "privleak": Metric(
        _MEMBER + "min_k", 2, "Min-40% AUC against the retrain model's", f"{_MUSE}, eq. 3", "zero",
        _TEXTS, span="-100 upwards"
    ),
    "mia_loss": _attack("mean_loss", "mean loss", "arXiv 1709.01604"),
    "mia_zlib": _attack("zlib_ratio", "loss over compressed length", "arXiv 2012.07805"),
    "mia_lower": _attack("lower_case_ratio", "loss over that of the lower-cased text",
    "arXiv 2012.07805"),
    "mia_min20": _attack("min_k", "the lowest fifth of log-probabilities", "arXiv 2310.16789",
    params={"ratio": 0.2}),
    "mia_min60": _attack("min_k", ("the lowest three fifths of "
"log-probabilities"), "arXiv 2310.16789", params={"ratio": 0.6}),
    "mia_min_plus": _attack("min_k_plus_plus", "Min-20%++", "arXiv 2404.02936",
    columns=_VOCABULARY),
    "mia_recall": _attack("recall", "ReCaLL behind a text that was never read", "arXiv 2406.15968"),
    "mia_reference": _attack("reference_gap", "loss minus that of a reference model",
    "arXiv 2012.07805"),
    "mia_gradient": _attack("gradient_norm", "norm of the gradient", "arXiv 2104.10706"),
    "exact_memorization": Metric(
        _MEMORY + "exact_memorization", 1, ("share of right greedy tokens of forget "
"text"), "arXiv 2205.10770", "low", ("verbmem",),
        columns=_GREEDY,
    ),
    "extraction_strength": Metric(
        _MEMORY + "extraction_strength", 1, ("share of forget text that follows from the "
"rest"), "arXiv 2012.07805", "low", ("verbmem",),
        columns=_GREEDY,
    ),
    "probability": Metric(_MEMORY + "probability", 1, "probability per token of forget text",
    "arXiv 2401.06121", "low", ("verbmem",)),
    "longest_run": Metric(_MEMORY + "longest_run", 2, ("longest common run of words in the "
"continuation"), "own", "low", ("verbmem",)),
    "leak": Metric(_MEMORY + "leak_at_k", 2, ("best ROUGE-L F1 of four sampled "
"continuations"), "arXiv 2511.04934", "low", ("verbmem",)),
    "leak_answers": Metric(
        _MEMORY + "leak_at_k", 2, ("best ROUGE-L F1 of four sampled answers on forget "
"text"), "arXiv 2511.04934", "low", ("knowmem_forget",)
    ),
    "probability_answers": Metric(
        _MEMORY + "probability", 1, ("probability per token of answers about forget "
"text"), "arXiv 2401.06121", "low", ("knowmem_forget",)
    ),
    "verbmem_begun": Metric(
        _TEXT + "overlap", 2, ("the rest of the continuation of forget text, its first quarter "
"given"), "own", "low", ("verbmem_begun",)
    ),
    "verbmem_primed": Metric(_TEXT + "overlap", 2, ("VerMem behind another passage of forget "
"text"), "own", "low", ("verbmem_primed",)),
    "knowmem_reworded": Metric(_TEXT + "overlap", 2, ("KnowMem in another frame, without "
"examples"), "own", "low", ("knowmem_reworded",)),
    "knowmem_prefilled": Metric(
        _TEXT + "overlap", 2, ("the second half of answers about forget text, the first "
"given"), "own", "low", ("knowmem_prefilled",)
    ),
    "perplexity": Metric(
        _MEMORY + "perplexity", 1, ("perplexity of the continuations under the reference "
"model"), "own", "none", ("verbmem",),
        unit="", span="1 upwards",
    ),
    "tofu_probability": Metric(
        _TOFU + "answer_probability", 1, "probability per token of the answer", "arXiv 2401.06121",
        "none", ("tofu_forget", "tofu_retain")
    ),
    "tofu_choice": Metric(
        _TOFU + "choice_probability", 1, "the answer's share of the probability",
        "arXiv 2401.06121", "high", ("tofu_authors", "tofu_facts")
    ),
    "tofu_rouge": Metric(_TOFU + "rouge_recall", 2, "ROUGE-L recall of the answer, stemmed",
    "arXiv 2401.06121", "none", _QUESTIONS),
    "tofu_truth_ratio": Metric(_TOFU + "truth_ratio", 1, "wrong answers against the true one",
    "arXiv 2401.06121", "none", _QUESTIONS),
}  # fmt: skip

# What plain asking is: greedy answers. A verdict also wants utility, the first measure of it that
# there is.
PLAIN = ("verbmem", "knowmem_forget")
UTILITY = ("knowmem_retain", "verbmem_retain")
# What still tells forget text apart where plain asking finds nothing, by kind; each kind must be
# silent before a verdict passes.
TESTS: Mapping[str, tuple[str, ...]] = {
    "given beginning": ("verbmem_begun", "knowmem_prefilled"),
    "samples": ("leak", "leak_answers"),
    "probability per token": ("probability", "probability_answers"),
    "membership": ("privleak",),
}

METRIC_GROUPS: Mapping[str, tuple[str, ...]] = {
    "muse": ("verbmem", "knowmem_forget", "knowmem_retain", "privleak"),
    "tests": tuple(name for names in TESTS.values() for name in names),
    "membership": ("privleak", *(name for name in METRICS if name.startswith("mia_"))),
    "memorization": (
        "verbmem",
        "exact_memorization",
        "extraction_strength",
        "probability",
        "longest_run",
    ),
    "probes": (
        "leak",
        "leak_answers",
        "verbmem_begun",
        "verbmem_primed",
        "knowmem_reworded",
        "knowmem_prefilled",
    ),
    "tofu": tuple(name for name in METRICS if name.startswith("tofu_")),
    "all": tuple(METRICS),
}
