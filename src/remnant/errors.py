"""Faults that the user can mend. Everything else is a bug and keeps its traceback."""

import difflib
from collections.abc import Iterable


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


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is in no table, with the nearest known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    remedy = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(names)}."
    return UserError(f"Unknown {kind} '{name}'.", remedy)
