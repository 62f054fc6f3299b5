"""Which texts stand in the batch of a micro-step: so many, or as many as some tokens hold."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count, islice
from typing import NamedTuple

from remnant.errors import UserError
from remnant.model.data import turns

Turns = list[tuple[int, int]]


class Tokens(NamedTuple):
    """Batches of at most so many tokens, padding counted; so many batches make a step."""

    number: int
    accumulate: int = 1


class Batches(NamedTuple):
    """The batches of a group of texts, by their ``lengths`` in tokens; a pure function of its
    fields, so that a resumed run sees the same.
    """

    by: int | Tokens
    lengths: tuple[int, ...]
    seed: int

    def shown(self, micro: int) -> Turns:
        """Which texts stand in the batch of a micro-step, each with the number of the pass."""
        if isinstance(self.by, int):
            return turns(len(self.lengths), self.by, micro, self.seed)
        return _first(self.lengths, self.by.number, self.seed, _rounded_up(micro + 1))[micro]

    def share(self, micro: int) -> float:
        """What the mean over a batch is multiplied by, so that every text of a step counts alike:
        its texts over the mean number of those in the batches of the step.
        """
        if isinstance(self.by, int):
            return 1.0
        first = micro - micro % self.by.accumulate
        sizes = [len(self.shown(m)) for m in range(first, first + self.by.accumulate)]
        return sizes[micro - first] * len(sizes) / sum(sizes)


def batches_of(by: int | Tokens, lengths: Sequence[int], seed: int) -> Batches:
    """The batches of some texts.

    Raises:
        UserError: a text that is longer than a batch may be.
    """
    longest = max(lengths)
    if isinstance(by, Tokens) and longest > by.number:
        raise UserError(
            f"A text has {longest} tokens, and a batch may have {by.number}.",
            f"Set batch_tokens to at least {longest}, or lower max_tokens.",
        )
    return Batches(by, tuple(lengths), seed)


def filled(lengths: Sequence[int], tokens: int, seed: int) -> Iterator[Turns]:
    """Batches without end: passes over a permutation that is new in every pass, texts taken in
    order while rows times the longest of them stay within some tokens.

    >>> [len(batch) for batch in islice(filled([4, 4, 4], 8, 0), 3)]
    [2, 2, 2]
    """
    shown: Turns = []
    longest = 0
    for number in count():
        for turn in turns(len(lengths), len(lengths), number, seed):
            length = max(longest, lengths[turn[1]])
            if shown and (len(shown) + 1) * length > tokens:
                yield shown
                shown, length = [], lengths[turn[1]]
            shown.append(turn)
            longest = length


@lru_cache(maxsize=4)
def _first(lengths: tuple[int, ...], tokens: int, seed: int, number: int) -> list[Turns]:
    return list(islice(filled(lengths, tokens, seed), number))


def _rounded_up(number: int) -> int:
    """To a power of two, so that batches are walked through again seldom."""
    return 1 << (number - 1).bit_length()
