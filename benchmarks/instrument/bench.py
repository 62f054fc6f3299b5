"""What a plant is tried with: the lab, one source tree, and how an end is read."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from instrument.lab import Lab

RUNNER = Path(__file__).with_name("runner.py")
LIMIT_SECONDS = 120.0
STAYED = "gone"
# How far a number may stand from the right one, in points, and still be called right: far less than
# any plant moves it.
NEAR = 3.0
LOW_IS_FORGOTTEN = ("verbmem", "knowmem_forget")


class Done(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    stdout: str
    stderr: str

    @property
    def refused(self) -> bool:
        """One sentence of the product's own and exit code 2."""
        return self.code == 2 and "Traceback" not in self.stderr

    @property
    def broken(self) -> str:
        """What is wrong with the way it ended: a traceback, a kill; empty if nothing is."""
        if "Traceback (most recent call last)" in self.stdout + self.stderr:
            return f"traceback: {self.stderr.strip().splitlines()[-1][:120]}"
        return (
            "no end"
            if self.code == 124
            else f"killed by signal {-self.code}"
            if self.code < 0
            else ""
        )

    @property
    def sentence(self) -> str:
        """What it says of its refusal."""
        lines = [
            line
            for line in self.stderr.splitlines()
            if line.startswith(("remnant:", "Error:", "Usage:"))
        ]
        return (lines or self.stderr.strip().splitlines() or ["no word"])[-1].removeprefix(
            "remnant: "
        )


class Outcome(NamedTuple):
    """``said``: the verdicts, numbers or refusal. ``forgotten``: it reads as forgotten.

    ``fault``: what else is wrong; empty if nothing.
    """

    said: str
    forgotten: bool
    fault: str = ""

    @property
    def passed(self) -> bool:
        """Whether it ended as it must."""
        return not self.forgotten and not self.fault


class Plant(NamedTuple):
    """One row: its name, the kind of trouble, how it is made, what is done with it, and whether it
    belongs to the quick ones.
    """

    name: str
    kind: str
    how: str
    act: "Callable[[Bench], Outcome]"
    quick: bool = False


