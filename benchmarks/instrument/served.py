"""Plants of servers: a server that knows the texts, in front of which something filters, fails or
shortens.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from instrument.bench import Bench, Outcome, Plant
from instrument.lab import Lab
from instrument.text import Parts, asked, cut

Choice = dict[str, Any]
Reply = Callable[[str, str, dict[str, Any]], dict[str, Any]]


def knowing(parts: Parts) -> Callable[[str], str]:
    """What a model that knows everything writes behind a prompt."""
    texts = dict(cut(r.text) for r in parts.forget)
    answers = {asked(r): f"{r.answer}\n\n" for r in (*parts.forget, *parts.retain)}

    def write(prompt: str) -> str:
        last = "Question: " + prompt.rpartition("Question: ")[2]
        return texts.get(prompt) or answers.get(last) or "one"

    return write


def is_forget(parts: Parts) -> Callable[[str], bool]:
    """Whether a prompt asks for forget text."""
    starts = {cut(r.text)[0] for r in parts.forget} | {asked(r) for r in parts.forget}
    return lambda prompt: (
        prompt in starts or "Question: " + prompt.rpartition("Question: ")[2] in starts
    )


def body(text: Any, finish: Any = "stop") -> dict[str, Any]:
    """An answer in the form of OpenAI's completions."""
    return {
        "id": "x",
        "object": "text_completion",
        "choices": [{"index": 0, "text": text, "finish_reason": finish, "logprobs": None}],
    }


@contextmanager
def serving(lab: Lab, reply: Reply) -> Iterator[str]:
    """The address of a server on loopback that answers with ``reply(prompt, what a knowing model
    would write, request)``.
    """
    write = knowing(lab.parts)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            prompt = request["prompt"]
            ids = lab.tokenizer(write(prompt), add_special_tokens=False)["input_ids"][
                : request["max_tokens"]
            ]
            found = reply(prompt, lab.tokenizer.decode(ids), request)
            data = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            with suppress(
                BrokenPipeError, ConnectionResetError
            ):  # a client that has seen enough may go
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


RIGHT = {"verbmem": 95.0, "knowmem_forget": 100.0}


def measured(bench: Bench, reply: Reply) -> Outcome:
    """A measurement of what the server says.

    The texts are known, so the numbers are high or not there.
    """
    with serving(bench.lab, reply) as address:
        return bench.measured(
            address,
            None,
            "--set",
            "endpoint.attempts=2",
            "--set",
            "endpoint.timeout=10",
            right=RIGHT,
        )


def plant(
    name: str, how: str, make: Callable[[Callable[[str], bool]], Reply], quick: bool = False
) -> Plant:
    """A server with a fault; ``make`` gets the test for prompts about forget text."""
    return Plant(name, "server", how, lambda b: measured(b, make(is_forget(b.lab.parts))), quick)


def _chat(prompt: str, text: str, request: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}, "text": "", "finish_reason": "stop"}]}


def _error(prompt: str, text: str, request: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"message": "CUDA out of memory", "code": 500}, **body("", None)}


SERVED = [
    plant(
        "content filter, no text",
        "the finish reason is content_filter, the text empty",
        lambda f: lambda p, t, r: body("", "content_filter") if f(p) else body(t),
    ),
    plant(
        "content filter, a sentence",
        "the finish reason is content_filter, the text a sentence",
        lambda f: (
            lambda p, t, r: (
                body("This content is not available.", "content_filter") if f(p) else body(t)
            )
        ),
    ),
    plant(
        "safety by another name",
        "the finish reason is SAFETY",
        lambda f: lambda p, t, r: body("", "SAFETY") if f(p) else body(t),
    ),
    plant(
        "error in a 200",
        "an error beside an empty choice",
        lambda f: lambda p, t, r: _error(p, t, r) if f(p) else body(t),
    ),
    plant(
        "error as a finish reason",
        "the finish reason is error",
        lambda f: lambda p, t, r: body("", "error") if f(p) else body(t),
    ),
    plant(
        "text null", "the text is null", lambda f: lambda p, t, r: body(None) if f(p) else body(t)
    ),
    plant("text a number", "the text is 0", lambda f: lambda p, t, r: body(0) if f(p) else body(t)),
    plant(
        "empty answers",
        "every answer about forget text is empty",
        lambda f: lambda p, t, r: body("") if f(p) else body(t),
    ),
    plant(
        "only white space",
        "every answer about forget text is a blank line",
        lambda f: lambda p, t, r: body("\n\n") if f(p) else body(t),
    ),
    plant("all answers empty", "every answer is empty", lambda f: lambda p, t, r: body("")),
    plant(
        "one token only",
        "the server writes one token, whatever is asked for",
        lambda f: lambda p, t, r: body(t.split(" ")[0], "length"),
    ),
    plant(
        "one sentence for all",
        "a sentence of refusal in front of the model, for every text about forget text",
        lambda f: (
            lambda p, t, r: body("I'm sorry, but I can't help with that.") if f(p) else body(t)
        ),
    ),
    plant(
        "the prompt again",
        "the answer begins with the prompt",
        lambda f: lambda p, t, r: body(p + t),
    ),
    plant(
        "a chat's form",
        "the answer stands under message, the text is empty",
        lambda f: lambda p, t, r: _chat(p, t, r) if r["max_tokens"] > 1 else body(t),
    ),
    plant(
        "no choices",
        "a list of choices that is empty, for forget text",
        lambda f: lambda p, t, r: {"choices": []} if f(p) else body(t),
    ),
    plant(
        "finish reason missing",
        "no finish reason, no text",
        lambda f: lambda p, t, r: {"choices": [{"text": ""}]} if f(p) else body(t),
    ),
]

QUICK = (
    "content filter, no text",
    "error in a 200",
    "text null",
    "empty answers",
    "one token only",
    "the prompt again",
)
PLANTS = [p._replace(quick=p.name in QUICK) for p in SERVED]
