"""TOFU (arXiv 2401.06121): questions about fictitious authors, real ones and the world."""

from remnant.corpus.base import Benchmark, SetEntry
from remnant.metrics import MORE, Column, Metric, Number, Reduce

SETS = {
    "tofu_forget": SetEntry(
        "TOFU's questions about the authors to be forgotten", "answer", "forget"
    ),
    "tofu_retain": SetEntry("TOFU's questions about other fictitious authors", "answer", "retain"),
    "tofu_authors": SetEntry("TOFU's questions about real authors", "answer", "authors"),
    "tofu_facts": SetEntry("TOFU's questions about the world", "answer", "facts"),
}

_TOFU, _SOURCE = "remnant.functional.tofu:", "arXiv 2401.06121"

METRICS = {
    "tofu_probability": Metric(
        _TOFU + "answer_probability",
        1,
        "probability per token of the answer",
        _SOURCE,
        ("tofu_forget", "tofu_retain"),
        "test",
        "high",
        kind=MORE,
    ),
    "tofu_choice": Metric(
        _TOFU + "choice_probability",
        1,
        "the answer's share of the probability",
        _SOURCE,
        ("tofu_authors", "tofu_facts"),
        known="high",
    ),
    "tofu_rouge": Metric(
        _TOFU + "rouge_recall",
        2,
        "ROUGE-L recall of the answer, stemmed",
        _SOURCE,
        tuple(SETS),
        "test",
        "high",
        kind=MORE,
    ),
    "tofu_truth_ratio": Metric(
        _TOFU + "truth_ratio",
        1,
        "wrong answers against the true one",
        _SOURCE,
        tuple(SETS),
        reduce=(
            Reduce(_TOFU + "forget_truths", of=(("forget",),)),
            Reduce(_TOFU + "useful_truths", of=(("retain",), ("authors",), ("facts",))),
        ),
    ),
}


def _set(probability: str, split: str) -> tuple[Column, ...]:
    return tuple(Column(name, split) for name in (probability, "tofu_rouge", "tofu_truth_ratio"))


COMBINED = (
    Number(
        "tofu_utility",
        _TOFU + "utility",
        (
            _set("tofu_probability", "retain"),
            _set("tofu_choice", "authors"),
            _set("tofu_choice", "facts"),
        ),
    ),
    Number(
        "tofu_forget_quality",
        _TOFU + "quality",
        ((Column("tofu_truth_ratio", "forget"),),),
        unread=True,
    ),
)

BENCHMARK = Benchmark(SETS, METRICS, {"tofu": tuple(METRICS)}, COMBINED)
