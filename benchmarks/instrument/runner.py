"""Runs commands of one checkout's source tree as a user would, each in a process of its own,
without starting Python anew.

Started with PYTHONPATH set to the tree that is tried; reads one JSON order a line and answers with
one JSON line. Knows nothing of the rest of this package, whose imports come from another tree.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

PRELOADED = (
    "torch", "remnant.cli", "remnant.verbs", "remnant.stages.measure", "remnant.stages.audit",
    "remnant.stages.transform", "remnant.score",
    "remnant.stages.unlearn", "remnant.report.page", "transformers.models.llama.modeling_llama",
)  # fmt: skip
KILLED = 124


def main() -> None:
    """Answer orders until the input ends."""
    with contextlib.suppress(ImportError):  # older trees import everything
        importlib.import_module("remnant.lean").import_leanly()
    for name in PRELOADED:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        begin = time.monotonic()
        code = _run(json.loads(line))
        answers.write(
            json.dumps({"code": code, "seconds": round(time.monotonic() - begin, 2)}) + "\n"
        )
        answers.flush()


def _run(order: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return _wait(child, order["seconds"])
    code = 1
    try:
        os.setsid()
        sys.stdin = open(os.devnull)  # noqa: SIM115
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(
                os.open(f"{order['log']}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number
            )
        os.chdir(order["folder"])
        code = _command(order["args"]) if "args" in order else _rows(order)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    return code


def _wait(child: int, seconds: float) -> int:
    """The child's exit code; it is killed when its time is over."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return KILLED


def _command(args: list[str]) -> int:
    sys.argv = ["remnant", *args]
    cli = importlib.import_module("remnant.cli")
    try:
        cli.main(args)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _rows(order: dict[str, Any]) -> int:
    """The audit's stage on measurements made by hand: folders by role, and who is who.

    Users' faults as the command line says them.
    """
    records, audit = (
        importlib.import_module("remnant.records"),
        importlib.import_module("remnant.stages.audit"),
    )
    context = importlib.import_module("remnant.context")
    errors = importlib.import_module("remnant.errors")
    out = Path(order["out"])
    out.mkdir(parents=True, exist_ok=True)
    try:
        spec = records.AuditSpec.model_validate(order["spec"])
        audit.run(
            spec,
            {role: Path(place) for role, place in order["inputs"].items()},
            out,
            context.Context(lambda *_: None, context.ModelCache()),
        )
    except errors.UserError as error:
        print(f"remnant: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    main()
