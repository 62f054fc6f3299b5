"""Hostile servers and hostile logs: every one ends, in a refusal or one sentence, and none as a
number that nobody gave."""

import contextlib
import json
import math
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from remnant import cli
from remnant.errors import UserError
from remnant.evaluate import endpoint, wire
from remnant.evaluate.endpoint import Endpoint
from remnant.evaluate.requests import Reading, Refused, Writing
from remnant.records import EndpointSpec

# One whole request, and how long anything may take here: probes and answers, each asked twice.
TIMEOUT, END = 0.4, 20.0
PROBES = 5
Act = Callable[[BaseHTTPRequestHandler], None]


def sends(data: bytes, status: int = 200, **headers: str) -> Act:
    def act(to: BaseHTTPRequestHandler) -> None:
        to.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            to.send_header(name.replace("_", "-"), value)
        to.end_headers()
        to.wfile.write(data)

    return act


def says(found: Any, status: int = 200, **headers: str) -> Act:
    return sends(json.dumps(found).encode(), status, **headers)


def prompt_of(to: BaseHTTPRequestHandler) -> str:
    """What was asked, as the handler below has kept it."""
    return str(vars(to)["prompt"])


def choice(**of: Any) -> Act:
    return says({"choices": [of]})


def raw(*parts: bytes, pause: float = 0.0, forever: bool = False) -> Act:
    def act(to: BaseHTTPRequestHandler) -> None:
        end = time.monotonic() + END
        while True:
            for part in parts:
                to.wfile.write(part)
                to.wfile.flush()
                time.sleep(pause)
            if not forever or time.monotonic() > end:
                return
            parts_left = parts[-1:]
            to.wfile.write(parts_left[0])

    return act


def drips(head: bytes, byte: bytes) -> Act:
    """Something arrives all the time, and never all of it."""

    def act(to: BaseHTTPRequestHandler) -> None:
        to.wfile.write(head)
        for _ in range(int(END / 0.05)):
            to.wfile.write(byte)
            to.wfile.flush()
            time.sleep(0.05)

    return act


def resets(to: BaseHTTPRequestHandler) -> None:
    to.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    to.connection.close()


def sleeps(to: BaseHTTPRequestHandler) -> None:
    time.sleep(3 * TIMEOUT)


def endless(to: BaseHTTPRequestHandler) -> None:
    to.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + b'{"choices": [{"text": "')
    for _ in range(4096):
        to.wfile.write(b"a" * 65536)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
