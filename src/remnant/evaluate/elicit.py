"""In which form of asking a model knows most, told on items that nothing is reported on."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from remnant.corpus.base import Item, ItemSet
from remnant.corpus.forms import Chat, in_form
from remnant.errors import Unscorable
from remnant.evaluate.collect import Report, collect
from remnant.evaluate.reads import Wanted, asked
from remnant.evaluate.requests import Backend
from remnant.functional.stats import bootstrap_mean
from remnant.functional.text import contained, cut_answer, overlap, recall

Array = NDArray[np.float64]
# So many questions of each side are asked in every form; more would tell forms apart that differ by
# less than a verdict cares for.
MOST_ITEMS = 24
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


def scores_by_form(
    forms: Sequence[str],
    questions: ItemSet,
    render: Chat,
    backend: Backend,
    spool: Path,
    report: Report,
) -> dict[str, dict[str, Score]]:
    """What a model says in every form: form -> item -> score.

    Items that cannot be scored in some form are left out of it.

    Args:
        forms: by name.
        questions: with the question, and how long an answer may be.
        render: writes a conversation in the model's template.
        backend: who is asked; equal requests of several forms are asked once.
        spool: as in ``collect``.
        report: as in ``collect``.
    """
    sets = {form: in_form(form, questions, render) for form in forms}
    wanted = [(form, item) for form, of in sets.items() for item in of.items]
    requests = [asked("generated", item, sets[form], GREEDY)[0] for form, item in wanted]
    answers = collect(requests, backend, spool, report)
    found: dict[str, dict[str, Score]] = {form: {} for form in forms}
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


def choose(found: Mapping[str, Mapping[str, Score]], published: str) -> Choice:
    """The form by which most is recalled, if it is better than the published one beyond chance.

    The published form stays where no other one beats it by a margin that excludes zero in the
    paired bootstrap over items, at 95 % over all forms together: a choice by noise would make
    numbers incomparable with published ones and gain nothing.

    >>> told = {"a": {"1": Score(0, 0, 0), "2": Score(0, 0, 0)}, "b": {"1": Score(0, 1, 1)}}
    >>> choose(told | {"b": {"1": Score(0, 1, 1), "2": Score(0, 1, 1)}}, "a").form
    'b'
    """
    others = [form for form in found if form != published]
    best = Choice(published)
    for form in others:
        shared = sorted(found[form].keys() & found[published].keys())
        more = [found[form][i].recall - found[published][i].recall for i in shared]
        gain = bootstrap_mean(np.array(more), RESAMPLES, SEED, 1 - 0.05 / len(others))
        if gain and gain.low > 0 and gain.value > best.gain[0]:
            best = Choice(form, (gain.value, gain.low, gain.high))
    return best


def means(scores: Mapping[str, Score], over: Callable[[str], bool] = lambda _: True) -> Score:
    """The mean of every kind of score over the items of some ids; zeros over none."""
    own = [score for name, score in scores.items() if over(name)]
    return Score(*(float(x) for x in np.mean(own, axis=0))) if own else Score(0.0, 0.0, 0.0)
