"""From what a metric reads to what must be asked for one item, and back to the values that the
metric is called with.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from remnant.corpus.base import Item, ItemSet
from remnant.errors import Unscorable
from remnant.evaluate.collect import Answers
from remnant.evaluate.requests import (
    Answer,
    AskGradNorm,
    GradNorm,
    Reading,
    Refused,
    Request,
    Writing,
)
from remnant.functional.text import cut_answer
from remnant.functional.tokens import Tokens
from remnant.readings import METRIC_READINGS, of_measured

PAPER_TEMPERATURE = 0.9
# What a backend must offer for a kind of reading, besides the columns of Tokens. Only a model that
# is open here has gradients, and whole logits.
NEEDS = {"writing": "writing", "gradient": "grad_norm", "view": "grad_norm"}


def needs(names: Iterable[str], columns: Iterable[str]) -> set[str]:
    """What a backend must offer for some readings, those of ``columns`` for tokens."""
    kinds = {METRIC_READINGS[name].what for name in of_measured(names)}
    return {NEEDS[kind] for kind in kinds if kind in NEEDS} | (
        set(columns) if "tokens" in kinds else set()
    )


class Wanted(NamedTuple):
    """How items are asked: fields of Tokens, temperature and number of samples, seed, and the text
    that stands first in ReCaLL.
    """

    columns: tuple[str, ...]
    samples: int
    temperature: float
    seed: int
    paper_code: bool
    prefix: str


def asked(read: str, item: Item, of: ItemSet, wanted: Wanted) -> list[Request]:
    """The requests behind one reading of one item; none for texts that are given."""
    greedy = Writing(item.prompt, of.max_new, item.context, of.stops, framed=item.framed)
    before = item.context + item.prompt
    told = Reading(item.truth, before, wanted.columns, item.framed)
    alone = told._replace(columns=("logp",))
    if read == "generated":
        sampled = wanted.paper_code and not of.stops
        temperature, seed = (PAPER_TEMPERATURE, wanted.seed) if sampled else (0.0, 0)
        return [greedy._replace(temperature=temperature, seed=seed)]
    if read == "samples":
        first = 1 + wanted.samples * wanted.seed
        return [
            greedy._replace(temperature=wanted.temperature, seed=first + i)
            for i in range(wanted.samples)
        ]
    if read in ("wrong", "choices"):
        return [told._replace(text=text) for text in getattr(item, read)]
    single: Mapping[str, Request] = {
        "tokens": told,
        "reference": alone,
        "lowercased": alone._replace(text=item.truth.lower()),
        "behind_prefix": Reading(item.truth, f"{wanted.prefix}\n\n" if wanted.prefix else ""),
        "paraphrased": told._replace(text=item.paraphrased),
        "grad_norm": AskGradNorm(item.truth),
    }
    return [single[read]] if read in single else []


def value(read: str, item: Item, of: ItemSet, wanted: Wanted, answers: Answers) -> object:
    """What a metric is called with for one reading (``plain``), with what is known of it besides.

    Raises:
        Unscorable: the model could not be asked.
    """
    if read in ("prompt", "truth", "answers"):
        return getattr(item, read)
    if read == "text":
        return item.truth
    if read == "right":
        return item.choices.index(item.truth)
    if read == "behind_prefix" and wanted.prefix and item.truth.startswith(wanted.prefix):
        raise Unscorable("its beginning is what the other texts are read behind")
    if read == "lowercased" and item.truth.lower() == item.truth.upper():
        raise Unscorable("its script has no lower case")
    found = [_taken(answers[request]) for request in asked(read, item, of, wanted)]
    if read in ("generated", "samples") and of.stops:
        found = [cut_answer(text, of.stops) for text in found]
    return found if read in ("samples", "wrong", "choices") else found[0]


def _taken(answer: Answer) -> Any:
    if isinstance(answer, Refused):
        raise Unscorable(answer.reason)
    return answer


def is_cut(values: Mapping[str, Any]) -> bool:
    """Whether any text behind some readings was longer than the context of the model."""
    read = [one for v in values.values() for one in (v if isinstance(v, list) else [v])]
    return any(isinstance(one, Tokens | GradNorm) and one.cut for one in read)


def plain(found: Answer) -> Answer | float:
    """A reading as a metric takes it: of a gradient norm the number alone."""
    return found.norm if isinstance(found, GradNorm) else found
