"""Words of any script, by the segmentation of the package regex (Unicode's UAX #29). No torch.

Scripts that put no space between words (Chinese, Japanese, Thai, Khmer, ...) are taken by
characters as a reader sees them (grapheme clusters); all others by words.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence

import regex

# Letters of scripts without spaces: ideographs, kana, and what Unicode's line breaking leaves to a
# dictionary or to syllables.
_SPACELESS = (
    r"\p{Ideographic}\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}"
    r"\p{lb=CJ}\p{lb=SA}\p{lb=AK}\p{lb=AS}"
)
_CLUSTER = regex.compile(rf"[{_SPACELESS}]")
_PIECE = regex.compile(
    rf"(?=[{_SPACELESS}])\X|[\p{{L}}\p{{N}}](?:(?![{_SPACELESS}])[\p{{L}}\p{{N}}\p{{M}}])*"
)
_STRETCH = regex.compile(rf"(?=[{_SPACELESS}])\X|(?:(?![{_SPACELESS}])\X)+")
_BORDER = regex.compile(r"(?V1w)\b")
_LETTER = regex.compile(r"[\p{L}\p{N}]")
_OTHER_SCRIPT = regex.compile(r"(?V1)[\p{L}--[\p{Latin}\p{Common}\p{Inherited}]]")
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
# One word in ten of another script (a name, a sign in a formula) leaves a text comparable with
# published numbers; more of them carry part of what it says, and a metric that does not see them
# would call it forgotten.
_MOST_OTHER = 0.1


def fold(text: str) -> str:
    """The text in Unicode's compatibility form, without case and without characters that are not
    seen (NFKC_Casefold).
    """
    return str(_INVISIBLE.sub("", unicodedata.normalize("NFKC", text).casefold()))


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits without case.

    The characters of scripts without spaces one by one.

    How a stretch is split does not depend on what stands around it, so that equal stretches of two
    texts have equal words.
    """
    return re.findall(r"[a-z0-9]+", text.lower()) if text.isascii() else _PIECE.findall(fold(text))


def unicode_words(text: str) -> list[str]:
    """Words between the word borders of UAX #29 (``don't`` is one), without case.

    Characters in scripts without spaces.
    """
    found: list[str] = []
    for stretch in _STRETCH.findall(fold(text)):
        found += [
            piece
            for piece in ([stretch] if _CLUSTER.match(stretch) else _BORDER.split(stretch))
            if _LETTER.search(piece)
        ]
    return found


def is_latin(text: str) -> bool:
    """Whether a text can be read by its runs of a-z and 0-9: it has one, and at most a tenth of its
    words is of another script.

    Accented letters are Latin.
    """
    if text.isascii():
        return True
    if not re.search("[a-z0-9]", text.lower()):
        return False
    found = unicode_words(text)
    return sum(bool(_OTHER_SCRIPT.search(w)) for w in found) <= _MOST_OTHER * len(found)


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens; none if there are fewer."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def size(tokens: Sequence[str]) -> float:
    """How many words some tokens amount to: two characters of a script without spaces count as one
    (a usual word of Chinese has two).
    """
    return sum(_halves(t) for t in tokens) / 2


def long_runs(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """From every place the shortest run of tokens that amounts to ``n`` words.

    For scripts with spaces the runs of n words.
    """
    sizes = [_halves(t) for t in tokens]
    runs, end, held = [], 0, 0
    for start, own in enumerate(sizes):
        while held < 2 * n and end < len(sizes):
            held += sizes[end]
            end += 1
        if held < 2 * n:
            break
        runs.append(tuple(tokens[start:end]))
        held -= own
    return runs


def _halves(token: str) -> int:
    return 2 if token.isascii() or not _CLUSTER.match(token) else 1


def halves(text: str) -> tuple[str, str]:
    """A text in two at the space in the middle of its words, or between characters where words are
    not written apart.

    The space stays behind the first half, which is empty where there is only one word.
    """
    if _spaced(text):
        found = text.split()
        first = " ".join(found[: len(found) // 2])
        return (f"{first} ", " ".join(found[len(found) // 2 :])) if first else ("", text)
    found = regex.findall(r"\X", text)
    return "".join(found[: len(found) // 2]), "".join(found[len(found) // 2 :])


def beginning(text: str, n: int) -> str:
    """The first ``n`` words of a text, or twice as many characters where words are not written
    apart.
    """
    return (
        " ".join(text.split(" ")[:n])
        if _spaced(text)
        else "".join(regex.findall(r"\X", text)[: 2 * n])
    )


def _spaced(text: str) -> bool:
    """Whether a text writes its words apart: less than half of its letters are of a script without
    spaces.
    """
    return text.isascii() or 2 * len(_CLUSTER.findall(text)) < len(_LETTER.findall(text))


class Known:
    """Text that other text may repeat: in a long run of words, or as a whole where it is too short
    for one.

    Args:
        texts: the known texts.
        run: words of a run that is not shared by chance.
        least: words from which a short text that stands within another one is a repetition; shorter
            phrases are often the same by chance.
    """

    def __init__(self, texts: Collection[str], run: int = 13, least: int = 6) -> None:
        self._words = [words(t) for t in texts]
        self._run, self._least = run, least
        self._runs = {gram for tokens in self._words for gram in long_runs(tokens, run)}
        short = {tuple(tokens) for tokens in self._words if tokens and size(tokens) < run}
        self._short: dict[int, set[tuple[str, ...]]] = {}
        for item in short:
            self._short.setdefault(len(item), set()).add(item)
        self._parts: dict[int, set[tuple[str, ...]]] = {}

    def share(self, text: str) -> float:
        """Share of the runs of a text that are known, 0 to 1.

        1 for a short text that is known as a whole or as part of a known text.

        A text around a known short one of at least ``least`` words shares at least the words of
        that.
        """
        tokens = words(text)
        if not tokens:
            return 0.0
        runs = long_runs(tokens, self._run)
        if not runs:
            return float(self._has(tuple(tokens)) or self._around(tokens) > 0)
        return max(sum(run in self._runs for run in runs) / len(runs), self._around(tokens))

    def _has(self, item: tuple[str, ...]) -> bool:
        """Whether a short text is one of the known short ones, or stands within a known text."""
        if item in self._short.get(len(item), ()):
            return True
        if size(item) < self._least:
            return False
        if len(item) not in self._parts:
            self._parts[len(item)] = {
                gram for tokens in self._words for gram in ngrams(tokens, len(item))
            }
        return item in self._parts[len(item)]

    def _around(self, tokens: list[str]) -> float:
        """The longest known short text that stands within a text, as a share of it."""
        longest = 0
        for n, items in self._short.items():
            if any(g in items and size(g) >= self._least for g in ngrams(tokens, n)):
                longest = max(longest, n)
        return longest / len(tokens)


def repeated(texts: Collection[str]) -> int:
    """How many texts say word for word what another one before them says."""
    seen = [tuple(words(t)) or t for t in texts]
    return len(seen) - len(set(seen))
