"""A server that speaks OpenAI's completions protocol as the one who is asked: llama.cpp, Ollama, vLLM, or a hosted model. No torch."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np

from remnant.errors import UserError
from remnant.evaluate.requests import Answer, Reading, Refused, Request, Writing
from remnant.functional.tokens import Tokens
from remnant.records import EndpointSpec

KEY = "REMNANT_API_KEY"
# Answers of a server that is busy or starting; everything else above 399 is final.
PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
EMPTY = np.zeros(0)


class Endpoint:
    """A served model.

    A server that hides the start token (llama-cpp-python's) says nothing of the first token of a text, so one number less is counted.

    Args:
        spec: where it is, how it is called, how many requests at a time, and how often a busy server is asked again.

    Raises:
        UserError: it cannot be reached, wants another key, or does not know the model.
    """

    def __init__(self, spec: EndpointSpec) -> None:
        self._spec = spec
        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(headers=headers, timeout=spec.timeout)
        self._post({"prompt": "a", "max_tokens": 1, "temperature": 0})
        self.offers = frozenset({"writing", "logp"}) if self._echoes() else frozenset({"writing"})

    def _echoes(self) -> bool:
        """Whether the server says how probable it finds the tokens of a prompt."""
        try:
            return bool(self._read(Reading("one two three", "")).logp.size)
        except (UserError, KeyError, TypeError, IndexError):
            return False

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """As many at a time as the server is to be asked side by side."""
        size = 4 * self._spec.concurrency
        return [list(range(i, min(i + size, len(requests)))) for i in range(0, len(requests), size)]

    def answer(self, batch: Sequence[Request]) -> list[Answer]:
        """The answers to some requests; raises UserError if the server fails for good."""
        with ThreadPoolExecutor(self._spec.concurrency) as pool:
            return list(pool.map(self._one, batch))

    def _one(self, request: Request) -> Answer:
        if isinstance(request, Writing):
            return self._write(request)
        return self._read(request) if isinstance(request, Reading) else Refused("a server gives no gradients")

    def _write(self, asked: Writing) -> Answer:
        body: dict[str, Any] = {
            "prompt": asked.context + asked.prompt,
            "max_tokens": asked.max_new,
            "temperature": asked.temperature,
            "seed": asked.seed,
        }
        if asked.temperature > 0:
            body["top_p"] = 1.0
        if asked.stops:
            body["stop"] = list(asked.stops)
        return str(self._post(body)["choices"][0]["text"])

    def _read(self, asked: Reading) -> Tokens:
        body = {"prompt": asked.context + asked.text, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        told = self._post(body)["choices"][0]["logprobs"]
        end = len(asked.context) + len(asked.text)
        counted = [
            logp
            for logp, offset in zip(told["token_logprobs"], told["text_offset"], strict=True)
            if logp is not None and len(asked.context) <= offset < end
        ]
        return Tokens(np.array(counted, np.float64), EMPTY, EMPTY, EMPTY)

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        """One completion; a busy server is asked again after a growing while, or the while that it names."""
        wait = FIRST_WAIT
        for attempt in range(self._spec.attempts):
            last = attempt + 1 == self._spec.attempts
            try:
                reply = self._client.post(f"{self._spec.url.rstrip('/')}/completions", json={"model": self._spec.model, **body})
            except httpx.TransportError as error:
                if last:
                    raise UserError(
                        f"The server at {self._spec.url} cannot be reached ({type(error).__name__}).", "Is it running? Check the address."
                    ) from error
            else:
                if reply.status_code < 400:
                    return self._decoded(reply)
                if reply.status_code not in PASSING or last:
                    raise UserError(
                        f"The server at {self._spec.url} answered {reply.status_code}: {_said(reply)}.", _remedy(reply.status_code)
                    )
                wait = max(wait, _seconds(reply.headers.get("retry-after")))
            time.sleep(min(wait, LONGEST_WAIT))
            wait *= 2
        raise AssertionError

    def _decoded(self, reply: httpx.Response) -> dict[str, Any]:
        try:
            found = reply.json()
            found["choices"][0]["text"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(
                f"The server at {self._spec.url} does not answer as OpenAI's completions do.",
                "Give the address that ends before /completions, often in /v1.",
            ) from error
        return found  # type: ignore[no-any-return]


def _seconds(header: str | None) -> float:
    """What a server asks to wait; 0 where it says nothing or gives a date."""
    return float(header) if header and header.replace(".", "", 1).isdigit() else 0.0


def _said(reply: httpx.Response) -> str:
    """The first line of what the server says of its refusal."""
    try:
        error = reply.json().get("error", reply.text)
    except (ValueError, AttributeError):
        error = reply.text
    text = error.get("message", "") if isinstance(error, dict) else str(error)
    return (text.strip().splitlines() or ["no reason given"])[0][:200]


def _remedy(status: int) -> str:
    if status in (401, 403):
        return f"Set {KEY} to a key that it accepts."
    if status == 404:
        return "Check the address (it ends before /completions, often in /v1) and the model's name (endpoint.model)."
    return "Try again later." if status in PASSING else ""