WHOLE = {"text": "x", "finish_reason": "stop"}
SERVERS: dict[str, Act] = {
    "drips a body": drips(HEAD + b"Content-Length: 100000\r\n\r\n", b" "),
    "drips headers": drips(HEAD, b"X"),
    "drips a status": drips(b"", b"H"),
    "drips chunks": drips(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "endless body": endless,
    "never answers": sleeps,
    "resets": resets,
    "closes": lambda to: None,
    "closes in the head": raw(HEAD),
    "closes in the body": raw(HEAD + b'Content-Length: 500\r\n\r\n{"choices"'),
    "no HTTP": raw(b"\x00\xff\x16\x03\x01" * 50),
    "HTTP/9": raw(b"HTTP/9.9 200 OK\r\n\r\n{}"),
    "negative length": raw(HEAD + b"Content-Length: -5\r\n\r\n{}"),
    "two lengths": raw(HEAD + b"Content-Length: 5\r\nContent-Length: 7\r\n\r\n{}     "),
    "endless headers": raw(
        HEAD, *[b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(300)], b"\r\n{}"
    ),
    "bad gzip": sends(b"\x1f\x8bgarbage", Content_Encoding="gzip"),
    "bad charset": sends(b'{"choices": "\xff\xfe"}'),
    "no content": sends(b"", 204),
    "nothing": sends(b""),
    "a page": sends(b"<html><body>Welcome</body></html>"),
    "garbage": sends(bytes(random.Random(0).randbytes(3000))),
    "half of JSON": sends(b'{"choices": [{"te'),
    "nested lists": sends(b"[" * 200_000),
    "nested objects": sends(b'{"choices":' * 100_000 + b"1" + b"}" * 100_000),
    "a huge integer": sends(b'{"choices": ' + b"9" * 10_000 + b"}"),
    "a number": says(7),
    "a list": says([WHOLE]),
    "null": says(None),
    "choices null": says({"choices": None}),
    "choices empty": says({"choices": []}),
    "choices a text": says({"choices": "text"}),
    "choices of numbers": says({"choices": [1, 2]}),
    "a chat answer": says({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}),
    "text null": choice(text=None, finish_reason="stop"),
    "text missing": choice(finish_reason="stop"),
    "text a number": choice(text=5, finish_reason="stop"),
    "text an object": choice(text={"a": 1}, finish_reason="stop"),
    "filtered": choice(text="", finish_reason="content_filter"),
    "aborted": choice(text="x", finish_reason="abort"),
    "unfinished": choice(text="x", finish_reason=None),
    "finish a list": choice(text="x", finish_reason=["stop"]),
    "refused": choice(text="I", refusal="no", finish_reason="stop"),
    "an error inside": says({"error": {"message": "out of memory"}}),
    "an error beside": says({"error": "overloaded", "choices": [WHOLE]}),
    "an error in the choice": choice(text="x", finish_reason="stop", error={"code": 1}),
    "a novel": choice(text="word " * 5000, finish_reason="stop"),
    "the prompt again": lambda to: choice(text=prompt_of(to) + "and", finish_reason="stop")(to),
    "moved": sends(b"", 301, Location="http://example.invalid/"),
    "moved to itself": sends(b"", 307, Location="/v1/completions"),
    "moved to a file": sends(b"", 302, Location="file:///etc/passwd"),
    "moved nowhere": sends(b"", 302),
    "waits for ever": says({}, 429, Retry_After="1e12"),
    "waits oddly": says({}, 503, Retry_After="²"),
    "waits not a number": says({}, 503, Retry_After="nan"),
    "an error page": sends(b"<h1>\x1b[31m[/red]502</h1>", 502),
    "an error list": says([1, [2]], 500),
    "an error of nulls": says({"error": {"message": None}}, 400),
    "a teapot": sends(b"\xff" * 10_000, 418),
    "another key": says({"error": "no key"}, 401),
}
FAST = {
    "drips a body", "drips headers", "drips chunks", "resets", "closes in the body", "bad gzip",
    "nested lists", "a huge integer",
    "text null", "filtered", "unfinished", "an error inside", "moved",
    "waits oddly", "an error page", "the prompt again", "a list", "closes",
}  # fmt: skip


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Act, int], str]]:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 0.05)
    monkeypatch.setattr(wire, "LONGEST_BODY", 2**20)
    made: list[ThreadingHTTPServer] = []

    def start(act: Act, good: int) -> str:
        count = iter(range(10**9))

        class Handler(BaseHTTPRequestHandler):
            prompt = ""

            def do_POST(self) -> None:
                self.prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))[
                    "prompt"
                ]
                with contextlib.suppress(OSError):
                    (choice(**WHOLE) if next(count) < good else act)(self)

            def log_message(self, *anything: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        vars(server)["handle_error"] = lambda *anything: None
        made.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server in made:
        server.shutdown()
        server.block_on_close = False
        server.server_close()


LONG = "what stands before it is long enough to be known again "


def outcome(url: str) -> list[Any] | str:
    """What two requests end in: their answers, or the sentence."""
    started = time.monotonic()
    try:
        backend = Endpoint(EndpointSpec(url=url, timeout=TIMEOUT, attempts=2, concurrency=2))
        answers = backend.answer([Writing(LONG, 8), Reading(LONG)])
    except UserError as error:
        return str(error)
    finally:
        assert time.monotonic() - started < END
    assert not backend.checks()[0].ok
    return answers


@pytest.mark.parametrize("good", [0, PROBES])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in SERVERS]
)
def test_a_hostile_server_ends_in_refusals_or_one_sentence(
    name: str, good: int, serve: Callable[[Act, int], str]
) -> None:
    found = outcome(serve(SERVERS[name], good))
    if isinstance(found, str):
        assert found.isprintable()
        assert 20 < len(found) < 600
    else:
        assert good
        assert all(isinstance(a, Refused) for a in found), found


