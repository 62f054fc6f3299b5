"""What can be asked of a model, and what it answers. Equal requests are asked once. No torch."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from pydantic import JsonValue

from remnant.functional.tokens import COLUMNS, Tokens

# What a backend offers that takes a text with the special tokens of a conversation in it.
CHATS = "chats"


class Reading(NamedTuple):
    """Read a text token by token.

    The tokens of ``context``, which stands before it, are attended to and not counted.

    ``columns``: the fields of Tokens that are wanted. Contexts that are equal are computed once.
    ``framed``: see Item.
    """

    text: str
    context: str = ""
    columns: tuple[str, ...] = ("logp",)
    framed: bool = True


class Writing(NamedTuple):
    """Continue a prompt by at most ``max_new`` tokens, no further than one of ``stops``.

    The text is not cut.

    ``temperature`` 0 is greedy; else ``seed`` decides the sample, whatever else is asked for beside
    it. ``framed``: see Item.
    """

    prompt: str
    max_new: int
    context: str = ""
    stops: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int = 0
    framed: bool = True


class AskGradNorm(NamedTuple):
    """The norm of the gradient of a text's mean loss at all weights."""

    text: str


class Refused(NamedTuple):
    """Why a request has no answer."""

    reason: str


class GradNorm(NamedTuple):
    """The answer to a AskGradNorm, and whether the text was cut at the end of the context."""

    norm: float
    cut: bool = False


Request = Reading | Writing | AskGradNorm
Answer = Tokens | str | float | GradNorm | Refused


class Backend(Protocol):
    """Where models are asked."""

    @property
    def offers(self) -> frozenset[str]:
        """What it can answer: "writing", "grad_norm", ``CHATS``, and the columns of Tokens."""
        ...

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Batches as places in the list, in the order in which they are to be asked."""
        ...

    def answer(self, batch: Sequence[Request]) -> list[Answer]:
        """The answers to one batch of the plan."""
        ...


def by_context(requests: Sequence[Request]) -> list[int]:
    """Places in the list, requests of one kind and context side by side."""
    return sorted(
        range(len(requests)),
        key=lambda i: (type(requests[i]).__name__, getattr(requests[i], "context", "")),
    )


def too_short(asked: Reading) -> Refused:
    """The refusal of a text none of whose tokens is counted."""
    return Refused(
        "fewer than two tokens" if not asked.context else "no token fits behind its context"
    )


def too_long(limit: int) -> Refused:
    """The refusal of a prompt that does not fit with its answer."""
    return Refused(f"prompt and answer are longer than the model's context of {limit} tokens")


def not_finite() -> Refused:
    """The refusal where a model does not answer with numbers."""
    return Refused("the logits are not finite")


def to_json(answer: Answer) -> dict[str, JsonValue]:
    """An answer as plain data, exact to the last bit."""
    if isinstance(answer, Tokens):
        return {"tokens": [getattr(answer, c).tolist() for c in COLUMNS], "cut": answer.cut}
    if isinstance(answer, GradNorm):
        return {"grad_norm": answer.norm, "cut": answer.cut}
    return {"refused": answer.reason} if isinstance(answer, Refused) else {"plain": answer}


def from_json(data: Any) -> Answer:
    """The inverse of ``to_json``."""
    if "tokens" in data:
        logp, rank, mean, std = (np.array(column, dtype=np.float64) for column in data["tokens"])
        return Tokens(logp, rank, mean, std, data["cut"])
    if "grad_norm" in data:
        return GradNorm(data["grad_norm"], data["cut"])
    return Refused(data["refused"]) if "refused" in data else data["plain"]


def united(requests: Sequence[Request]) -> list[Request]:
    """Every distinct request once.

    Readings of one text that differ in their columns become one that has them all.
    """
    columns: dict[tuple[str, str], set[str]] = {}
    for request in requests:
        if isinstance(request, Reading):
            columns.setdefault((request.text, request.context), set()).update(request.columns)
    return list(dict.fromkeys(widened(r, columns) for r in requests))


def widened(request: Request, columns: dict[tuple[str, str], set[str]]) -> Request:
    """A reading with all columns that are asked of its text."""
    if not isinstance(request, Reading):
        return request
    wanted = columns[request.text, request.context]
    return request._replace(columns=tuple(c for c in COLUMNS if c in wanted))
