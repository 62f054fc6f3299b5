"""Own probes: MUSE's items asked more strongly, a part given, behind other text, or sampled."""

from collections.abc import Callable
from pathlib import Path

from remnant.corpus.base import (
    Asking,
    Benchmark,
    Item,
    ItemSet,
    SetEntry,
    half_of,
    question,
)
from remnant.corpus.muse import answered, continued, verbmem
from remnant.corpus.prepared import records
from remnant.functional.segments import halves
from remnant.metrics import BEGUN, MORE, SAMPLED, Kind, Metric

# How much of a continuation is given.
GIVEN = 0.25


def reworded(folder: Path) -> list[Item]:
    """The questions about forget text in another frame and without examples."""
    return [
        i._replace(context="", prompt=f"Somebody wanted to know: {asked}\nThe reply was: ")
        for i, asked in _asked_about(folder, "reworded")
    ]


def prefilled(folder: Path) -> list[Item]:
    """The questions about forget text with the answer's first half in the prompt.

    An answer of one word (or character) leaves nothing to give, and is not asked for.
    """
    found = []
    for item, asked in _asked_about(folder, "prefilled"):
        given, rest = halves(item.truth)
        if given:
            prompt = f"{question(asked)}{given}"
            found.append(item._replace(prompt=prompt, truth=rest, question=asked, given=given))
    return found


def _asked_about(folder: Path, name: str) -> list[tuple[Item, str]]:
    rows = records(folder / "knowmem/forget_qa.json", "question", "answer")
    return [
        (Item(f"{name}-question-{i}", half_of(i), "", row["answer"]), row["question"])
        for i, row in enumerate(rows)
    ]


def begun(items: list[Item], asking: Asking) -> ItemSet:
    """Continuations whose first quarter is given."""
    found = continued(items, asking)
    return found._replace(items=[_begun(item, asking.token_ends) for item in found.items])


def _begun(item: Item, token_ends: Callable[[str], list[int]]) -> Item:
    """The first quarter of the truth moved to the end of the prompt, cut between two tokens of both
    together.

    Another cut would ask the model in tokens that it never read, which reads as forgotten.
    """
    whole = item.prompt + item.truth
    ends = [end for end in token_ends(whole) if len(item.prompt) < end < len(whole)]
    cut = ends[int(GIVEN * len(ends))] if ends else len(whole)
    return item._replace(id=f"begun-{item.id}", prompt=whole[:cut], truth=whole[cut:])


def primed(items: list[Item], asking: Asking) -> ItemSet:
    """Before every prompt the continuation of the next one, so that the model is reminded of the
    text without being told this part.
    """
    found = continued(items, asking)
    others = [*found.items[1:], *found.items[:1]]
    turned = [
        i._replace(id=f"primed-{i.id}", prompt=f"{other.truth}\n\n{i.prompt}")
        for i, other in zip(found.items, others, strict=True)
    ]
    return found._replace(items=turned)


SETS = {
    "verbmem_begun": SetEntry(
        "the same prompts as verbmem, with the first quarter of the continuation given",
        "text",
        "verbmem/forget",
        verbmem,
        begun,
        absent="verbmem",
    ),
    "verbmem_primed": SetEntry(
        "the same prompts as verbmem, behind another passage of forget text",
        "text",
        "verbmem/forget",
        verbmem,
        primed,
        absent="verbmem",
    ),
    "knowmem_reworded": SetEntry(
        "the questions about forget text in another frame and without examples",
        "answer",
        "knowmem/forget_qa",
        reworded,
        answered,
        absent="knowmem_forget",
    ),
    "knowmem_prefilled": SetEntry(
        "the questions about forget text with the first half of the answer given",
        "answer",
        "knowmem/forget_qa",
        prefilled,
        answered,
        absent="knowmem_forget",
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


def _asked(meaning: str, on: str, kind: Kind, version: int = 2) -> Metric:
    return Metric(
        "remnant.functional.text:overlap",
        version,
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
        version=3,
    ),
}

BENCHMARK = Benchmark(SETS, METRICS, {"probes": tuple(METRICS)})
