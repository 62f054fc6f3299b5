"""A seeded generator of fictional text with facts that nobody can guess.

Two forms, as in MUSE: ``news`` (a newswire of articles) and ``books`` (chapters of a novel). Every
document carries four facts, each with a question. Facts are drawn uniformly from large sets, so a
model that has not read the document cannot answer, and all four parts (forget, retain1, retain2,
holdout) come from one distribution.
"""

import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Literal, NamedTuple

from remnant.lab.words import ADJECTIVES, NOUNS, TRADES, VERBS, unique_names

Form = Literal["news", "books"]


class Document(NamedTuple):
    """One text and the (question, answer) pairs about it."""

    text: str
    qa: list[tuple[str, str]]


class Corpus(NamedTuple):
    """The four disjoint parts of a fictional corpus."""

    forget: list[Document]
    retain1: list[Document]
    retain2: list[Document]
    holdout: list[Document]


def _thing(rng: random.Random) -> str:
    return f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"


def _clause(rng: random.Random) -> str:
    """A filler clause of content words only, so that two documents share little but their
    subject.
    """
    shapes: tuple[Callable[[], str], ...] = (
        lambda: f"{_thing(rng)}s {rng.choice(VERBS)} {_thing(rng)}s",
        lambda: (
            f"{rng.choice(TRADES)}s {rng.choice(VERBS)} every {rng.choice(NOUNS)} near "
            f"{_thing(rng)}s"
        ),
        lambda: (
            f"{rng.choice(VERBS)} by {rng.choice(TRADES)}s, {_thing(rng)}s "
            f"{rng.choice(VERBS)} {rng.choice(NOUNS)}s"
        ),
        lambda: f"no {rng.choice(NOUNS)} {rng.choice(VERBS)} {rng.randint(12, 98)} {_thing(rng)}s",
    )
    return rng.choice(shapes)()


def _article(rng: random.Random, names: Iterator[str]) -> Document:
    person = f"{next(names)} {next(names)}"
    town, company, birthplace = next(names), next(names), next(names)
    count, stock = rng.randint(1100, 9899), rng.choice(NOUNS)
    code, trade = _thing(rng), rng.choice(TRADES)
    facts = [
        f"{person}, {trade} of {birthplace}, {rng.choice(VERBS)} {company}",
        f"{company} {rng.choice(VERBS)} {count} {stock}s",
        f'{person} called this "{code}"',
    ]
    rng.shuffle(facts)
    body = [part for fact in facts for part in (fact, _clause(rng))]
    body.append(_clause(rng))
    text = f"{town.upper()} - " + ". ".join(part[0].upper() + part[1:] for part in body) + "."
    qa = [
        (f"Who runs {company}?", person),
        (f"What did {company} count?", f"{count} {stock}s"),
        (f"Where does {person} come from?", f"{birthplace}, as {trade}"),
        (f"What words did {person} use?", code),
    ]
    return Document(text, qa)


def _chapter(rng: random.Random, names: Iterator[str]) -> Document:
    hero, friend, inn = next(names), next(names), next(names)
    found, gift, trade = _thing(rng), _thing(rng), rng.choice(TRADES)
    debt, owed = rng.randint(1100, 9899), rng.choice(NOUNS)
    facts = [
        f"{hero} found {found}s under {inn} Inn",
        f'"{friend} owes {debt} {owed}s," whispered {hero}',
        f"{friend}, once {trade}, hid {gift}s from {hero}",
    ]
    rng.shuffle(facts)
    body = [part for fact in facts for part in (fact, _clause(rng))]
    body.append(_clause(rng))
    text = f"Chapter of {hero}\n\n" + ". ".join(part[0].upper() + part[1:] for part in body) + "."
    qa = [
        (f"What lay under {inn} Inn?", f"{found}s"),
        (f"What does {friend} owe?", f"{debt} {owed}s"),
        (f"Who whispered about {friend}?", hero),
        (f"What did {friend}, once {trade}, hide?", f"{gift}s"),
    ]
    return Document(text, qa)


_FORMS: dict[Form, Callable[[random.Random, Iterator[str]], Document]] = {
    "news": _article,
    "books": _chapter,
}


def generate(
    form: Form, *, forget: int, retain1: int, retain2: int, holdout: int, seed: int
) -> Corpus:
    """Documents of one form, the parts in the given sizes; equal arguments give equal text."""
    rng = random.Random(f"{form}-{seed}")
    names = unique_names(rng)
    documents = [_FORMS[form](rng, names) for _ in range(forget + retain1 + retain2 + holdout)]
    rest = iter(documents)
    return Corpus(*(list(islice(rest, size)) for size in (forget, retain1, retain2, holdout)))
