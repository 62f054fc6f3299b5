"""A server that speaks OpenAI's completions: retries, refusals, and an audit of a GGUF file behind a real llama.cpp server."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from remnant import cli
from remnant.errors import UserError
from remnant.evaluate import endpoint
from remnant.evaluate.endpoint import Endpoint
from remnant.evaluate.local import Local
from remnant.evaluate.requests import Reading, Refused, Slope, Writing
from remnant.functional.tokens import Tokens
from remnant.lab.corpus import generate
from remnant.model.data import privleak_texts
from remnant.model.load import open_model, open_tokenizer
from remnant.records import EndpointSpec

Reply = tuple[int, Any, dict[str, str]]


class Served:
    """A server on loopback that answers as it is told and remembers what it was asked."""

    def __init__(self, reply: Callable[[int, dict[str, Any]], Reply]) -> None:
        served = self
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.open = self.most = 0
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    served.asked.append(body)
                    served.keys.append(self.headers.get("Authorization"))
                    served.open += 1
                    served.most = max(served.most, served.open)
                    status, said, headers = reply(len(served.asked), body)
                time.sleep(0.02)
                with lock:
                    served.open -= 1
                data = json.dumps(said).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *anything: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def said(text: str, **more: Any) -> Reply:
    return 200, {"choices": [{"text": text, **more}]}, {}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[int, dict[str, Any]], Reply]], Served]]:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    made: list[Served] = []

    def start(reply: Callable[[int, dict[str, Any]], Reply]) -> Served:
        made.append(Served(reply))
        return made[-1]

    yield start
    for served in made:
        served.server.shutdown()
        served.server.server_close()


Serve = Callable[[Callable[[int, dict[str, Any]], Reply]], Served]


def test_requests_are_sent_as_the_protocol_says_and_a_few_at_a_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(endpoint.KEY, "secret")
    served = serve(lambda n, body: said(f"after {body['prompt']}"))
    backend = Endpoint(EndpointSpec(url=served.url + "/", model="m", concurrency=2))
    assert backend.offers == {"writing"}
    asked = [Writing(f"p{i}", 7, "c ", ("\n",), seed=3) for i in range(6)]
    assert backend.answer(asked) == [f"after c p{i}" for i in range(6)]
    assert served.most == 2
    assert served.asked[-1] | {"prompt": ""} == {
        "model": "m", "prompt": "", "max_tokens": 7, "temperature": 0.0, "seed": 3, "stop": ["\n"],
    }  # fmt: skip
    assert set(served.keys) == {"Bearer secret"}
    assert backend.answer([Slope("x")]) == [Refused("a server gives no gradients")]
    assert [i for batch in backend.plan([Writing("x", 1)] * 19) for i in batch] == list(range(19))


def test_a_busy_server_is_asked_again(serve: Serve) -> None:
    busy: list[Reply] = [(429, {}, {"Retry-After": "0"}), (503, {"error": "loading"}, {}), said("ok"), said("ok"), said("ok")]
    served = serve(lambda n, body: busy[min(n, len(busy)) - 1])
    assert Endpoint(EndpointSpec(url=served.url)).answer([Writing("p", 1)]) == ["ok"]


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        ((401, {"error": {"message": "no such key"}}, {}), "answered 401: no such key. Set REMNANT_API_KEY"),
        ((404, {"error": "model not found"}, {}), "answered 404: model not found. Check the address"),
        ((503, {"error": "loading"}, {}), "answered 503: loading. Try again later"),
        ((200, {"content": "x"}, {}), "does not answer as OpenAI's completions do"),
    ],
)
def test_a_refusal_is_one_sentence(serve: Serve, reply: Reply, sentence: str, corpus: Path, tmp_path: Path) -> None:
    served = serve(lambda n, body: reply)
    command = ["measure", served.url, "--data", str(corpus), "--store", str(tmp_path / "s"), "--set", "endpoint.attempts=2"]
    done = CliRunner().invoke(cli.main, command)
    assert done.exit_code == 2
    assert sentence in done.output
    assert "Traceback" not in done.output


def test_nobody_there_is_one_sentence() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=r"cannot be reached \(ConnectError\)"):
        Endpoint(EndpointSpec(url=f"http://127.0.0.1:{port}/v1", attempts=1))


def test_log_probabilities_are_taken_where_a_server_echoes(serve: Serve) -> None:
    def reply(n: int, body: dict[str, Any]) -> Reply:
        if not body.get("echo"):
            return said("x")
        words = body["prompt"].split(" ")
        starts = [len(" ".join(words[:i])) for i in range(len(words))]
        logps = [None, *(-float(i) for i in range(1, len(words)))]
        return said("x", logprobs={"token_logprobs": [*logps, -99.0], "text_offset": [*starts, len(body["prompt"])]})

    backend = Endpoint(EndpointSpec(url=serve(reply).url))
    assert backend.offers == {"writing", "logp"}
    whole, behind = backend.answer([Reading("a b c"), Reading(" d e", "a b c")])
    assert whole.logp.tolist() == [-1.0, -2.0]  # type: ignore[union-attr]
    assert behind.logp.tolist() == [-3.0, -4.0]  # type: ignore[union-attr]


def test_what_a_server_does_not_say_is_absent_and_an_answered_audit_is_kept(serve: Serve, corpus: Path, tmp_path: Path) -> None:
    served = serve(lambda n, body: said("nothing"))
    command = ["measure", served.url, "--data", str(corpus), "--store", str(tmp_path / "s"), "-m", "muse", "-m", "exact_memorization"]
    done = CliRunner().invoke(cli.main, command)
    assert done.exit_code == 0, done.output
    assert "Absent: privleak, because the server does not say this of a text: logp." in done.output
    assert "Absent: exact_memorization" in done.output
    count = len(served.asked)
    again = CliRunner().invoke(cli.main, command)
    assert "Asked at 20" in again.output
    assert len(served.asked) == count
    anew = CliRunner().invoke(cli.main, [*command, "--set", "endpoint.again=1"])
    assert anew.exit_code == 0, anew.output
    assert len(served.asked) > count


def gpt2_like(texts: list[str], folder: Path) -> None:
    """A byte-level tokenizer with GPT-2's cuts, which llama.cpp knows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>").save_pretrained(folder)


