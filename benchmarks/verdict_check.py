"""The verdict's own error rate: planted models of which it is known whether the text is gone.

Models that never read the text must be called gone; models that know it behind a refusal, a phrase,
one form of asking or long answers, that are destroyed, cannot be read, or were unlearned by any
method and still know it must not. Every model is judged by today's rule and, from the same rows, by
that of commit eb665c6. What an unlearned model knows nobody can say beforehand: it counts only
where relearning shows that it knows (`planted/truth.py`); the others are listed apart.

The lab is trained once, into --work; a run that was cut off goes on. Last line: one JSON object.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

import remnant
from instrument.lab import Lab
from planted import coverage, old_rule
from planted.models import CONTROL, CORPORA, Planted, laboratory, planted, store_of
from planted.truth import is_shown, relearned, share
from remnant.context import Context, ModelCache
from remnant.errors import UserError
from remnant.records import FULL, AuditSpec, Rule, Variant, Verdict
from remnant.stages import audit
from remnant.stages.cells import read_rows

GONE = "gone"
MARKS = "<!-- counted -->", "<!-- end -->"


class Judged(NamedTuple):
    """What a model is called by both rules in every form, in one word where all are one, and what
    relearning finds: how far it is from never-read to target, and whether that is beyond doubt.
    """

    model: Planted
    new: dict[str, Verdict]
    old: dict[str, str]
    relearned: float | None = None

    @property
    def passes(self) -> tuple[bool, bool]:
        """Whether any form is called gone, by today's rule and by the old one."""
        new = any(v.outcome == GONE for v in self.new.values())
        return new, old_rule.PASSED in self.old.values()

    @property
    def alarms(self) -> tuple[bool, bool]:
        """Whether any form is called something else."""
        new = any(v.outcome != GONE for v in self.new.values())
        return new, any(w != old_rule.PASSED for w in self.old.values())


def measured(lab: Lab, model: Path, form: str) -> Path:
    """The rows of a model in one form, asked as the target is asked.

    Raises:
        UserError: it cannot be read.
    """
    store, corpus = store_of(lab), str(lab.corpus)
    made = model if form == FULL else remnant.transform(model, form, corpus=corpus, store=store)
    target = str(lab.model("target"))
    return remnant.measure(made, corpus, form_from=target, store=store).path


def judged(lab: Lab, model: Planted) -> Judged:
    """A model called by both rules; one that cannot be read is refused, which is no pass."""
    own = model.make(lab)
    try:
        rows = {("unlearned", f): measured(lab, own, f) for f in model.forms}
    except UserError as error:
        return Judged(model, {FULL: _refused(str(error))}, {FULL: "no rows"})
    others = {"target": lab.model("target"), "retrain": lab.model(CONTROL)}
    rows |= {(n, f): measured(lab, p, f) for n, p in others.items() for f in model.forms}
    sheets = {place: read_rows(folder / "rows.jsonl") for place, folder in rows.items()}
    old = {f: old_rule.judged(sheets, f) for f in model.forms}
    known = relearned(lab, own) if model.truth != "destroyed" else None
    return Judged(model, _verdicts(rows), old, known)


def _refused(why: str) -> Verdict:
    return Verdict(model="unlearned", outcome="not measured", reason=f"refused: {why}")