@dataclass
class Bench:
    """The lab under one source tree; everything is made below ``work``, which is emptied first."""

    lab: Lab
    source: Path
    work: Path
    _kept: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Start the tree's process."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        own = {
            "PYTHONPATH": str(self.source),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "NO_COLOR": "1",
        }
        self._runner = subprocess.Popen(
            [sys.executable, str(RUNNER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | own,
        )
        self._count = 0

    def close(self) -> None:
        """End the tree's process."""
        assert self._runner.stdin
        self._runner.stdin.close()
        self._runner.wait()

    def folder(self) -> Path:
        """A new empty folder."""
        self._count += 1
        found = self.work / f"{self._count:03}"
        found.mkdir()
        return found

    def command(self, *args: object, seconds: float = LIMIT_SECONDS) -> Done:
        """A command of the product in a process of its own."""
        return self._ask({"args": [str(a) for a in args]}, seconds)

    def audit_rows(self, spec: Mapping[str, Any], inputs: Mapping[str, Path], out: Path) -> Done:
        """The audit's stage on measurements made by hand."""
        return self._ask(
            {"spec": spec, "inputs": {r: str(p) for r, p in inputs.items()}, "out": str(out)},
            LIMIT_SECONDS,
        )

    def _ask(self, order: dict[str, Any], seconds: float) -> Done:
        place = self.folder()
        line = json.dumps(
            order | {"log": str(place / "log"), "folder": str(place), "seconds": seconds}
        )
        assert self._runner.stdin
        assert self._runner.stdout
        self._runner.stdin.write(line + "\n")
        self._runner.stdin.flush()
        answer = self._runner.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"the process of {self.source} ended; does this tree have the modules that "
                "runner.py names?"
            )
        texts = [
            Path(f"{place}/log.{n}").read_text(encoding="utf-8", errors="replace")
            for n in ("stdout", "stderr")
        ]
        return Done(json.loads(answer)["code"], *texts)

    @property
    def store(self) -> Path:
        """The store that the commands share."""
        return self.work / "store"

    def right(self, corpus: Path | None = None, model: Path | None = None) -> dict[str, float]:
        """The numbers of the untouched target (or another model that is as it should be) by the
        same tree.
        """
        key = f"right {corpus} {model}"
        if key not in self._kept:
            self._kept[key] = cells(self.measure(model or self.lab.model("target"), corpus).stdout)
        return {
            metric: number for metric, (number, _) in self._kept[key].items() if number is not None
        }

    def measure(
        self,
        model: object,
        corpus: Path | None = None,
        *more: object,
        seconds: float = LIMIT_SECONDS,
    ) -> Done:
        """``remnant measure``."""
        return self.command(
            "measure",
            model,
            "--data",
            corpus or self.lab.corpus,
            "--store",
            self.store,
            *more,
            seconds=seconds,
        )

    def measured(
        self,
        model: object,
        corpus: Path | None = None,
        *more: object,
        right: Mapping[str, float] | None = None,
    ) -> Outcome:
        """Measure a model that knows: right numbers, none, or a refusal pass."""
        done = self.measure(model, corpus, *more)
        return read_measure(done, right or self.right())

    def judged(
        self,
        unlearned: object,
        *,
        target: Path | None = None,
        retrain: object | None = "",
        forms: Sequence[str] = ("int4",),
        corpus: Path | None = None,
        store: Path | None = None,
        only: str = "",
        settings: Sequence[str] = (),
    ) -> Outcome:
        """Audit a model; ``retrain`` None: without one.

        ``only``: look at the verdict under this form alone.
        """
        out = self.folder() / "audit"
        control = self.lab.model("retrain-1") if retrain == "" else retrain
        args: list[object] = [
            "audit",
            target or self.lab.model("target"),
            unlearned,
            "--data",
            corpus or self.lab.corpus,
            "--out",
            out,
        ]
        args += ["--store", store or self.store]
        args += ["--retrain", control] if control else []
        args += [a for form in forms for a in ("-q", form)] + [
            a for s in settings for a in ("--set", s)
        ]
        return read_audit(self.command(*args), out / "summary.json", only)


def read_audit(done: Done, summary: Path, only: str = "") -> Outcome:
    """What a audit says: "gone" anywhere, or exit code 0, reads as forgotten."""
    if done.broken:
        return Outcome(done.broken, False, done.broken)
    if not summary.is_file():
        return Outcome(
            f"refused: {done.sentence}",
            done.code == 0,
            "" if done.refused else f"exit code {done.code} without a verdict",
        )
    return read_verdicts(
        json.loads(summary.read_text(encoding="utf-8"))["verdicts"], done.code, only
    )


def read_verdicts(
    verdicts: Sequence[Mapping[str, Any]], code: int | None, only: str = ""
) -> Outcome:
    """The words of some verdicts, with the reason where all are one."""
    forms = ["+".join(v["steps"]) or "full" for v in verdicts]
    words = {form: v["outcome"] for form, v in zip(forms, verdicts, strict=True)}
    said = (
        "; ".join(f"{form} {word}" for form, word in words.items())
        if len(set(words.values())) > 1
        else next(iter(words.values()), "none")
    )
    reasons = [
        v["reason"] for form, v in zip(forms, verdicts, strict=True) if not only or form == only
    ]
    stayed = STAYED in ([words.get(only)] if only else words.values())
    return Outcome(
        f"{said} ({reasons[-1][:140]})" if reasons else said,
        stayed or (code == 0 and not only),
        "" if words else "no verdict",
    )


def cells(printed: str) -> dict[str, tuple[float | None, str]]:
    """The table that ``measure`` and ``score`` print: metric -> (number or None, status)."""
    found: dict[str, tuple[float | None, str]] = {}
    for line in printed.splitlines():
        parts = [p.strip() for p in re.split("[│┃|]", line)]
        if len(parts) == 6 and re.fullmatch(r"\w+", parts[1]):
            number = re.match(r"-?\d+(\.\d+)?", parts[2])
            found[parts[1]] = (float(number[0]) if number else None, parts[4])
    return found


def read_measure(done: Done, right: Mapping[str, float]) -> Outcome:
    """Whether a measurement of a model that knows shows a number on the forgotten side of the right
    one.
    """
    if done.broken:
        return Outcome(done.broken, False, done.broken)
    if done.code:
        return Outcome(
            f"refused: {done.sentence}", False, "" if done.refused else f"exit code {done.code}"
        )
    shown = cells(done.stdout)
    asked = [m for m in (*LOW_IS_FORGOTTEN, "auc") if m in right]
    said, low = [], False
    for metric in asked:
        number, status = shown.get(metric, (None, "absent"))
        if number is None:
            why = status if status.startswith("not measured") else f"no number ({status})"
            said.append(f"{metric} {why}")
            continue
        short = right[metric] - number if metric in LOW_IS_FORGOTTEN else number - right[metric]
        low = low or short > NEAR
        wrong = "" if abs(short) <= NEAR else f", right is {right[metric]:g}"
        remark = "" if status == "ok" else f" ({status})"
        said.append(f"{metric} {number:g}{wrong}{remark}")
    return Outcome("; ".join(said) or "no numbers", low, "" if asked else "nothing to compare with")
