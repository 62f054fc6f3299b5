"""What a server's answer is worth: a whole text, log-probabilities that belong to the text, or the
reason why not. No torch.

Nothing that a server did not finish, held back or cut may count as an answer: an item without an
answer is not scored, one with a wrong answer looks forgotten.
"""

import itertools
import json
import math
from typing import Any, NamedTuple

import numpy as np
from pydantic import JsonValue

from remnant.evaluate.requests import Reading, Refused, Writing, too_short
from remnant.functional.tokens import Tokens

EMPTY = np.zeros(0)
# Finish reasons of a whole answer, of OpenAI, llama.cpp, vLLM, Ollama, TGI and SGLang; all others
# mean that something went wrong.
ENDED = frozenset({"stop", "eos", "eos_token", "stop_sequence", "end_turn", "stop_token"})
FULL = frozenset({"length", "max_tokens", "max_length"})
FILTERS = (
    "content_filter",
    "content filter",
    "content management",
    "content policy",
    "safety",
    "moderation",
    "refus",
    "blocked",
    "recitation",
)
LENGTHS = (
    "context length",
    "context size",
    "context window",
    "maximum context",
    "too long",
    "too many tokens",
    "exceeds the available",
)
# A sentence of one of these words stands at the head of every reason that speaks against the server
# and not against the item.
FILTERED, WRONG = "the server's filter", "the server"
# No tokenizer in use has tokens of more words or bytes on average over a whole answer: more text
# than that was not cut where asked.
WORDS_PER_TOKEN, CHARACTERS_PER_TOKEN, SLACK = 4, 32, 8
# Of a long prompt, a tokenizer makes at least one token of two words, and of 16 characters where
# words have no spaces.
LEAST_WORDS_PER_TOKEN, MOST_CHARACTERS_PER_TOKEN, LONG_PROMPT = 2, 16, 200
# Rounding of a server may lift a certain token a little above 0; some servers say -9999 where they
# know nothing.
ABOVE_ZERO, UNKNOWN = 1e-4, -9990.0
# Special tokens in front, halves of characters and dropped first spaces never match; everything
# else does.
SAME_TEXT, LONGEST_TOKEN = 0.8, 128


class Said(NamedTuple):
    """The one choice of an answer, its finish reason as told ("not said" if the key is absent), and
    the counts of tokens, if told.
    """

    choice: dict[str, Any]
    finish: str
    read: int | None
    wrote: int | None
    model: str


class Malformed(ValueError):
    """An answer that is none of OpenAI's completions."""


class Failed(ValueError):
    """The server says that it failed."""


def parsed(body: bytes) -> dict[str, JsonValue]:
    """The body as a JSON object; raises Malformed."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        page = body.lstrip()[:1] == b"<"
        raise Malformed("it sent a page, not JSON" if page else "it sent no JSON") from error
    if not isinstance(found, dict):
        raise Malformed("it sent no JSON object")
    return found


def about_item(message: str) -> Refused | None:
    """The refusal of one item by what a server says of its fault: filtered, or too long.

    None if it says something else.
    """
    low = message.lower()
    if any(w in low for w in FILTERS):
        return Refused(f"{FILTERED} held the answer back")
    if any(w in low for w in LENGTHS):
        return Refused("prompt and answer are longer than the server's context")
    return None


def error_of(found: dict[str, Any]) -> str:
    """What an object says of an error, in one line; empty if it holds none."""
    error = found.get("error")
    if not error:
        return ""
    if isinstance(error, dict):
        parts = [
            str(error[k])
            for k in ("message", "code", "type")
            if isinstance(error.get(k), str | int)
        ]
        return "; ".join(dict.fromkeys(parts)) or "an error without a message"
    return error if isinstance(error, str) else "an error without a message"


def said(found: dict[str, Any]) -> Said | Refused:
    """The choice of an answer with status 200.

    Raises:
        Malformed: it is none of OpenAI's completions.
        Failed: it is an error.
    """
    if message := error_of(found):
        if refused := about_item(message):
            return refused
        raise Failed(message)
    choices = found.get("choices")
    if not isinstance(choices, list):
        raise Malformed("its answer has no choices")
    if not choices:
        return Refused(f"{WRONG} gave no choice")
    choice = next((c for c in choices if isinstance(c, dict) and c.get("index", 0) == 0), None)
    if choice is None:
        raise Malformed("its choices are no objects")
    if "text" not in choice and "message" in choice:
        raise Malformed("it answers as chat completions do")
    told = choice.get("finish_reason", "not said")
    usage = found.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    model = found.get("model")
    return Said(
        choice,
        "null" if told is None else str(told)[:40],
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
        model if isinstance(model, str) else "",
    )


def _count(value: Any) -> int | None:
    """A number of tokens; None where it is not told, as 0 means too."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def unfinished(of: Said) -> Refused | None:
    """Why an answer does not count by its finish reason, a refusal or its error.

    None if it does.
    """
    choice, reason = of.choice, of.finish.lower()
    if message := error_of(choice):
        return about_item(message) or Refused(f"{WRONG} failed on it")
    if choice.get("refusal"):
        return Refused(f"{FILTERED} held the answer back (a refusal)")
    if any(w.replace(" ", "_") in reason.replace(" ", "_") for w in FILTERS):
        return Refused(f"{FILTERED} held the answer back (finish reason {of.finish})")
    if reason in ENDED or reason in FULL or reason == "not said":
        return None
    return Refused(f"{WRONG} did not finish the answer (finish reason {of.finish})")


