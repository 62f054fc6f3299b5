"""Ask many requests of a backend, each distinct one once, and keep what is answered on the disk, so
that a killed run goes on.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from remnant.durable import tell, write
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
        spool: a file of lines, each a digest and JSON: first the batches, then one line for each
            that is answered. A run that was killed goes on behind the last whole line with the same
            batches, so its answers are the same to the last bit. A line that is not what was
            written, and all behind it, is asked again.
        report: called with (requests answered, requests in all).
    """
    asked = united(requests)
    identity = hashlib.sha256(repr(asked).encode()).hexdigest()
    lines = _whole_lines(spool, identity)
    if not lines:
        lines = [{"batches": backend.plan(asked)}]
    _rewrite(spool, lines, identity)
    batches: list[list[int]] = lines[0]["batches"]
    found: dict[int, Answer] = {}
    with spool.open("ab") as stream:
        for number, batch in enumerate(batches):
            if number + 1 < len(lines):
                kept = [from_json(a) for a in lines[number + 1]["answers"]]
                found |= dict(zip(batch, kept, strict=True))
                # A backend that counts its refusals counts those of the process before too.
                if recall := getattr(backend, "recall", None):
                    recall(kept)
                continue
            answers = backend.answer([asked[i] for i in batch])
            stream.write(_line({"answers": [to_json(a) for a in answers]}, number + 1, identity))
            stream.flush()
            found |= dict(zip(batch, answers, strict=True))
            report(len(found), len(asked))
    return Answers(asked, [found[i] for i in range(len(asked))])


def _line(data: dict[str, Any], place: int, identity: str) -> bytes:
    """One line of a spool.

    The digest is of what is said, of its place, and of what was asked, so that no line stands for
    another.
    """
    said = json.dumps(data).encode()
    return _digest(said, place, identity) + b" " + said + b"\n"


def _digest(said: bytes, place: int, identity: str) -> bytes:
    return hashlib.sha256(f"{identity} {place} ".encode() + said).hexdigest().encode()


def _whole_lines(spool: Path, identity: str) -> list[dict[str, Any]]:
    """The lines of a spool that are as they were written for these requests, up to the first that
    is not.
    """
    if not spool.is_file():
        return []
    lines = []
    *whole, _ = spool.read_bytes().split(b"\n")
    for place, line in enumerate(whole):
        digest, _, said = line.partition(b" ")
        if digest != _digest(said, place, identity):
            tell(
                f"{spool} is damaged from line {place + 1} on, or of other requests; what it "
                "held is asked again."
            )
            break
        lines.append(json.loads(said))
    return lines


def _rewrite(spool: Path, lines: list[dict[str, Any]], identity: str) -> None:
    write(
        spool,
        lambda file: file.writelines(
            _line(line, place, identity) for place, line in enumerate(lines)
        ),
    )
