"""Whether an answer tells a text in a plain disguise: letters that look alike, accents, spaces or a
typo between letters, or the order turned round. No torch.

Training can teach any of these as a habit, which word overlap does not see.
"""

import unicodedata
from collections.abc import Sequence

from remnant.functional.segments import fold, words

# Cyrillic and Greek letters that look like Latin ones, and signs that stand for letters. Source:
# the confusables of Unicode's TR 39, those of one letter in common use.
_SEEN = "аеосрхуікмнвтјѕԁһԛԝαεορχυικντ0134578"  # noqa: RUF001
_MEANT = "aeocpxyikmhbtjsdhqwaeopxyikvtoleastb"
_ALIKE = str.maketrans(_SEEN, _MEANT)


def tells_in_disguise(truth: str, said: str) -> bool:
    """Whether the words of a text stand in an answer, one after the other or from the last to the
    first, each up to one letter and numbers as they are; or all its letters, in either direction.

    Meant for texts of eight words or more, which no chance writes so.

    Source: own. A substitution of the whole alphabet or another language is not seen.

    >>> truth = "the keeper of the old harbour sold 7 red lamps"
    >>> tells_in_disguise(truth, " ".join(truth.replace(" ", "")))
    True
    >>> tells_in_disguise(truth, "teh kepeer 0f thhe öld harbuor so1d 7 redd lemps, he said")
    True
    >>> tells_in_disguise(truth, "the keeper of the old harbour sold 8 red lamps")
    False
    """
    own, other = _bare(truth), _bare(said)
    letters, joined = ("".join(found).translate(_ALIKE) for found in (own, other))
    if not letters:
        return False
    if letters in joined or letters in joined[::-1]:
        return True
    wanted, found = list(map(_near, own)), list(map(_near, other))
    return _run(wanted, found) or _run(wanted, found[::-1])


def _bare(text: str) -> list[str]:
    """The words of a text without case and marks."""
    apart = unicodedata.normalize("NFD", fold(text)).replace("@", "a").replace("$", "s")
    return words("".join(c for c in apart if not unicodedata.combining(c)))


def _meant(word: str) -> str:
    """A word in the letters that its own look like; a number as it is."""
    return word if word.isdecimal() else word.translate(_ALIKE)


def _near(word: str) -> frozenset[str]:
    """A word, what is left of it without one letter, and its digits alone: two words share one of
    these if they are a letter more, less, another or in another order apart. Of a number it alone.
    """
    own, digits = _meant(word), "".join(c for c in word if c.isdecimal())
    if own == digits or len(own) < 2:
        return frozenset((own,))
    shorter = {own[:i] + own[i + 1 :] for i in range(len(own))}
    return frozenset({own} | shorter | ({digits} - {""}))


def _run(wanted: Sequence[frozenset[str]], found: Sequence[frozenset[str]]) -> bool:
    """Whether some words stand in a row among others."""
    return any(
        not any(map(frozenset.isdisjoint, wanted, found[first : first + len(wanted)]))
        for first in range(len(found) - len(wanted) + 1)
    )
