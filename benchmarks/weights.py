"""What the tests on weights say of the planted models, and what they cost: models that never read
the text, which none may tell apart, and models that hide it, each of which one must find.

Every model is audited beside the target and one never-read model of its corpus. The labs are those
of `make verdict-check`, kept in --work; a run that was cut off goes on. Last line: one JSON object
with the false alarms, the hiding models that were found, and the seconds of one audit of three
models that were not made before.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import remnant
from instrument.lab import Lab
from planted.models import CONTROL, CORPORA, Planted, laboratory, planted, store_of
from remnant.attacks import ATTACKS
from remnant.records import FULL, Evidence

KINDS = ("never read", "refuses first", "a phrase first", "ends at once", "silent in one form")


class Told(NamedTuple):
    """What is said of a model: by each test on weights, and by all tests together."""

    model: Planted
    evidence: dict[str, Evidence]
    outcome: str
    seconds: float

    @property
    def telling(self) -> list[str]:
        """The tests on weights that tell."""
        return [name for name, found in self.evidence.items() if found.says == "tells"]


def told(lab: Lab, model: Planted) -> Told:
    """A model audited beside target and control, in full precision."""
    begin = time.monotonic()
    found = remnant.audit(
        str(lab.model("target")),
        str(model.make(lab)),
        str(lab.corpus),
        retrain=str(lab.model(CONTROL)),
        forms=(),
        store=store_of(lab),
        access="weights",
    )
    by_test = {e.test: e for e in found.evidence if e.test in ATTACKS and e.form == FULL}
    (verdict,) = found.verdicts
    return Told(model, by_test, verdict.outcome, time.monotonic() - begin)


def table(found: Sequence[Told]) -> Iterator[str]:
    """By test: where models that never read the text and models that hide it stand."""
    unread, hiding = sides(found)
    yield "| test | never read | tells or is open | hiding | found |"
    yield "|---|---|---|---|---|"
    for test in ATTACKS:
        loud = sum(t.evidence[test].says in ("tells", "undecided") for t in unread)
        own = sum(test in t.telling for t in hiding)
        yield (
            f"| {test} | {span(unread, test)} | {loud} of {len(unread)} | {span(hiding, test)} | "
            f"{own} of {len(hiding)} |"
        )


def span(found: Sequence[Told], test: str) -> str:
    """The least and the most of the way to the target, where there is power; of no model "-"."""
    if not found:
        return "-"
    ways = [t.evidence[test].left for t in found]
    values = [left[0] for left in ways if left]
    return f"{min(values):.2f} to {max(values):.2f}" if values else "no power"


def sides(found: Sequence[Told]) -> tuple[list[Told], list[Told]]:
    """Those that never read the text, and those that hide it."""
    unread = [t for t in found if t.model.truth == "never read"]
    return unread, [t for t in found if t not in unread]


def main() -> None:
    """Audit all, tell each when it is done, then the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--work", type=Path, default=Path("runs/verdict"), help="keeps the labs")
    arguments.add_argument("--only", default="", help="models with these letters in their name")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    labs = {corpus: laboratory(given.work.resolve(), corpus) for corpus in CORPORA}
    every = [m for corpus in CORPORA for m in planted(corpus) if m.kind in KINDS]
    models = [m for m in every if given.only in f"{m.corpus} {m.name}"]
    found: list[Told] = []
    begin = time.monotonic()
    for i, model in enumerate(models, 1):
        one = told(labs[model.corpus], model)
        found.append(one)
        left = (time.monotonic() - begin) / i * (len(models) - i) / 60
        print(
            f"[{i}/{len(models)}] {model.corpus} {model.name}: {one.outcome}; tells: "
            f"{', '.join(one.telling) or 'nothing'} ({one.seconds:.0f} s, {left:.0f} minutes left)",
            flush=True,
        )
    print("", *table(found), "", sep="\n")
    unread, hiding = sides(found)
    counted = {
        "false_alarms": sum(t.outcome != "gone" for t in unread),
        "never_read": len(unread),
        "found": sum(bool(t.telling) for t in hiding),
        "hiding": len(hiding),
        "seconds": round(max(t.seconds for t in found)),
    }
    print(json.dumps(counted))


if __name__ == "__main__":
    main()
