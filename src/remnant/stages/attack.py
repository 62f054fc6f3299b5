"""attack: model + corpus + target -> rows of the tests on its weights (``remnant.attacks``).

The same passages of forget text are read before and behind every change of the weights: which share
of their tokens is the greedy choice. What is learned again is not among them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from remnant.attacks import ATTACKS, PROBE, SOFT_PROMPT, STEPS, UNCHANGED
from remnant.context import Context, ModelCache
from remnant.corpus.base import Item, half_of
from remnant.corpus.prepared import raw_texts
from remnant.durable import tell
from remnant.functional.curves import height
from remnant.model.data import chunks
from remnant.model.load import open_tokenizer
from remnant.records import AttackResult, AttackSpec, Row
from remnant.stages.bench import FOLDS, Bench, Read, read, way_of
from remnant.training.relearning import texts_of

LEAVES = ("rows.jsonl", "rates.json", "learned.json")
GOES_ON_FROM = ("read.json",)
# A passage is long enough to be known by heart, and many of them make narrow intervals.
PASSAGE_TOKENS, MOST_PASSAGES = 256, 128
# What is learned again, as in the names of the tests.
PERCENT = 10
# Learning rates of each way, the published one first (arXiv 2502.05374, 2409.18025). It is for
# models of billions of weights; small ones hardly move by it, and a test that does nothing would be
# silent about anything.
RATES: Mapping[str, tuple[float, ...]] = {
    "full": (1e-5, 1e-4, 1e-3),
    "lora": (2e-4, 2e-3, 2e-2),
}
# Lessons count as learned where their loss is at most so much of what it was; by another model
# where it fell by at least so much of what it fell by on the control, or is as low as there.
LEARNED, AS_MUCH = 0.5, 0.5


class Lessons(NamedTuple):
    """The loss of what a test teaches, nats per token, before and after."""

    before: float
    after: float


def run(spec: AttackSpec, inputs: Mapping[str, Path], out: Path, work: Context) -> AttackResult:
    """Make the tests one after the other, the cheap ones first, and write their rows.

    Args:
        spec: which tests.
        inputs: "model", "corpus", "target"; "control", the folder of these tests on a model that
            never read the text, whose learning rates are taken; without it they are chosen here.
        out: receives rows.jsonl, rates.json and learned.json. What a call that was cut off has
            read stays in read.json, so that the next one goes on.
        work: is told how much of the work is done, in texts.

    Raises:
        UserError: the model cannot be opened, or a transform refuses it.
    """
    corpus = inputs["corpus"]
    tokenizer = open_tokenizer(str(inputs["model"]))
    lessons = texts_of(corpus, "forget", PERCENT, spec.seed)
    items = passages(tokenizer, raw_texts(corpus, "forget"), set(lessons))
    unread, absent = _unread(corpus, tokenizer), {}
    if min(len(items), len(unread)) < FOLDS:
        absent[PROBE] = f"{FOLDS} passages of forget and of holdout text are needed"
    tests = [name for name in spec.tests if name not in absent]
    total = len(items) + sum(ATTACKS[name].passes(len(items)) for name in tests)
    told = 0
    if "control" not in inputs:
        tell(
            f"the {len(tests)} tests on weights take as long, in each model, as reading "
            f"{total:,} texts; all is kept, and a call that is cut off goes on"
        )

    def done(passes: int, note: str) -> None:
        nonlocal told
        told += passes
        work.progress(min(told, total), total, note)

    spool = out / GOES_ON_FROM[0]
    bench = Bench(inputs, tokenizer, items, unread, lessons, work.place, ModelCache(), spool, done)
    rates = _rates(bench, tests)
    rows = _rows(UNCHANGED, bench, read(bench, UNCHANGED, None))
    wanted = _learned_by_control(inputs)
    taught: dict[str, Lessons] = {}
    for name in tests:
        own = _teaching(name)
        if own and own not in taught:
            taught[own] = _lessons(bench, own, rates)
        fault = untaught(taught[own], wanted[own]) if own in wanted else ""
        rows += _test(bench, name, rates, fault)
    (out / "rows.jsonl").write_text(
        "".join(row.model_dump_json() + "\n" for row in rows), encoding="utf-8"
    )
    for name, told_of in (("rates", rates), ("learned", taught)):
        (out / f"{name}.json").write_text(json.dumps(told_of) + "\n", encoding="utf-8")
    if not work.known:  # nobody will seal the folder and leave it out
        bench.spool.unlink(missing_ok=True)
    return AttackResult(
        items=len(items), lessons=len(lessons), passes=total, rates=rates, absent=absent
    )


def _unread(corpus: Path, tokenizer: PreTrainedTokenizerBase) -> list[Item]:
    """Passages of text that was never read, none where the corpus has none."""
    there = (corpus / "raw" / "holdout.json").is_file()
    texts = raw_texts(corpus, "holdout") if there else []
    return passages(tokenizer, texts, set(), "holdout")


def passages(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    taken: set[str],
    side: str = "forget",
) -> list[Item]:
    """Pieces of the texts that are not taken, evenly spread where there are too many."""
    found: list[tuple[str, str]] = []
    for i, text in enumerate(texts):
        if text not in taken:
            pieces = chunks(tokenizer, text, PASSAGE_TOKENS)
            found += [(f"{i}-{j}", piece) for j, piece in enumerate(pieces)]
    count = min(len(found), MOST_PASSAGES)
    chosen = [found[i * len(found) // count] for i in range(count)]
    return [Item(f"{side}-{name}", half_of(i), "", text) for i, (name, text) in enumerate(chosen)]


def _rates(bench: Bench, tests: Sequence[str]) -> dict[str, float]:
    """The learning rate of each way: the control's, or on the control itself the least with which
    the lessons are learned in the longest run; the last one where none is enough.
    """
    if "control" in bench.inputs:
        text = (bench.inputs["control"] / "rates.json").read_text(encoding="utf-8")
        return {str(way): float(rate) for way, rate in json.loads(text).items()}
    asked = {way_of(use) for name in tests for use in ATTACKS[name].behind}
    return {way: _rate(bench, way, RATES[way]) for way in RATES if way in asked}


def _rate(bench: Bench, way: str, ladder: Sequence[float]) -> float:
    before = read(bench, UNCHANGED, None).loss
    chosen = ladder[0]
    for rate in ladder:
        loss = read(bench, _longest(way), rate).loss
        if not math.isfinite(loss):
            break
        chosen = rate
        if loss <= LEARNED * before:
            break
    return chosen


def _longest(way: str) -> str:
    """The run of a way that learns forget text for the most steps."""
    return f"relearn{STEPS[-1]}-forget{PERCENT}{'-lora' if way == 'lora' else ''}"


def _teaching(name: str) -> str:
    """What a test trains: a way of relearning, or a soft prompt; empty where nothing."""
    return name if name == SOFT_PROMPT else way_of(ATTACKS[name].behind[-1])


def _lessons(bench: Bench, own: str, rates: Mapping[str, float]) -> Lessons:
    """What a way of relearning teaches, by its longest run, or a soft prompt."""
    if own == SOFT_PROMPT:
        found = read(bench, SOFT_PROMPT, None)
        return Lessons(found.before, found.loss)
    return Lessons(
        read(bench, UNCHANGED, None).loss, read(bench, _longest(own), rates.get(own)).loss
    )


def _learned_by_control(inputs: Mapping[str, Path]) -> dict[str, Lessons]:
    """What the control learned; nothing where this is the control."""
    if "control" not in inputs:
        return {}
    text = (inputs["control"] / "learned.json").read_text(encoding="utf-8")
    return {own: Lessons(*losses) for own, losses in json.loads(text).items()}


def untaught(own: Lessons, control: Lessons) -> str:
    """Why a test that trains a model says nothing of it; empty where it learned its lessons.

    Weights may be of such sizes that the control's rate moves them by nothing, or that it tears
    them apart: what was not even learned cannot have brought anything else back.

    >>> control = Lessons(4.0, 2.0)
    >>> untaught(Lessons(4.0, 2.5), control), untaught(Lessons(0.1, 0.1), control)
    ('', '')
    >>> untaught(Lessons(4.0, 3.9), control).partition(" (of")[0]
    'its own lessons were not learned: loss 4.00, then 3.90'
    """
    fell = own.before - own.after >= AS_MUCH * (control.before - control.after)
    if fell or own.after <= control.after:
        return ""
    return (
        f"its own lessons were not learned: loss {own.before:.2f}, then {own.after:.2f} "
        f"(of a never-read model {control.before:.2f}, then {control.after:.2f})"
    )


def _test(bench: Bench, name: str, rates: Mapping[str, float], fault: str) -> list[Row]:
    """The rows of one test, those of the points of its curve before them; with a fault the test
    itself has no numbers.
    """
    uses = ATTACKS[name].behind
    found = [read(bench, use, rates.get(way_of(use))) for use in uses]
    rows: list[Row] = []
    for use, point in zip(uses, found, strict=True):
        rows += _rows(use, bench, point) if use != name else []
    whole = _curve([read(bench, UNCHANGED, None), *found]) if len(uses) > 1 else found[0]
    if fault and not whole.why:
        whole = Read(dict.fromkeys(whole.values), why=fault)
    return rows + _rows(name, bench, whole)


def _curve(points: Sequence[Read]) -> Read:
    """The mean height of the curve of every passage that has all points."""
    table = np.array([list(point.values.values()) for point in points], dtype=np.float64)
    heights = height((0, *STEPS), table)
    found = zip(points[0].values, heights.tolist(), strict=True)
    values = {item: None if math.isnan(high) else high for item, high in found}
    return Read(values, math.nan, next((point.why for point in points if point.why), ""))


def _rows(name: str, bench: Bench, found: Read) -> list[Row]:
    """A row for every passage that a test is about."""
    lost = found.why or "fewer than two tokens"
    about = [item for item in (*bench.items, *bench.unread) if item.id in found.values]
    values = [found.values[item.id] for item in about]
    return [
        Row(metric=name, id=i.id, half=i.half, value=v, status="ok" if v is not None else lost)
        for i, v in zip(about, values, strict=True)
    ]