def cut_prompt(of: Said, prompt: str) -> Refused | None:
    """The refusal of an answer to a prompt of which the server read less than it holds, where it
    tells; None otherwise.
    """
    if of.read is None or len(prompt) < LONG_PROMPT:
        return None
    least = max(
        len(prompt.split()) / LEAST_WORDS_PER_TOKEN, len(prompt) / MOST_CHARACTERS_PER_TOKEN
    )
    return (
        Refused(
            f"{WRONG} read {of.read} tokens of a prompt of {len(prompt.split())} words: it "
            "cuts prompts"
        )
        if of.read < least
        else None
    )


def overlong(of: Said, text: str, asked: int) -> bool:
    """Whether a server wrote more than the tokens that were asked for (one more is allowed, the end
    token).
    """
    if of.wrote is not None and of.wrote > asked + 1:
        return True
    return len(text.split()) > WORDS_PER_TOKEN * asked + SLACK or len(
        text
    ) > CHARACTERS_PER_TOKEN * (asked + SLACK)


def repeats(text: str, prompt: str) -> bool:
    """Whether an answer begins with the prompt, which a completion never repeats.

    Short prompts say nothing.
    """
    plain = " ".join(prompt.split())
    return len(plain) >= SLACK and " ".join(text.split()).startswith(plain)


def written(of: Said, asked: Writing) -> str | Refused:
    """The text of an answer, or why it does not count."""
    if refused := unfinished(of):
        return refused
    text = of.choice.get("text")
    if not isinstance(text, str):
        return Refused(f"{WRONG} gave no text (finish reason {of.finish})")
    prompt = asked.context + asked.prompt
    if repeats(text, prompt):
        return Refused(f"{WRONG} returned the prompt with its answer")
    if overlong(of, text, asked.max_new):
        return Refused(f"{WRONG} wrote more than the {asked.max_new} tokens that were asked for")
    if of.finish.lower() in FULL and of.wrote is not None and of.wrote < asked.max_new - 1:
        return Refused(
            f"{WRONG} stopped after {of.wrote} of the {asked.max_new} tokens that were asked for"
        )
    return cut_prompt(of, prompt) or whole_characters(text)


def whole_characters(text: str) -> str:
    """A text in which halves of characters (lone surrogates) are replaced, so that it can be
    kept.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def log_probabilities(of: Said, asked: Reading) -> Tokens | Refused:
    """The log-probabilities of the tokens of a text, nats, or why they cannot be believed.

    A server that hides the start token says nothing of the first token of all, so one number less
    is counted.
    """
    if refused := unfinished(of) or cut_prompt(of, asked.context + asked.text):
        return refused
    told = of.choice.get("logprobs")
    told = told if isinstance(told, dict) else {}
    logps, offsets, tokens = (told.get(k) for k in ("token_logprobs", "text_offset", "tokens"))
    if not isinstance(logps, list) or not isinstance(offsets, list):
        return Refused(f"{WRONG} gave no log-probabilities")
    if len(logps) != len(offsets) or (isinstance(tokens, list) and len(tokens) != len(logps)):
        return Refused(f"{WRONG} gave {len(logps)} log-probabilities for {len(offsets)} places")
    if fault := _bad_places(offsets) or _bad_numbers(logps):
        return Refused(f"{WRONG}'s log-probabilities {fault}")
    return _counted(asked, logps, offsets, tokens if isinstance(tokens, list) else None)


def _counted(
    asked: Reading, logps: list[Any], offsets: list[int], tokens: list[Any] | None
) -> Tokens | Refused:
    begin, text = len(asked.context), asked.context + asked.text
    inside = [i for i, o in enumerate(offsets) if begin <= o < len(text)]
    behind = max((o for o in offsets if o < len(text)), default=0)
    if tokens is not None and not _same(text, offsets, tokens):
        return Refused(f"{WRONG}'s log-probabilities belong to another text")
    if len(text) - behind > LONGEST_TOKEN:
        return Refused(f"{WRONG}'s log-probabilities end before the text does")
    counted = [logps[i] for i in inside if logps[i] is not None]
    if not counted:
        return too_short(asked)
    return Tokens(np.minimum(np.array(counted, np.float64), 0.0), EMPTY, EMPTY, EMPTY)


def _bad_places(offsets: list[Any]) -> str:
    if not all(isinstance(o, int) and not isinstance(o, bool) and o >= 0 for o in offsets):
        return "stand at no places"
    return (
        ""
        if all(a <= b for a, b in itertools.pairwise(offsets))
        else "are not in the order of the text"
    )


def _bad_numbers(logps: list[Any]) -> str:
    for i, logp in enumerate(logps):
        if logp is None:
            if i:
                return f"say nothing of token {i}"
        elif isinstance(logp, bool) or not isinstance(logp, int | float):
            return "are no numbers"
        elif not math.isfinite(logp) or logp < UNKNOWN:
            return "are not finite"
        elif logp > ABOVE_ZERO:
            return f"are above 0 ({logp:g})"
    return ""


def _same(text: str, offsets: list[int], tokens: list[Any]) -> bool:
    """Whether tokens stand in the text where they are said to.

    Those that cannot (special ones, halves of characters) are few.
    """
    told = [
        (o, t) for o, t in zip(offsets, tokens, strict=True) if isinstance(t, str) and o < len(text)
    ]
    plain = [(o, t) for o, t in told if t and "\ufffd" not in t and not t.startswith("bytes:")]
    right = sum(
        text[o : o + len(t)].strip() == t.strip()
        or (t.strip() != "" and text.startswith(t.lstrip(), o))
        for o, t in plain
    )
    # The first token may be a special one that the text does not show.
    return right + 1 >= SAME_TEXT * len(plain) and len(told) == sum(o < len(text) for o in offsets)
