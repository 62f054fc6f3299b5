"""measure: model + corpus -> one row per item and metric; texts apart from rows."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.functional.text import STOPS, cut_answer, signs_of_collapse, words
from remnant.functional.view import View
from remnant.methods import metric
from remnant.model.data import (
    Item,
    collate,
    half_of,
    knowmem_items,
    knowmem_prefix,
    privleak_texts,
    raw_texts,
    settings,
    verbmem_items,
)
from remnant.model.generate import continuations, greedy_pick, sampler
from remnant.model.load import context_length, device, open_model, open_tokenizer
from remnant.records import MeasureSpec, MetricSpec, Row

KNOWMEM_TOKENS = 32
PAPER_TEMPERATURE = 0.9

Report = Callable[[int, int, str], None]


class Bench(NamedTuple):
    """Everything that a measurement needs."""

    spec: MeasureSpec
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    corpus: Path
    card: Mapping[str, Any]


class Answer(NamedTuple):
    """An item with what the model wrote."""

    item: Item
    truth: str
    generated: str


def run(spec: MeasureSpec, inputs: Mapping[str, Path], out: Path, report: Report) -> dict[str, Any]:
    """Measure, write rows.jsonl and texts.jsonl; the summary holds absent metrics and the signs of collapse."""
    corpus = inputs["corpus"]
    model = open_model(str(inputs["model"])).to(device())  # type: ignore[arg-type]
    bench = Bench(spec, model, open_tokenizer(str(inputs["model"])), corpus, settings(corpus))
    absent = {m: reason for m, reason in bench.card["absent"].items() if m in spec.metrics}
    wanted = [m for m in spec.metrics if m not in absent]
    if "knowmem_retain" in absent:
        wanted.append("verbmem_retain")
    answers: dict[str, list[Answer]] = {}
    for i, name in enumerate(wanted):
        part = out / f"part-{name}.json"
        if not part.is_file():
            _write_part(part, _measure(bench, name, _within(report, name, i, len(wanted))))
        answers |= _answers(part, name)
    rows = [Row.model_validate(r) for name in wanted for r in json.loads((out / f"part-{name}.json").read_text())["rows"]]
    rows += [row for extra in spec.extra for row in _user_rows(bench, extra, answers)]
    (out / "rows.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows), encoding="utf-8")
    _write_texts(out / "texts.jsonl", answers)
    for name in wanted:
        (out / f"part-{name}.json").unlink()
    vocabulary = {w for split in ("forget", "retain1", "retain2") for text in _raw(corpus, split) for w in words(text)}
    generated = [a.generated for name in answers for a in answers[name] if name.startswith("verbmem")]
    signs = signs_of_collapse(generated, vocabulary)._asdict() if generated else {}
    return {"absent": absent, "rows": len(rows), "signs": signs, "half": spec.half, "decoding": spec.decoding}


def _within(report: Report, name: str, place: int, parts: int) -> Callable[[int, int], None]:
    """The report of one metric as a part of the whole, in hundredths of a metric."""
    return lambda done, total: report(100 * place + 100 * done // total, 100 * parts, name)


def _raw(corpus: Path, split: str) -> list[str]:
    return raw_texts(corpus, split) if (corpus / "raw" / f"{split}.json").is_file() else []


def _write_part(path: Path, data: dict[str, Any]) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(data), encoding="utf-8")
    os.replace(scratch, path)


def _answers(part: Path, name: str) -> dict[str, list[Answer]]:
    stored = json.loads(part.read_text(encoding="utf-8"))["answers"]
    return {name: [Answer(Item(*a["item"]), a["truth"], a["generated"]) for a in stored]} if stored else {}


def _write_texts(path: Path, answers: Mapping[str, Sequence[Answer]]) -> None:
    lines = [
        {"metric": name, "id": a.item.id, "prompt": a.item.prompt, "truth": a.truth, "generated": a.generated}
        for name, found in answers.items()
        for a in found
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def _measure(bench: Bench, name: str, report: Callable[[int, int], None]) -> dict[str, Any]:
    if name == "privleak":
        return {"rows": [r.model_dump() for s in ("forget", "holdout") for r in _membership(bench, s, report)], "answers": []}
    found = _generate(bench, name, report)
    score = metric(name).load()
    rows = [_scored(name, a, score) for a in found]
    return {"rows": [r.model_dump() for r in rows], "answers": [a._asdict() for a in found]}


def _scored(name: str, answer: Answer, score: Callable[[str, str], float]) -> Row:
    item = answer.item
    if not answer.truth.strip():
        return Row(metric=name, id=item.id, half=item.half, value=None, status="the truth is empty")  # type: ignore[arg-type]
    return Row(metric=name, id=item.id, half=item.half, value=score(answer.truth, answer.generated))  # type: ignore[arg-type]


def _generate(bench: Bench, name: str, report: Callable[[int, int], None]) -> list[Answer]:
    if name.startswith("verbmem"):
        side = "retain" if name.endswith("retain") else "forget"
        items = _half(bench, verbmem_items(bench.corpus, side))
        most = int(bench.card["answer_tokens"])
        sampled = bench.spec.decoding == "paper-code"
        pick = sampler(PAPER_TEMPERATURE, bench.spec.seed, bench.model.device) if sampled else greedy_pick
        texts = continuations(
            bench.model,
            bench.tokenizer,
            [i.prompt for i in items],
            max_new=most,
            batch_size=bench.spec.batch_size,
            pick=pick,
            report=report,
        )
        return [Answer(i, first_tokens(bench.tokenizer, i.truth, most), t) for i, t in zip(items, texts, strict=True)]
    side = name.removeprefix("knowmem_")
    items = _half(bench, knowmem_items(bench.corpus, side))
    texts = continuations(
        bench.model,
        bench.tokenizer,
        [i.prompt for i in items],
        max_new=KNOWMEM_TOKENS,
        prefix=knowmem_prefix(bench.corpus, side),
        stops=STOPS,
        batch_size=bench.spec.batch_size,
        report=report,
    )
    return [Answer(i, i.truth, cut_answer(t)) for i, t in zip(items, texts, strict=True)]


def _half(bench: Bench, items: list[Item]) -> list[Item]:
    return [i for i in items if bench.spec.half in ("all", i.half)]


def first_tokens(tokenizer: PreTrainedTokenizerBase, text: str, most: int) -> str:
    """The text's first ``most`` ids, start token counted, decoded without special tokens. Source: MUSE's VerMem."""
    return str(tokenizer.decode(tokenizer(text)["input_ids"][:most], skip_special_tokens=True))


@torch.no_grad()
def _views(bench: Bench, texts: list[str], report: Callable[[int, int], None]) -> list[tuple[int, View]]:
    """The View of every scorable text alone, cut at the model's context, with its place in the list."""
    found = []
    for i, text in enumerate(texts):
        ids = list(bench.tokenizer(text)["input_ids"])[: context_length(bench.model)]
        report(i + 1, len(texts))
        if len(ids) < 2:
            continue
        batch = collate([ids], bench.tokenizer.pad_token_id, bench.model.device)
        found.append((i, View(bench.model(input_ids=batch.ids, attention_mask=batch.mask).logits, batch.labels)))
    return found


