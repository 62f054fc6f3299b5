"""measure: model + corpus -> one row per item and metric; texts apart from rows."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.context import Context
from remnant.corpus import ITEM_SETS, METRICS, counted_too, of_role, split_of
from remnant.corpus.base import Item, ItemSet, half_of
from remnant.corpus.muse import privleak_texts
from remnant.corpus.prepared import raw_texts, settings
from remnant.durable import read_json, write_json
from remnant.errors import Unscorable, UserError
from remnant.evaluate.collect import Answers, collect
from remnant.evaluate.endpoint import Endpoint
from remnant.evaluate.harness import ability
from remnant.evaluate.items import items_of
from remnant.evaluate.llamacpp import LlamaCpp
from remnant.evaluate.local import Local
from remnant.evaluate.reading import states
from remnant.evaluate.reads import Wanted, asked, is_cut, needs, plain, value
from remnant.evaluate.requests import Backend, Reading, Refused, Request, not_finite
from remnant.evaluate.trial import model_checks, special_tokens_check
from remnant.evaluate.vllm import Vllm
from remnant.functional.segments import beginning, words
from remnant.functional.text import cut_answer, signs_of_collapse, way_of
from remnant.functional.tokens import COLUMNS, Tokens
from remnant.functional.view import View
from remnant.instrument import write_checks
from remnant.methods import metric, metric_names
from remnant.model.data import collate, prompt_ids
from remnant.model.load import context_length, open_model, open_tokenizer
from remnant.model.versions import opened
from remnant.readings import METRIC_READINGS, by_reference, of_measured
from remnant.records import Check, MeasureResult, MeasureSpec, MetricSpec, Row
from remnant.resolve import Method
from remnant.stages.checks import CUT, checks_of

UNREAD_WORDS = 48
LEAVES = ("rows.jsonl", "texts.jsonl", "checks.json")
GOES_ON_FROM = ("answers.jsonl", "reference.jsonl", "ability.json")


class Plan(NamedTuple):
    """One metric on one set of items; ``split`` tells the sets of one metric apart."""

    name: str
    method: Method
    on: str
    split: str
    wanted: Wanted


def run(spec: MeasureSpec, inputs: Mapping[str, Path], out: Path, work: Context) -> MeasureResult:
    """Measure, write rows.jsonl and texts.jsonl.

    A version of the model that is in memory is not opened anew.

    Raises:
        UserError: the model or the server cannot be opened, or a user's metric reads what is not
            there.
    """
    corpus = inputs["corpus"]
    card = settings(corpus)
    tokenizer = open_tokenizer(str(corpus / "tokenizer" if spec.endpoint else inputs["model"]))
    elsewhere = spec.endpoint or spec.engine or _gguf_file(inputs)
    held = None if elsewhere else opened(inputs["model"], work)
    model = held.model if held else None
    backend = _backend(spec, model, tokenizer, inputs, work)
    plans, sets, absent = _plans(spec, corpus, card, tokenizer, backend, "reference" in inputs)
    answers = collect(
        _first(plans, sets),
        backend,
        out / "answers.jsonl",
        lambda done, total: work.progress(done, total, "reading and writing"),
    )
    able, lacking = _ability(spec, model, tokenizer, corpus, out)
    seen = {p.on: _views(model, tokenizer, corpus, p.on) for p in plans if "view" in p.method.reads}
    found = _checks_of_who_answers(backend, model, tokenizer)
    del backend, model
    second = _second(plans, sets, answers)
    if held and not second:
        work.models.put(held)
    del held
    if second:
        reference = open_model(str(inputs["reference"]), work.place.device)
        reader = Local(reference, tokenizer, spec.batch_tokens)
        referred = collect(
            second,
            reader,
            out / "reference.jsonl",
            lambda done, total: work.progress(done, total, "reading by the reference"),
        )
    else:
        referred = answers
    rows = [
        _row(p, item, sets[p.on], answers, referred)
        for p in plans
        if "view" not in p.method.reads
        for item in sets[p.on].items
    ]
    rows += [
        row
        for p in plans
        if "view" in p.method.reads
        for row in _view_rows(p, sets[p.on], seen[p.on])
    ]
    rows += [row for row in able if spec.half in ("all", row.half)]
    (out / "rows.jsonl").write_text(
        "".join(row.model_dump_json() + "\n" for row in rows), encoding="utf-8"
    )
    texts = _texts(plans, sets, answers)
    (out / "texts.jsonl").write_text(
        "".join(json.dumps(t, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8"
    )
    checks = found + checks_of(rows, texts)
    write_checks(out, checks)
    if not work.known:  # nobody will seal the folder and leave these out
        for name in GOES_ON_FROM:
            (out / name).unlink(missing_ok=True)
    return MeasureResult(
        absent=absent | lacking,
        rows=len(rows),
        signs=_signs(corpus, texts),
        half=spec.half,
        decoding=spec.decoding,
        checks=tuple(checks),
    )


def _checks_of_who_answers(
    backend: Backend, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase
) -> list[Check]:
    """The checks of an opened model and its tokenizer.

    Of a backend that is none, what it says of itself and of the tokenizer.
    """
    if model is not None:
        return model_checks(model, tokenizer)
    checks = getattr(backend, "checks", None)
    return [*(checks() if checks else []), special_tokens_check(tokenizer)]


def _backend(
    spec: MeasureSpec,
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Mapping[str, Path],
    work: Context,
) -> Backend:
    """Who is asked: a server, vLLM, llama.cpp, or the model that was opened here."""
    if spec.endpoint:
        return Endpoint(spec.endpoint)
    if spec.engine:
        return Vllm(str(inputs["model"]), tokenizer, work.place.device)
    if model:
        return Local(model, tokenizer, spec.batch_tokens)
    file = _gguf_file(inputs)
    assert file is not None
    return LlamaCpp(file, tokenizer)


def _gguf_file(inputs: Mapping[str, Path]) -> Path | None:
    """The GGUF file that is measured, if the model is one.

    Raises:
        UserError: the folder holds several, and nobody said which.
    """
    model = inputs.get("model")
    if model is None or any(model.glob("*.safetensors")) or any(model.glob("*.bin")):
        return None
    found = sorted(model.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(f.name for f in found[:5])
        raise UserError(
            f"{model} holds {len(found)} GGUF files ({names}).",
            "Leave in it the one that is to be measured.",
        )
    return found[0] if found else None


def _plans(
    spec: MeasureSpec,
    corpus: Path,
    card: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    backend: Backend,
    has_reference: bool,
) -> tuple[list[Plan], dict[str, ItemSet], dict[str, str]]:
    """What can be measured, on which items, and why the rest cannot."""
    plans, sets, absent = [], {}, {}
    for plan in _named(spec, corpus, card):
        name = plan.on
        if name not in sets:
            found = items_of(name, corpus, card, tokenizer)
            if isinstance(found, str):
                absent[plan.name] = found
                continue
            sets[name] = found._replace(
                items=[i for i in found.items if spec.half in ("all", i.half)]
            )
        if reason := _unanswered(
            plan, backend.offers, has_reference, "server" if spec.endpoint else "engine"
        ):
            absent[plan.name] = reason
        else:
            plans.append(plan)
    return plans, sets, absent


def _named(spec: MeasureSpec, corpus: Path, card: Mapping[str, Any]) -> list[Plan]:
    names = list(metric_names(spec.metrics))
    names += counted_too(names, corpus, card["absent"])
    found = []
    for name in dict.fromkeys(names):
        method, entry = metric(name), METRICS[name]
        wanted = _wanted(spec, corpus, method, entry.columns)
        found += [Plan(name, method, on, split_of(name, on), wanted) for on in entry.on]
    return found + [_of_user(spec, corpus, extra) for extra in spec.extra]


def _of_user(spec: MeasureSpec, corpus: Path, extra: MetricSpec) -> Plan:
    method = metric(extra)
    whole = [name for name, entry in ITEM_SETS.items() if entry.asked == "whole"]
    if "view" in method.reads and extra.on not in whole:
        raise UserError(
            f"The metric '{extra.use}' reads a view.",
            "Set on = " + " or ".join(f'"{name}"' for name in whole) + ".",
        )
    return Plan(
        extra.name,
        method,
        extra.on,
        extra.on,
        _wanted(spec, corpus, method, COLUMNS),
    )


def _wanted(spec: MeasureSpec, corpus: Path, method: Method, columns: tuple[str, ...]) -> Wanted:
    unread = ""
    if "behind_prefix" in method.reads and (corpus / "privleak/holdout.json").is_file():
        unread = beginning(privleak_texts(corpus, "holdout")[-1], UNREAD_WORDS)
    return Wanted(
        columns, spec.samples, spec.temperature, spec.seed, spec.decoding == "paper-code", unread
    )


def _unanswered(plan: Plan, offers: frozenset[str], has_reference: bool, who: str) -> str:
    """Why a metric cannot be measured with this backend; empty if it can."""
    reads = plan.method.reads
    if not has_reference and by_reference(reads):
        return "no reference model was given"
    lacking = sorted(needs(reads, plan.wanted.columns) - offers)
    return f"the {who} does not say this of a text: {', '.join(lacking)}" if lacking else ""


def _first(plans: list[Plan], sets: Mapping[str, ItemSet]) -> list[Request]:
    """What the measured model is asked."""
    found: list[Request] = []
    for p in plans:
        found += [
            r
            for item in sets[p.on].items
            for read in of_measured(p.method.reads)
            for r in asked(read, item, sets[p.on], p.wanted)
        ]
    return found


def _second(plans: list[Plan], sets: Mapping[str, ItemSet], answers: Answers) -> list[Request]:
    """What the reference model is asked: the texts, and what the measured model has written."""
    found: list[Request] = []
    for p in plans:
        of = sets[p.on]
        for read in by_reference(p.method.reads):
            found += [
                request
                for item in of.items
                for request in _of_reference(read, item, of, p.wanted, answers)
            ]
    return found


def _of_reference(
    read: str, item: Item, of: ItemSet, wanted: Wanted, answers: Answers
) -> list[Request]:
    """What the reference is asked for one reading of one item; nothing where nothing was
    written.
    """
    if METRIC_READINGS[read].of is None:
        return asked(read, item, of, wanted)
    request = _on_generated(item, of, wanted, answers)
    return [request] if request else []


def _on_generated(item: Item, of: ItemSet, wanted: Wanted, answers: Answers) -> Reading | None:
    """What was written for an item, to be read behind its prompt; None if nothing was."""
    (request,) = asked("generated", item, of, wanted)
    text = answers[request]
    return (
        Reading(text, item.context + item.prompt)
        if isinstance(text, str) and text.strip()
        else None
    )


def _row(plan: Plan, item: Item, of: ItemSet, answers: Answers, referred: Answers) -> Row:
    def row(value: float | None, status: str) -> Row:
        return Row(
            metric=plan.name,
            split=plan.split,
            id=item.id,
            half=item.half,
            value=value,
            status=status,
        )

    try:
        values = {r: _value(r, item, of, plan.wanted, answers, referred) for r in plan.method.reads}
        found = plan.method.load()(*map(plain, values.values()), **plan.method.params)
    except Unscorable as error:
        return row(None, str(error))
    if found is None or not math.isfinite(found):
        return row(None, "unscorable")
    way = way_of(plan.method.function, item.truth)
    notes = ["ok", *([CUT] if is_cut(values) else []), *([way] if way else [])]
    return row(float(found), ", ".join(notes))


def _value(
    read: str, item: Item, of: ItemSet, wanted: Wanted, answers: Answers, referred: Answers
) -> Any:
    reading = METRIC_READINGS[read]
    if reading.of is None:
        who = referred if reading.model == "reference" else answers
        return value(read, item, of, wanted, who)
    request = _on_generated(item, of, wanted, answers)
    found = referred[request] if request else Refused("nothing was written")
    if not isinstance(found, Tokens):
        raise Unscorable(found.reason if isinstance(found, Refused) else "nothing was read")
    return found


def _texts(
    plans: list[Plan], sets: Mapping[str, ItemSet], answers: Answers
) -> list[dict[str, str]]:
    """What was written, once per set of items."""
    found = []
    for on, p in {p.on: p for p in plans if "generated" in p.method.reads}.items():
        for item in sets[on].items:
            (request,) = asked("generated", item, sets[on], p.wanted)
            text = answers[request]
            if isinstance(text, str):
                shown = cut_answer(text, sets[on].stops) if sets[on].stops else text
                found.append(
                    {
                        "metric": on,
                        "id": item.id,
                        "prompt": item.prompt,
                        "truth": item.truth,
                        "generated": shown,
                    }
                )
    return found


def _signs(corpus: Path, texts: list[dict[str, str]]) -> dict[str, float] | None:
    plain = {on for m in (*of_role("knowledge"), *of_role("utility")) for on in METRICS[m].on}
    continued = {on for on in plain if ITEM_SETS[on].asked == "text"}
    generated = [t["generated"] for t in texts if t["metric"] in continued]
    splits = [
        s for s in ("forget", "retain1", "retain2") if (corpus / "raw" / f"{s}.json").is_file()
    ]
    vocabulary = {w for split in splits for text in raw_texts(corpus, split) for w in words(text)}
    return signs_of_collapse(generated, vocabulary)._asdict() if generated else None


def _ability(
    spec: MeasureSpec,
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Path,
    out: Path,
) -> tuple[list[Row], dict[str, str]]:
    """Rows of the harness's tasks, kept so that they are not run again after a kill.

    And why there are none.
    """
    if not spec.ability or model is None:
        return [], dict.fromkeys(
            (f"ability_{t}" for t in spec.ability),
            "the harness runs on models opened by transformers only",
        )
    kept = out / "ability.json"
    found: Any = read_json(kept)
    if found is None:
        found = ability(
            model,
            tokenizer,
            spec.ability,
            corpus,
            Path(spec.ability_tasks) if spec.ability_tasks else None,
        )
        write_json(kept, found)
    return [
        Row(metric=f"ability_{task}", id=f"{task}-{i}", half=half_of(i), value=value)
        for task, values in found.items()
        for i, value in enumerate(values)
    ], {}


@torch.no_grad()
def _views(
    model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, corpus: Path, on: str
) -> dict[str, tuple[View, str]]:
    """The View of every scorable text alone, cut at the model's context, by the id of its item.

    And what is to be said of it.
    """
    assert model is not None
    side, found = on.removeprefix("privleak_"), {}
    for i, text in enumerate(privleak_texts(corpus, side)):
        whole = prompt_ids(tokenizer, text)
        ids = whole[: context_length(model)]
        if len(ids) > 1:
            batch = collate([ids], tokenizer.pad_token_id, model.device)
            view = View(states(model, False, batch), batch.labels)
            found[f"{side}-{i}"] = view, "ok" if len(ids) == len(whole) else f"ok, {CUT}"
    return found


def _view_rows(plan: Plan, of: ItemSet, views: Mapping[str, tuple[View, str]]) -> list[Row]:
    function, rows = plan.method.load(), []
    for item in of.items:
        value, status = None, "fewer than two tokens"
        if item.id in views:
            view, status = views[item.id]
            value = float(function(view, **plan.method.params)[0])
            if not (math.isfinite(value) and bool(view.logits.amax(-1).isfinite().all())):
                value, status = None, not_finite().reason
        rows.append(
            Row(
                metric=plan.name,
                split=plan.split,
                id=item.id,
                half=item.half,
                value=value,
                status=status,
            )
        )
    return rows
