"""attack: model + corpus + target -> rows of the tests on its weights (``remnant.attacks``).

The same passages of forget text are read before and behind every change of the weights: which share
of their tokens is the greedy choice. What is learned again is not among them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from remnant.attacks import ATTACKS, PROBE, STEPS, UNCHANGED
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

LEAVES = ("rows.jsonl", "rates.json")
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
# Lessons count as learned where their loss is at most so much of what it was.
LEARNED = 0.5


def run(spec: AttackSpec, inputs: Mapping[str, Path], out: Path, work: Context) -> AttackResult:
    """Make the tests one after the other, the cheap ones first, and write their rows.

    Args:
        spec: which tests.
        inputs: "model", "corpus", "target"; "control", the folder of these tests on a model that
            never read the text, whose learning rates are taken; without it they are chosen here.
        out: receives rows.jsonl and rates.json. What a call that was cut off has read stays in
            read.json, so that the next one goes on.
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
    for name in tests:
        rows += _test(bench, name, rates)
    (out / "rows.jsonl").write_text(
        "".join(row.model_dump_json() + "\n" for row in rows), encoding="utf-8"
    )
    (out / "rates.json").write_text(json.dumps(rates) + "\n", encoding="utf-8")
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
    longest = f"relearn{STEPS[-1]}-forget{PERCENT}{'-lora' if way == 'lora' else ''}"
    chosen = ladder[0]
    for rate in ladder:
        loss = read(bench, longest, rate).loss
        if not math.isfinite(loss):
            break
        chosen = rate
        if loss <= LEARNED * before:
            break
    return chosen


def _test(bench: Bench, name: str, rates: Mapping[str, float]) -> list[Row]:
    """The rows of one test, those of the points of its curve before them."""
    uses = ATTACKS[name].behind
    found = [read(bench, use, rates.get(way_of(use))) for use in uses]
    if len(uses) == 1:
        return _rows(name, bench, found[0])
    rows: list[Row] = []
    for use, point in zip(uses, found, strict=True):
        rows += _rows(use, bench, point)
    return rows + _rows(name, bench, _curve([read(bench, UNCHANGED, None), *found]))


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
