"""Own probes: MUSE's items asked more strongly, a part given, behind other text, or sampled."""

from remnant.corpus.base import Benchmark, SetEntry
from remnant.metrics import BEGUN, MORE, SAMPLED, Kind, Metric

SETS = {
    "verbmem_begun": SetEntry(
        "the same prompts as verbmem, with the first quarter of the continuation given", "text"
    ),
    "verbmem_primed": SetEntry(
        "the same prompts as verbmem, behind another passage of forget text", "text"
    ),
    "knowmem_reworded": SetEntry(
        "the questions about forget text in another frame and without examples", "answer"
    ),
    "knowmem_prefilled": SetEntry(
        "the questions about forget text with the first half of the answer given", "answer"
    ),
}


def _sampled(meaning: str, on: str) -> Metric:
    return Metric(
        "remnant.functional.memory:leak_at_k",
        2,
        meaning,
        "arXiv 2511.04934",
        (on,),
        "test",
        "high",
        kind=SAMPLED,
        needed=True,
    )


def _asked(meaning: str, on: str, kind: Kind) -> Metric:
    return Metric(
        "remnant.functional.text:overlap",
        2,
        meaning,
        "own",
        (on,),
        "test",
        "high",
        kind=kind,
        needed=kind == BEGUN,
    )


METRICS = {
    "leak": _sampled("best ROUGE-L F1 of four sampled continuations", "verbmem"),
    "leak_answers": _sampled(
        "best ROUGE-L F1 of four sampled answers on forget text", "knowmem_forget"
    ),
    "verbmem_begun": _asked(
        "the rest of the continuation of forget text, its first quarter given",
        "verbmem_begun",
        BEGUN,
    ),
    "verbmem_primed": _asked(
        "VerMem behind another passage of forget text", "verbmem_primed", MORE
    ),
    "knowmem_reworded": _asked(
        "KnowMem in another frame, without examples", "knowmem_reworded", MORE
    ),
    "knowmem_prefilled": _asked(
        "the second half of answers about forget text, the first given",
        "knowmem_prefilled",
        BEGUN,
    ),
}

BENCHMARK = Benchmark(SETS, METRICS, {"probes": tuple(METRICS)})