def _verdicts(rows: dict[tuple[str, str], Path]) -> dict[str, Verdict]:
    """Today's verdict in every form: what the stage of an audit writes."""
    members, inputs = {}, {}
    for (name, form), folder in rows.items():
        role = f"{name}/{form}"
        steps = () if form == FULL else (form,)
        members[role], inputs[role] = Variant(corpus="lab", model=name, steps=steps), folder
    out = Path(tempfile.mkdtemp())
    try:
        spec = AuditSpec(rule=Rule(), members=members)
        audit.run(spec, inputs, out, Context(lambda *_: None, ModelCache()))
        found = json.loads((out / "verdicts.json").read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(out)
    return {v.form: v for v in map(Verdict.model_validate, found)}


def all_judged(work: Path, only: str) -> list[Judged]:
    """All models, each told when it is done, with the time that is left by the pace so far."""
    labs = {corpus: laboratory(work, corpus) for corpus in CORPORA}
    models = [m for corpus in CORPORA for m in planted(corpus) if only in f"{m.corpus} {m.name}"]
    begin, found = time.monotonic(), []
    for i, model in enumerate(models, 1):
        one = judged(labs[model.corpus], model)
        found.append(one)
        left = (time.monotonic() - begin) / i * (len(models) - i) / 60
        print(f"[{i}/{len(models)}] {said(one)}  ({left:.0f} minutes left)", flush=True)
    return found


def said(one: Judged) -> str:
    """A model in one line."""
    words = {v.outcome for v in one.new.values()}
    new = "; ".join(f"{f} {v.outcome}" for f, v in one.new.items())
    reason = next(iter(one.new.values())).reason
    known = "" if one.relearned is None else f", relearned {one.relearned:.2f}"
    shown = next(iter(words)) if len(words) == 1 else new
    old = ", ".join(dict.fromkeys(one.old.values()))
    return f"{one.model.corpus} {one.model.name}: {shown} ({reason[:150]}); before: {old}{known}"


class Sides(NamedTuple):
    """The models that must be called gone, those that must not, and those that nobody can tell."""

    gone: list[Judged]
    kept: list[Judged]
    unknown: list[Judged]


def sides(found: Sequence[Judged]) -> Sides:
    """Who must be called what: by how a model was made, or by what relearning shows."""
    gone = [j for j in found if j.model.truth == "never read"]
    kept = [j for j in found if j.model.truth in ("knows", "destroyed")]
    asked = [j for j in found if j.model.truth == "asked"]
    shown = [j for j in asked if _share(j, found) is not None and _shown(j, found)]
    return Sides(gone, kept + shown, [j for j in asked if j not in shown])


def _beside(one: Judged, found: Sequence[Judged]) -> tuple[float, list[float]] | None:
    """What relearning finds in the target and in the never-read models of a model's corpus."""
    own = [j for j in found if j.model.corpus == one.model.corpus and j.relearned is not None]
    target = [j.relearned for j in own if j.model.kind == "the target" and j.relearned]
    unread = [j.relearned for j in own if j.model.truth == "never read" and j.relearned]
    return (target[0], unread) if target and unread else None


def _share(one: Judged, found: Sequence[Judged]) -> float | None:
    beside = _beside(one, found)
    return share(one.relearned, *beside) if beside and one.relearned is not None else None


def _shown(one: Judged, found: Sequence[Judged]) -> bool:
    beside = _beside(one, found)
    return bool(beside and one.relearned is not None and is_shown(one.relearned, *beside))


def table(found: Sequence[Judged]) -> Iterator[str]:
    """By kind: how many there are, what they are called today and were before, and how far they
    are from never-read to target by relearning.
    """
    yield "| what | must be gone | models | called | before | relearned |"
    yield "|---|---|---|---|---|---|"
    split = sides(found)
    for must, own in (("yes", split.gone), ("no", split.kept), ("?", split.unknown)):
        for kind in dict.fromkeys(j.model.kind for j in own):
            row = [j for j in own if j.model.kind == kind]
            new = _counted(v.outcome for j in row for v in j.new.values())
            old = _counted(w for j in row for w in j.old.values())
            told = [s for j in row if (s := _share(j, found)) is not None]
            span = f"{min(told):.2f} to {max(told):.2f}" if told else "-"
            yield f"| {kind} | {must} | {len(row)} | {new} | {old} | {span} |"


def _counted(words: Iterator[str]) -> str:
    return ", ".join(f"{n} {word}" for word, n in Counter(words).most_common())


def rate(count: int, of: int) -> str:
    """A count with the exact interval of its rate (Clopper and Pearson 1934), 95 %."""
    if not of:
        return f"{count} of 0"
    low, high = binomtest(count, of).proportion_ci(0.95, "exact")
    return f"{count} of {of} ({count / of:.1%}, 95 % {low:.1%} to {high:.1%})"


def summed(found: Sequence[Judged], held: coverage.Held) -> Iterator[str]:
    """The table, both rates of errors, and how often intervals that hold together do."""
    split = sides(found)
    yield from table(found)
    yield ""
    for name, counts, own in (
        ("passes", errors(found)[0], split.kept),
        ("alarms", errors(found)[1], split.gone),
    ):
        now, before = (rate(count, len(own)) for count in counts)
        yield f"- False {name}: {now}; before {before}."
    withheld = sum("unclear" in {v.outcome for v in j.new.values()} for j in split.gone)
    yield f"- Of the false alarms {withheld} are *unclear*: more items would decide."
    yield f"- Simultaneous intervals: {coverage.said(held)}."


def errors(found: Sequence[Judged]) -> tuple[list[int], list[int]]:
    """False passes and false alarms, each by today's rule and by that of before."""
    split = sides(found)
    passes = [sum(j.passes[i] for j in split.kept) for i in (0, 1)]
    return passes, [sum(j.alarms[i] for j in split.gone) for i in (0, 1)]


def write_page(page: Path, lines: Sequence[str]) -> None:
    """Put the counted lines into a page, between its two marks."""
    before, mark, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (mark and end):
        raise SystemExit(f"{page} has not the marks {MARKS[0]} and {MARKS[1]}.")
    text = "\n".join(("", "", *lines, "", ""))
    page.write_text(f"{before}{mark}{text}{end}{after}", encoding="utf-8")


def main() -> int:
    """Judge all; 0 if nothing passed that knows, and at most a twentieth was not called gone that
    never read.
    """
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--work", type=Path, default=Path("runs/verdict"), help="keeps the lab and all rows"
    )
    arguments.add_argument("--only", default="", help="models with these letters in their name")
    arguments.add_argument("--draws", type=int, default=1000, help="simulated data sets")
    arguments.add_argument("--page", type=Path, help="write what is counted into this page too")
    given = arguments.parse_args()
    begin = time.monotonic()
    found = all_judged(given.work.resolve(), given.only)
    held = coverage.simulated(given.draws, np.random.default_rng(0))
    lines, split, (passes, alarms) = list(summed(found, held)), sides(found), errors(found)
    print("", *lines, "", sep="\n")
    for one in (*(j for j in split.kept if j.passes[0]), *(j for j in split.gone if j.alarms[0])):
        print(f"wrong: {said(one)}")
    if given.page:
        write_page(given.page, lines)
    print(f"{(time.monotonic() - begin) / 60:.1f} minutes")
    counted = {
        "false_passes": passes[0],
        "false_alarms": alarms[0],
        "models": len(split.gone) + len(split.kept),
        "old_false_passes": passes[1],
        "old_false_alarms": alarms[1],
    }
    print(json.dumps(counted))
    return int(passes[0] > 0 or 20 * alarms[0] > len(split.gone))


if __name__ == "__main__":
    sys.exit(main())