def _membership(bench: Bench, split: str, report: Callable[[int, int], None]) -> list[Row]:
    score = metric("privleak").load()
    texts = privleak_texts(bench.corpus, split)
    values = {i: float(score(view)[0]) for i, view in _views(bench, texts, report)}
    return [
        Row(
            metric="privleak",
            split=split,
            id=f"{split}-{i}",
            half=half_of(i),  # type: ignore[arg-type]
            value=values.get(i),
            status="ok" if i in values else "fewer than two tokens",
        )
        for i in range(len(texts))
    ]


def _user_rows(bench: Bench, spec: MetricSpec, answers: Mapping[str, Sequence[Answer]]) -> list[Row]:
    """Rows of a user's metric: on texts where it reads prompt, truth or generated, on Views where it reads those."""
    method = metric(spec)
    function = method.load()
    name = spec.use.rsplit(":", 1)[-1]
    if "view" in method.reads:
        if not spec.on.startswith("privleak_"):
            raise UserError(f"The metric '{spec.use}' reads a view.", 'Set on = "privleak_forget" or "privleak_holdout".')
        split = spec.on.removeprefix("privleak_")
        found = _views(bench, privleak_texts(bench.corpus, split), lambda done, total: None)
        scored = [(f"{split}-{i}", half_of(i), float(function(view, **method.params)[0])) for i, view in found]
    else:
        if spec.on not in answers:
            raise UserError(f"The metric '{spec.use}' is to be measured on {spec.on}, which is not measured here.")
        given = [(a.item, {"prompt": a.item.prompt, "truth": a.truth, "generated": a.generated}) for a in answers[spec.on]]
        scored = [(item.id, item.half, function(*(texts[r] for r in method.reads), **method.params)) for item, texts in given]
    return [_user_row(name, spec.on, *entry) for entry in scored]


def _user_row(name: str, on: str, item: str, half: Any, value: float | None) -> Row:
    scorable = value is not None and value == value
    return Row(metric=name, split=on, id=item, half=half, value=value if scorable else None, status="ok" if scorable else "unscorable")
