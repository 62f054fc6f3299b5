"""A server that speaks OpenAI's completions protocol as the one who is asked: llama.cpp, Ollama,
vLLM, or a hosted model. No torch.
"""

import json
import math
import os
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from remnant.errors import UserError
from remnant.evaluate.requests import Answer, Reading, Refused, Request, Writing
from remnant.evaluate.served import (
    FILTERED,
    WRONG,
    Failed,
    Malformed,
    Said,
    about_item,
    error_of,
    log_probabilities,
    overlong,
    parsed,
    repeats,
    said,
    unfinished,
    whole_characters,
    written,
)
from remnant.evaluate.wire import Line, Reply, Unanswered
from remnant.functional.tokens import Tokens
from remnant.quiet import hush
from remnant.records import Check, EndpointSpec
from remnant.secrecy import full_address, scrubbed

KEY = "REMNANT_API_KEY"
# Answers of a server that is busy or starting; everything else above 399 is final.
PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
# Three greedy answers to one question: rounding may tell two of them apart, chance all three.
PROBES, PROBE_TOKENS = 3, 16
PROBE = "Once upon a time there was a king who"
# The model's name where none was given: it says nothing that an answer could be compared with.
NAMELESS = "default"


class Endpoint:
    """A served model.

    Args:
        spec: where it is, how it is called, how many requests at a time, and how often a busy
            server is asked again.

    Raises:
        UserError: it cannot be reached, wants another key, does not know the model or is another
            one, writes more than asked for, or samples although temperature 0 was asked for.
    """

    def __init__(self, spec: EndpointSpec) -> None:
        self._spec = spec
        self._stop = threading.Event()
        self._finished: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._models: set[str] = set()
        self._lock = threading.Lock()
        hush()  # messages of httpx name the whole address
        self._line = _line(spec)
        self._probe()
        self.offers = frozenset({"writing", "logp"}) if self._echoes() else frozenset({"writing"})

    def _probe(self) -> None:
        """Whether it answers at all, knows its limits, and says the same thing twice where nothing
        is left to chance.
        """
        one = self._whole(self._post({"prompt": "a", "max_tokens": 1, "temperature": 0}))
        if (
            one.model
            and self._spec.model != NAMELESS
            and not _same_model(one.model, self._spec.model)
        ):
            raise UserError(
                (
                    f"The server at {self._spec.url} answers as the model '{one.model[:80]}', not "
                    f"as '{self._spec.model}'."
                ),
                "Give the name that it uses with --set endpoint.model=NAME.",
            )
        wrote = str(one.choice.get("text"))
        if overlong(one, wrote, 1):
            raise UserError(
                (
                    f"The server at {self._spec.url} ignores max_tokens: it wrote "
                    f"{len(wrote.split())} words for one token."
                ),
                (
                    "Answers would be scored that are longer than the truth; ask a server that "
                    "keeps to it."
                ),
            )
        body = {"prompt": PROBE, "max_tokens": PROBE_TOKENS, "temperature": 0}
        told = {
            str(self._whole(self._post(body | {"seed": seed})).choice.get("text"))
            for seed in range(PROBES)
        }
        if any(repeats(text, PROBE) for text in told):
            raise self._fault(
                " returns the prompt with its answer",
                "Switch that off (echo): the prompt would be scored as an answer.",
            )
        if len(told) == PROBES:
            raise UserError(
                (
                    f"The server at {self._spec.url} ignores temperature: {PROBES} greedy answers "
                    "to one prompt all differ."
                ),
                "Answers by chance would look forgotten; set the server to temperature 0.",
            )

    def _whole(self, of: Said | Refused) -> Said:
        refused = of if isinstance(of, Refused) else unfinished(of)
        if isinstance(of, Said) and not refused and not isinstance(of.choice.get("text"), str):
            refused = Refused(f"{WRONG} gave no text")
        if isinstance(of, Refused) or refused:
            reason = refused.reason if refused else ""
            raise self._fault(
                f" does not answer a plain prompt: {self._shown(reason)}",
                "Ask it by hand what is wrong.",
            )
        return of

    def _echoes(self) -> bool:
        """Whether the server says how probable it finds the tokens of a prompt."""
        try:
            found = self._read(Reading("one two three", ""))
        except UserError:
            return False
        return isinstance(found, Tokens) and bool(found.logp.size)

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """As many at a time as the server is to be asked side by side."""
        size = 4 * self._spec.concurrency
        return [list(range(i, min(i + size, len(requests)))) for i in range(0, len(requests), size)]

    def answer(self, batch: Sequence[Request]) -> list[Answer]:
        """The answers to some requests.

        Raises UserError if the server fails for good, at once, whatever else is on its way.
        """
        pool = ThreadPoolExecutor(self._spec.concurrency)
        try:
            answers = list(pool.map(self._one, batch))
        except BaseException:
            self._stop.set()
            self._line.hang_up()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        self.recall(answers)
        return answers

    def recall(self, answers: Sequence[Answer]) -> None:
        """Count answers for ``checks``: those given here, and those that an earlier process was
        given and kept.
        """
        for answer in answers:
            self._refused["" if not isinstance(answer, Refused) else answer.reason] += 1

    def checks(self) -> list[Check]:
        """What the server did with what it was asked: every answer that it held back, broke off or
        cut speaks against all numbers.
        """
        total = self._refused.total()
        against = {r: n for r, n in self._refused.items() if r.startswith((FILTERED, WRONG))}
        ends = ", ".join(f"{reason} {count}" for reason, count in sorted(self._finished.items()))
        parts = [f"{total} answers"] + ([f"finish reasons: {ends}"] if ends else [])
        parts += [
            f"{count} not scored because {reason}" for reason, count in sorted(against.items())
        ]
        parts += (
            [f"they came from {len(self._models)} models: {', '.join(sorted(self._models))}"]
            if len(self._models) > 1
            else []
        )
        ok = not against and len(self._models) < 2
        remedy = (
            ""
            if ok
            else (
                " What it keeps back may be what was to be forgotten: switch its filters off, or "
                "measure the weights."
            )
        )
        return [
            Check(
                name="server",
                ok=ok,
                said=f"{'; '.join(parts)}.{remedy}",
                count=sum(against.values()),
                total=total,
            )
        ]

    def _one(self, request: Request) -> Answer:
        if isinstance(request, Writing):
            return self._write(request)
        return (
            self._read(request)
            if isinstance(request, Reading)
            else Refused("a server gives no gradients")
        )

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
        of = self._post(body)
        return of if isinstance(of, Refused) else written(of, asked)

    def _read(self, asked: Reading) -> Tokens | Refused:
        of = self._post(
            {
                "prompt": asked.context + asked.text,
                "max_tokens": 1,
                "temperature": 0,
                "echo": True,
                "logprobs": 1,
            }
        )
        return of if isinstance(of, Refused) else log_probabilities(of, asked)

    def _post(self, body: dict[str, Any]) -> Said | Refused:
        """One completion.

        A server that is busy or fails is asked again after a growing while, or the while that it
        names.
        """
        try:
            content = json.dumps({"model": self._spec.model, **body}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return Refused("its prompt holds half of a character (a lone surrogate)")
        wait = FIRST_WAIT
        for attempt in range(self._spec.attempts):
            last = attempt + 1 == self._spec.attempts
            try:
                reply = self._line.ask(content)
                if reply.status < 300 or reply.status not in PASSING or last:
                    return self._noted(self._taken(reply))
                wait = max(wait, _seconds(reply.headers.get("retry-after")))
            except (Unanswered, Failed) as error:
                if last:
                    raise self._fault(
                        f": {self._shown(error)}",
                        "Is it running, and able to answer? Check the address.",
                    ) from error
            if self._stop.wait(min(wait, LONGEST_WAIT)):
                raise self._fault(" was left: another request failed for good")
            wait *= 2
        raise AssertionError

    def _taken(self, reply: Reply) -> Said | Refused:
        """What a final answer says.

        Raises UserError, and Failed where the server reports a failure of its own.
        """
        if 300 <= reply.status < 400:
            to = self._shown(reply.headers.get("location", "nowhere"))
            raise self._fault(
                f" sends to another address ({to}), which is not followed",
                "Give that address if it is the right one.",
            )
        if reply.status >= 400:
            message = _said(reply)
            if (
                reply.status < 500
                and reply.status not in (401, 403, 404, 429)
                and (refused := about_item(message))
            ):
                return refused
            raise self._fault(
                f" answered {reply.status}: {self._shown(message)}", _remedy(reply.status)
            )
        try:
            return said(parsed(reply.body))
        except Malformed as error:
            remedy = "Give the address that ends before /completions, often in /v1."
            raise self._fault(
                f" does not answer as OpenAI's completions do: {error}", remedy
            ) from error

    def _noted(self, of: Said | Refused) -> Said | Refused:
        if isinstance(of, Said):
            with self._lock:
                self._finished[self._shown(of.finish)] += 1
                if of.model:
                    self._models.add(self._shown(of.model))
        return of

    def _fault(self, what: str, remedy: str = "") -> UserError:
        return UserError(f"The server at {self._spec.url}{what}.", remedy)

    def _shown(self, what: object) -> str:
        """Words of a server for people: one line, without what must not be kept."""
        line = " ".join(whole_characters(str(what)).split())
        return scrubbed("".join(c for c in line if c.isprintable()))[:200]


def _line(spec: EndpointSpec) -> Line:
    """The way to a server; raises UserError for an address or a key that cannot be sent."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"{KEY} holds characters that no key has.", "Set it to plain letters and digits."
        )
    address, query = full_address(spec.url)
    try:
        return Line(f"{address.rstrip('/')}/completions", query, key, spec.timeout)
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise UserError(
            f"{spec.url} is no address that can be asked.", "Write it as http://127.0.0.1:8000/v1."
        ) from error


def _same_model(told: str, asked: str) -> bool:
    """Whether two names may mean one model: a server may add a date, or the folder of its file."""
    a, b = (name.lower().rstrip("/").rsplit("/", 1)[-1] for name in (told, asked))
    return a in b or b in a


def _seconds(header: str | None) -> float:
    """What a server asks to wait.

    0 where it says nothing, gives a date or no number that can be waited for.
    """
    try:
        found = float(header or 0)
    except ValueError:
        return 0.0
    return found if math.isfinite(found) and found > 0 else 0.0


def _said(reply: Reply) -> str:
    """The first line of what the server says of its refusal."""
    text = reply.body[:4000].decode("utf-8", "replace")
    try:
        found = parsed(reply.body)
    except Malformed:
        text = "a page" if text.lstrip().startswith("<") else text
    else:
        text = error_of(found) or str(found.get("message") or found.get("detail") or text)
    return (text.strip().splitlines() or ["no reason given"])[0][:200]


def _remedy(status: int) -> str:
    if status in (401, 403):
        return f"Set {KEY} to a key that it accepts."
    if status == 404:
        return (
            "Check the address (it ends before /completions, often in /v1) and the model's name "
            "(endpoint.model)."
        )
    return "Try again later." if status in PASSING else ""