@pytest.mark.slow
def test_a_gguf_file_behind_llamacpps_server_measures_as_its_dense_copy(tmp_path: Path) -> None:
    """Train, write Q8_0, serve it, audit it by text alone; VerMem and KnowMem equal those of the same weights in transformers."""
    pytest.importorskip("llama_cpp", reason="the extra 'llamacpp' is not installed (make setup-all)")
    pytest.importorskip("uvicorn", reason="the extra 'llamacpp' is not installed (make setup-all)")
    documents = generate("news", forget=6, retain1=6, retain2=2, holdout=6, seed=0)
    gpt2_like([d.text for split in documents for d in split], tmp_path / "tokenizer")
    store = ["--store", str(tmp_path / "store")]

    def call(*command: str) -> str:
        done = CliRunner().invoke(cli.main, [*command, *store])
        assert done.exit_code == 0, done.output
        return done.output

    def newest(stage: str) -> str:
        return max((tmp_path / "store/objects").glob(f"{stage}-*"), key=lambda p: p.stat().st_mtime).name

    call(
        "prepare", "--lab", "news", "--tokenizer", str(tmp_path / "tokenizer"), "--prompt-tokens", "48", "--answer-tokens", "24",
        "--max-items", "12", "--set", "forget_docs=6", "--set", "retain_docs=8", "--set", "holdout_docs=6",
    )  # fmt: skip
    corpus = newest("prepare")
    call("train", corpus, "--set", "hidden=256", "--set", "layers=2", "--set", "steps=80", "--set", "context=1024")
    model = newest("train")
    call("deploy", model, "--as", "gguf:Q8_0", "-o", str(tmp_path / "out"))
    call("measure", newest("perturb"), "--data", corpus)
    dense = (tmp_path / "store/objects" / newest("measure") / "rows.jsonl").read_text()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = subprocess.Popen(
        [sys.executable, "-m", "llama_cpp.server", "--model", str(tmp_path / "out/model-Q8_0.gguf"), "--port", str(port),
         "--n_ctx", "1024", "--logits_all", "true", "--verbose", "false"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}/v1"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{url}/models", timeout=2)
                break
            except httpx.TransportError:
                assert served.poll() is None
                time.sleep(0.2)
        call("measure", url, "--data", corpus, "--set", "endpoint.concurrency=1")
        texts = [Reading(text) for text in privleak_texts(tmp_path / "store/objects" / corpus, "forget")[:3]]
        read_there = Endpoint(EndpointSpec(url=url)).answer(texts)
    finally:
        served.terminate()
        served.wait(20)
    box = (tmp_path / "store/objects" / newest("measure") / "rows.jsonl").read_text()

    def values(text: str) -> dict[tuple[str, str, str], float]:
        rows = [json.loads(line) for line in text.splitlines()]
        return {(r["metric"], r["split"], r["id"]): r["value"] for r in rows}

    ours, theirs = values(dense), values(box)
    assert set(ours) == set(theirs)
    for metric in ("verbmem", "knowmem_forget", "knowmem_retain"):
        mine, other = ([v for k, v in of.items() if k[0] == metric] for of in (ours, theirs))
        print(metric, sum(mine) / len(mine), sum(other) / len(other), sum(a == b for a, b in zip(mine, other, strict=True)), len(mine))
        assert sum(mine) / len(mine) == pytest.approx(sum(other) / len(other), abs=0.03)
    copy = str(tmp_path / "store/objects" / newest("perturb"))
    read_here = Local(open_model(copy), open_tokenizer(copy)).answer(texts)
    for here, there in zip(read_here, read_there, strict=True):
        assert isinstance(here, Tokens)
        assert isinstance(there, Tokens)
        # This server says nothing of the first token behind the start token; its kernels round activations to 8 bits.
        assert there.logp.mean() == pytest.approx(here.logp[1:].mean(), abs=0.02)
        assert abs(there.logp - here.logp[1:]).max() < 0.5
    assert sum(v for k, v in ours.items() if k[0] == "verbmem") > 0
