"""In which form of asking a model knows most, told on items that nothing is reported on."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from remnant.corpus.base import Item, ItemSet
from remnant.corpus.forms import Chat, in_form
from remnant.errors import Unscorable, UserError
from remnant.evaluate.collect import Report, collect
from remnant.evaluate.reads import Wanted, asked
from remnant.evaluate.requests import Backend
from remnant.functional.stats import bootstrap_mean
from remnant.functional.text import contained, cut_answer, overlap, recall

Array = NDArray[np.float64]
# So many questions of each side are asked in every form; more would tell forms apart that differ by
# less than a verdict cares for.
MOST_ITEMS = 24
# Fewer questions tell no form from another: a resampled pair that agrees has no spread.
FEWEST = 10
RESAMPLES, SEED = 2000, 0
GREEDY = Wanted((), 1, 1.0, 0, False, "")


class Score(NamedTuple):
    """How much of an answer was said, 0 to 1: ROUGE-L F1, its recall, and whether the answer stands
    in what was said.
    """

    f1: float
    recall: float
    contained: float


class Choice(NamedTuple):
    """The form that was chosen, by how much more recall than the published form, with the bounds of
    an interval that is simultaneous over all forms; zeros where none is better.
    """

    form: str
    gain: tuple[float, float, float] = (0.0, 0.0, 0.0)


def some(items: Sequence[Item], most: int = MOST_ITEMS) -> list[Item]:
    """At most so many of some items, from all over them."""
    if len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]


def asked_in(
    forms: Sequence[str], questions: ItemSet, render: Chat
) -> tuple[dict[str, ItemSet], dict[str, str]]:
    """Questions in every form, and why they cannot be asked in some: a template that refuses a
    conversation leaves the other forms.
    """
    sets: dict[str, ItemSet] = {}
    refused: dict[str, str] = {}
    for form in forms:
        try:
            sets[form] = in_form(form, questions, render)
        except UserError as error:
            refused[form] = error.message
    return sets, refused


def scores_by_form(
    sets: Mapping[str, ItemSet], backend: Backend, spool: Path, report: Report
) -> dict[str, dict[str, Score]]:
    """What a model says in every form: form -> item -> score.

    Items that cannot be scored in some form are left out of it.

    Args:
        sets: the questions in every form, by its name.
        backend: who is asked; equal requests of several forms are asked once.
        spool: as in ``collect``.
        report: as in ``collect``.
    """
    wanted = [(form, item) for form, of in sets.items() for item in of.items]
    requests = [asked("generated", item, sets[form], GREEDY)[0] for form, item in wanted]
    answers = collect(requests, backend, spool, report)
    found: dict[str, dict[str, Score]] = {form: {} for form in sets}
    for (form, item), request in zip(wanted, requests, strict=True):
        answer = answers[request]
        if isinstance(answer, str) and (
            score := _score(item, cut_answer(answer, sets[form].stops))
        ):
            found[form][item.id] = score
    return found


def _score(item: Item, said: str) -> Score | None:
    try:
        return Score(
            max(overlap(one, said) for one in (item.truth, *item.answers)),
            recall(item.truth, said, item.answers),
            contained(item.truth, said, item.answers),
        )
    except Unscorable:
        return None


def choose(
    found: Mapping[str, Mapping[str, Score]], published: str, forget: Collection[str] = ()
) -> Choice:
    """The form by which most is recalled, if it is better than the published one beyond chance.

    The published form stays where no other one beats it by a margin that excludes zero in the
    paired bootstrap over items, at 95 % over all forms together: a choice by noise would make
    numbers incomparable with published ones and gain nothing. Nor is a form chosen in which a
    question has no score that has one in the published form, or in which less is recalled of the
    forget text: what utility gains there would be paid by knowledge that is not seen.

    Args:
        found: form -> item -> score.
        published: the form that stays unless another is better.
        forget: the items that are about forget text.

    >>> told = {"a": {str(i): Score(0, 0, 0) for i in range(10)}}
    >>> choose(told | {"b": {str(i): Score(0, 1, 1) for i in range(10)}}, "a").form
    'b'
    """
    before = found[published]
    others = [form for form in found if form != published]
    best = Choice(published)
    for form in others if len(before) >= FEWEST else ():
        if before.keys() - found[form].keys():
            continue
        more = {i: found[form][i].recall - score.recall for i, score in sorted(before.items())}
        gains = np.array(list(more.values()), dtype=float)
        gain = bootstrap_mean(gains, RESAMPLES, SEED, 1 - 0.05 / len(others))
        hides = sum(more[i] for i in more.keys() & set(forget)) < 0
        if gain and gain.low > 0 and gain.value > best.gain[0] and not hides:
            best = Choice(form, (gain.value, gain.low, gain.high))
    return best


def means(scores: Mapping[str, Score], over: Callable[[str], bool] = lambda _: True) -> Score:
    """The mean of every kind of score over the items of some ids; zeros over none."""
    own = [score for name, score in scores.items() if over(name)]
    return Score(*(float(x) for x in np.mean(own, axis=0))) if own else Score(0.0, 0.0, 0.0)
