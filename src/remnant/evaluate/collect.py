"""Ask many requests of a backend, each distinct one once, and keep what is answered on the disk, so that a killed run goes on."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from remnant.evaluate.requests import Answer, Backend, Reading, Request, from_json, to_json, united

Report = Callable[[int, int], None]


class Answers:
    """What was answered, looked up by what was asked."""

    def __init__(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        self._found = {_place(r): a for r, a in zip(requests, answers, strict=True)}

    def __getitem__(self, request: Request) -> Answer:
        return self._found[_place(request)]


def _place(request: Request) -> Request:
    """A reading is found whatever its columns are."""
    return request._replace(columns=()) if isinstance(request, Reading) else request


def collect(requests: Sequence[Request], backend: Backend, spool: Path, report: Report) -> Answers:
    """Answers to all requests.

    Args:
        requests: in any order, with repetitions.
        backend: who answers.
        spool: a file of JSON lines: first the batches, then one line for each that is answered. A run that was killed goes on behind the
            last whole line with the same batches, so its answers are the same to the last bit.
        report: called with (requests answered, requests in all).
    """
    asked = united(requests)
    identity = hashlib.sha256(repr(asked).encode()).hexdigest()
    lines = _whole_lines(spool)
    if not lines or lines[0].get("asked") != identity:
        lines = [{"asked": identity, "batches": backend.plan(asked)}]
        _rewrite(spool, lines)
    batches: list[list[int]] = lines[0]["batches"]
    found: dict[int, Answer] = {}
    with spool.open("a", encoding="utf-8") as stream:
        for number, batch in enumerate(batches):
            if number + 1 < len(lines):
                kept = [from_json(a) for a in lines[number + 1]["answers"]]
                found |= dict(zip(batch, kept, strict=True))
                # A backend that counts its refusals counts those of the process before too.
                if recall := getattr(backend, "recall", None):
                    recall(kept)
                continue
            answers = backend.answer([asked[i] for i in batch])
            stream.write(json.dumps({"answers": [to_json(a) for a in answers]}) + "\n")
            stream.flush()
            found |= dict(zip(batch, answers, strict=True))
            report(len(found), len(asked))
    return Answers(asked, [found[i] for i in range(len(asked))])


def _whole_lines(spool: Path) -> list[dict[str, Any]]:
    """The complete lines of a spool; what a kill left half-written behind them is cut off."""
    if not spool.is_file():
        return []
    whole = spool.read_bytes().rpartition(b"\n")[0]
    lines = [json.loads(line) for line in whole.split(b"\n") if line]
    _rewrite(spool, lines)
    return lines


def _rewrite(spool: Path, lines: list[dict[str, Any]]) -> None:
    scratch = spool.with_suffix(".tmp")
    scratch.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    scratch.replace(spool)
