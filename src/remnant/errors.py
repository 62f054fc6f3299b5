"""Faults that the user can mend. Everything else is a bug and keeps its traceback."""

import difflib
from collections.abc import Iterable

# Characters of a foreign message, and names of a list, that a sentence still carries.
MOST_SAID = 200
FEW_NAMES = 3


class UserError(Exception):
    """Something in the input is wrong; the message is one sentence and the remedy another."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class Unscorable(ValueError):
    """One item that a metric has nothing to say about; the reason becomes the status of its row."""


class Interrupted(UserError):
    """Ctrl-C or a termination signal: finished work is kept and the same command goes on."""


def first_line(error: BaseException) -> str:
    """What a library's error says, as part of a sentence: its first line, cut.

    Its kind where it says nothing.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:MOST_SAID]


def on_one_line(text: str) -> str:
    """With a question mark for what a terminal would not print: ends of lines, escapes, halves of
    characters.
    """
    return "".join(c if c.isprintable() else "?" for c in text)


def some(names: Iterable[str]) -> str:
    """The first names of many, and how many more there are."""
    found = list(names)
    return ", ".join(found[:FEW_NAMES]) + (
        f" and {len(found) - FEW_NAMES} more" if len(found) > FEW_NAMES else ""
    )


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is in no table, with the nearest known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    remedy = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(names)}."
    return UserError(f"Unknown {kind} '{name}'.", remedy)


class Diverged(UserError):
    """A loss, a gradient or weights that are not finite."""