def test_a_request_that_fails_for_good_does_not_wait_for_the_others(
    serve: Callable[[Act, int], str],
) -> None:
    def act(to: BaseHTTPRequestHandler) -> None:
        if "first" in prompt_of(to):
            says({"error": "no key"}, 401)(to)
        else:
            time.sleep(8)

    backend = Endpoint(EndpointSpec(url=serve(act, PROBES), timeout=8.0, attempts=5, concurrency=4))
    started = time.monotonic()
    with pytest.raises(UserError, match="401"):
        backend.answer([Writing("first", 1), *[Writing(f"p{i}", 1) for i in range(20)]])
    assert time.monotonic() - started < 5


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


OWN = {"metric": "verbmem", "id": 1, "truth": "a b", "generated": "a b"}
SIDE = {"metric": "privleak", "split": "forget", "id": 1, "value": 1.0}
TOFU_FORGET = {
    "avg_gt_loss": {"0": 1.0},
    "average_perturb_loss": {"0": [1.0]},
    "avg_paraphrased_loss": {"0": 1.0},
    "rougeL_recall": {"0": 0.5},
}


def tofu(**wrong: Any) -> dict[str, Any]:
    return {"eval_log_forget.json": TOFU_FORGET | wrong}


# By file name the texts (or bytes) that end in a sentence.
LOGS: list[tuple[str, Any]] = [
    ("empty.jsonl", ""), ("blank.jsonl", " \n\t\n"), ("zero.jsonl", b"\0" * 100), ("binary.jsonl",
    random.Random(1).randbytes(500)),
    ("utf16.jsonl", json.dumps(OWN).encode("utf-16")), ("nested.jsonl", nested(200_000)),
    ("huge.jsonl", '{"metric": ' + "9" * 9000 + "}"),
    ("half.jsonl", json.dumps(OWN)[:-5]), ("list.jsonl", "[1]"), ("number.jsonl", "7"),
    ("null.jsonl", "null"),
    ("two.jsonl", json.dumps(OWN) * 2), ("twice.jsonl", (json.dumps(OWN) + "\n") * 2),
    ("none.jsonl", json.dumps({"id": 1})),
    ("metric.jsonl", json.dumps(OWN | {"metric": ["verbmem"]})), ("markup.jsonl",
    json.dumps(OWN | {"metric": "[/red]\ud800\n\x1b[31m"})),
    ("id.jsonl", json.dumps(OWN | {"id": None})), ("bool.jsonl", json.dumps(OWN | {"id": True})),
    ("id2.jsonl", json.dumps(OWN | {"id": {}})),
    ("truth.jsonl", json.dumps(OWN | {"truth": None})), ("said.jsonl",
    json.dumps(OWN | {"generated": 5})),
    ("blank_truth.jsonl", json.dumps(OWN | {"truth": ""})), ("signs.jsonl",
    json.dumps(OWN | {"truth": "?!", "generated": "?!"})),
    ("surrogate.jsonl", json.dumps(OWN | {"truth": "\ud800", "id": "\udfff"})),
    ("long.jsonl", json.dumps(OWN | {"truth": "a " * 9000, "generated": "b " * 9000})),
    ("split.jsonl", json.dumps(SIDE | {"split": "retain"})), ("value.jsonl",
    json.dumps(SIDE | {"value": "1"})),
    ("nan.jsonl", json.dumps(SIDE | {"value": math.nan})), ("inf.jsonl",
    json.dumps(SIDE | {"value": -math.inf})),
    ("beyond.jsonl", json.dumps(SIDE | {"value": 10**400})), ("yes.jsonl",
    json.dumps(SIDE | {"value": True})),
    ("torn_EVAL.json", '{"forget_quality": '), ("deep_EVAL.json", nested(200_000)),
    ("text_EVAL.json", '"forget_quality"'),
    ("A_EVAL.json", {"forget_quality": {"agg_value": "0.5"}}), ("B_EVAL.json",
    {"forget_quality": {"agg_value": {}}}),
    ("C_EVAL.json", {"forget_quality": math.nan}), ("D_EVAL.json", {"forget_quality": 1e300}),
    ("E_EVAL.json", {"privleak": -math.inf}),
    ("F_EVAL.json", {"mia_min_k": {"agg_value": 0.5,
    "forget": {"value_by_index": {"0": {"score": "x"}}}}}),
    ("G_EVAL.json", {"forget_Q_A_ROUGE": {"agg_value": 0.5,
    "value_by_index": {"0": {"rougeL_recall": 3}}}}),
    ("H_EVAL.json", {"exact_memorization": {"agg_value": 0.9,
    "value_by_index": {"0": {"score": 0.0}}}}),
    ("I_EVAL.json", {"unknown": {"agg_value": 7}}),
    ("J_EVAL.json", {"forget_truth_ratio": {"agg_value": 0.1,
    "value_by_index": {"0": {"score": -1}}}}),
    ("auc.json", {"forget_holdout_Min-40%": 40}), ("auc.json",
    {"forget_holdout": {"Min-40%": None}}), ("auc.json", {"forget_holdout": []}),
    ("auc.json", {"forget_holdout_Min-40%": [0.5]}), ("log.json", {"forget": [{"PPL": "x"}],
    "holdout": [{"PPL": 1}]}),
    ("log.json", [{"gt": 1, "response": "x"}]), ("log.json", []), ("agg.json",
    {"mean_rougeL": 0.1}), ("out.json", {"verbmem_f": 101}),
    ("out.json", {"verbmem_f": "57"}), ("history.json", [{"gt": "a", "response": "a"}]),
    ("t.json", tofu(avg_gt_loss={})), ("t.json", tofu(avg_gt_loss={"1": 1.0})), ("t.json",
    tofu(avg_gt_loss={"0": "x"})),
    ("t.json", tofu(avg_gt_loss={"0": -1.0})), ("t.json", tofu(avg_gt_loss={"0": math.nan})),
    ("t.json", tofu(avg_gt_loss=[1.0])),
    ("t.json", tofu(average_perturb_loss={"0": [[1.0]]})), ("t.json",
    tofu(average_perturb_loss={"0": []})),
    ("t.json", tofu(rougeL_recall={"0": 50})), ("t.json", tofu(rougeL_recall=None)), ("t.json",
    {"eval_log.json": {}}),
    ("data.json", {"x": 1}), ("data.json", [[1], None]), ("data.json", ""), ("data.json",
    b"\xff\xfe"),
]  # fmt: skip


