"""MUSE (arXiv 2407.06460): continuations, questions and membership on a corpus in its layout.

The sets of items that every prepared corpus has, and all that is measured on them as they are.
"""

from remnant.corpus.base import Benchmark, SetEntry
from remnant.metrics import EXACT, MEMBERS, MEMBERSHIP, MORE, OTHERS, Metric, Reduce, attack

SETS = {
    "verbmem": SetEntry("prompts cut from forget text", "text"),
    "verbmem_retain": SetEntry("prompts cut from retain text", "text"),
    "knowmem_forget": SetEntry("questions about forget text, behind ten answered ones", "answer"),
    "knowmem_retain": SetEntry("questions about retain text, behind ten answered ones", "answer"),
    "privleak_forget": SetEntry("forget text as a whole", "whole", MEMBERS),
    "privleak_holdout": SetEntry("text like it that was never read", "whole", OTHERS),
}

_TEXT, _MEMBER = "remnant.functional.text:", "remnant.functional.membership:"
_MEMORY, _MUSE = "remnant.functional.memory:", "arXiv 2407.06460"
_SIDES = ("privleak_forget", "privleak_holdout")
_GREEDY, _VOCABULARY = ("logp", "rank"), ("logp", "mean", "spread")


def _attack(
    function: str,
    meaning: str,
    source: str,
    params: dict[str, object] | None = None,
    columns: tuple[str, ...] = ("logp",),
) -> Metric:
    """A membership attack: AUC, near 0 where forget text is known, 50 where it cannot be told from
    text that was never read.
    """
    return Metric(
        _MEMBER + function,
        1,
        f"membership by {meaning}, AUC",
        source,
        _SIDES,
        "test",
        kind=MEMBERSHIP,
        reduce=attack(),
        params=params or {},
        columns=columns,
    )


METRICS = {
    "verbmem": Metric(
        _TEXT + "overlap",
        3,
        "ROUGE-L F1 of the continuation of forget text",
        f"{_MUSE}, eq. 1",
        ("verbmem",),
        "knowledge",
        "high",
        "VerMem: forget text continued word for word",
        told="continues the text that is to be forgotten with {} overlap",
    ),
    "knowmem_forget": Metric(
        _TEXT + "overlap",
        3,
        "ROUGE-L F1 of answers about forget text",
        f"{_MUSE}, eq. 2",
        ("knowmem_forget",),
        "knowledge",
        "high",
        "KnowMem: questions about forget text",
        told="answers questions about the text that is to be forgotten with {} overlap",
    ),
    "knowmem_retain": Metric(
        _TEXT + "overlap",
        3,
        "ROUGE-L F1 of answers about retain text (utility)",
        _MUSE,
        ("knowmem_retain",),
        "utility",
        "high",
        "Utility: questions about retain text",
    ),
    "verbmem_retain": Metric(
        _TEXT + "overlap",
        3,
        "ROUGE-L F1 of the continuation of retain text (utility, no questions)",
        "own",
        ("verbmem_retain",),
        "utility",
        "high",
        "Utility: retain text continued",
        instead_of="knowmem_retain",
    ),
    "privleak": Metric(
        _MEMBER + "min_k",
        2,
        "Min-40% AUC against the retrain model's",
        f"{_MUSE}, eq. 3",
        _SIDES,
        "test",
        "apart",
        "PrivLeak: can membership be told (0 = as if never read)",
        MEMBERSHIP,
        needed=True,
        reduce=(
            *attack("auc"),
            Reduce(
                "remnant.functional.reductions:relative_area",
                of=((MEMBERS, OTHERS),),
                unread=True,
            ),
        ),
        span="-100 upwards",
    ),
    "mia_loss": _attack("mean_loss", "mean loss", "arXiv 1709.01604"),
    "mia_zlib": _attack("zlib_ratio", "loss over compressed length", "arXiv 2012.07805"),
    "mia_lower": _attack(
        "lower_case_ratio", "loss over that of the lower-cased text", "arXiv 2012.07805"
    ),
    "mia_min20": _attack(
        "min_k", "the lowest fifth of log-probabilities", "arXiv 2310.16789", {"ratio": 0.2}
    ),
    "mia_min60": _attack(
        "min_k",
        "the lowest three fifths of log-probabilities",
        "arXiv 2310.16789",
        {"ratio": 0.6},
    ),
    "mia_min_plus": _attack(
        "min_k_plus_plus", "Min-20%++", "arXiv 2404.02936", columns=_VOCABULARY
    ),
    "mia_recall": _attack("recall", "ReCaLL behind a text that was never read", "arXiv 2406.15968"),
    "mia_reference": _attack(
        "reference_gap", "loss minus that of a reference model", "arXiv 2012.07805"
    ),
    "mia_gradient": _attack("gradient_norm", "norm of the gradient", "arXiv 2104.10706"),
    "exact_memorization": Metric(
        _MEMORY + "exact_memorization",
        1,
        "share of right greedy tokens of forget text",
        "arXiv 2205.10770",
        ("verbmem",),
        "test",
        "high",
        kind=MORE,
        columns=_GREEDY,
    ),
    "extraction_strength": Metric(
        _MEMORY + "extraction_strength",
        1,
        "share of forget text that follows from the rest",
        "arXiv 2012.07805",
        ("verbmem",),
        "test",
        "high",
        kind=MORE,
        columns=_GREEDY,
    ),
    "probability": Metric(
        _MEMORY + "probability",
        1,
        "probability per token of forget text",
        "arXiv 2401.06121",
        ("verbmem",),
        "test",
        "high",
        kind=EXACT,
        needed=True,
    ),
    "probability_answers": Metric(
        _MEMORY + "probability",
        1,
        "probability per token of answers about forget text",
        "arXiv 2401.06121",
        ("knowmem_forget",),
        "test",
        "high",
        kind=EXACT,
        needed=True,
    ),
    "longest_run": Metric(
        _MEMORY + "longest_run",
        2,
        "longest common run of words in the continuation",
        "own",
        ("verbmem",),
        "test",
        "high",
        kind=MORE,
    ),
    "perplexity": Metric(
        _MEMORY + "perplexity",
        1,
        "perplexity of the continuations under the reference model",
        "own",
        ("verbmem",),
        unit="",
        span="1 upwards",
    ),
}

BENCHMARK = Benchmark(
    SETS,
    METRICS,
    {
        "muse": ("verbmem", "knowmem_forget", "knowmem_retain", "privleak"),
        "memorization": (
            "verbmem",
            "exact_memorization",
            "extraction_strength",
            "probability",
            "longest_run",
        ),
    },
)