@pytest.mark.parametrize("retrain", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("number", "name", "data"), [(i, n, d) for i, (n, d) in enumerate(LOGS)])
def test_a_hostile_log_is_one_sentence(
    number: int, name: str, data: Any, retrain: bool, tmp_path: Path
) -> None:
    path = tmp_path / "x" / name
    path.parent.mkdir()
    path.write_bytes(
        data
        if isinstance(data, bytes)
        else (data if isinstance(data, str) else json.dumps(data)).encode("utf-8", "surrogatepass")
    )
    for asked in (path, path.parent):
        more = ["--retrain", str(path)] if retrain else ["--auc-retrain", "0.5"]
        done = CliRunner().invoke(cli.main, ["score", str(asked), *more])
        assert done.exception is None or isinstance(done.exception, SystemExit), (
            asked,
            repr(done.exception),
        )
        empty = "no scorable item" in done.output or "no values for the" in done.output
        assert done.exit_code == 2 or (done.exit_code == 0 and empty), (asked, done.output)
        assert "Traceback" not in done.output
        assert " 0.0 [" not in done.output


@pytest.mark.slow
def test_flipped_bytes_of_good_logs_never_end_in_a_traceback(tmp_path: Path) -> None:
    good: list[tuple[str, bytes]] = [
        ("a.jsonl", "\n".join(json.dumps(OWN | {"id": i}) for i in range(5)).encode()),
        (
            "X_EVAL.json",
            json.dumps(
                {
                    "forget_Q_A_Prob": {"agg_value": 0.5, "value_by_index": {"0": {"prob": 0.5}}},
                    "privleak": -3.0,
                }
            ).encode(),
        ),
        ("auc.json", json.dumps({"forget_holdout": {"Min-40%": 0.3, "PPL": 0.2}}).encode()),
        ("t.json", json.dumps(tofu()).encode()),
    ]
    random_ = random.Random(7)
    for trial in range(200):
        name, data = good[trial % len(good)]
        flipped = bytearray(data)
        for _ in range(random_.randint(1, 3)):
            flipped[random_.randrange(len(flipped))] = random_.randrange(256)
        path = tmp_path / name
        path.write_bytes(bytes(flipped))
        done = CliRunner().invoke(cli.main, ["score", str(path)])
        assert done.exit_code in (0, 2), (trial, bytes(flipped), repr(done.exception))
