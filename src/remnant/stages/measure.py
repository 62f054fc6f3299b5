"""measure: model + corpus -> one row per item and metric; texts apart from rows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.context import Context
from remnant.corpus import ITEM_SETS, METRICS, of_role
from remnant.corpus.base import half_of
from remnant.corpus.prepared import raw_texts, settings
from remnant.durable import read_json, write_json
from remnant.evaluate.collect import collect
from remnant.evaluate.endpoint import Endpoint
from remnant.evaluate.harness import ability
from remnant.evaluate.items import manner_of
from remnant.evaluate.llamacpp import LlamaCpp
from remnant.evaluate.local import Local
from remnant.evaluate.requests import Backend
from remnant.evaluate.trial import model_checks, special_tokens_check
from remnant.evaluate.vllm import Vllm
from remnant.functional.segments import words
from remnant.functional.text import signs_of_collapse
from remnant.instrument import write_checks
from remnant.model.load import dtype_of, open_model, open_tokenizer
from remnant.model.versions import opened
from remnant.packing import gguf_in
from remnant.records import Check, MeasureResult, MeasureSpec, Row
from remnant.stages.checks import checks_of
from remnant.stages.rows import rows_of, texts_of, views_of
from remnant.stages.schedule import first, scheduled, second

LEAVES = ("rows.jsonl", "texts.jsonl", "checks.json")
GOES_ON_FROM = ("answers.jsonl", "reference.jsonl", "ability.json")


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
    elsewhere = spec.endpoint or spec.engine or gguf_file(inputs)
    held = None if elsewhere else opened(inputs["model"], work, spec.dtype)
    model = held.model if held else None
    backend = _backend(spec, model, tokenizer, inputs, work)
    manner = manner_of(spec, inputs)
    asks = spec.model_copy(update={"form": manner.form})
    schedule = scheduled(asks, corpus, card, tokenizer, backend, "reference" in inputs)
    answers = collect(
        first(schedule),
        backend,
        out / "answers.jsonl",
        lambda done, total: work.progress(done, total, "reading and writing"),
    )
    able, lacking = _ability(spec, model, tokenizer, corpus, out)
    seen = {p.on: views_of(model, tokenizer, corpus, p.on) for p in schedule.on_views}
    found = _checks_of_who_answers(backend, model, tokenizer)
    del backend, model
    of_reference = second(schedule, answers)
    if held and not of_reference and not spec.dtype:
        work.models.put(held)
    del held
    if of_reference:
        place = inputs["reference"]
        own = dtype_of(spec.dtype, place)
        reference = open_model(str(place), work.place.device, dtype=own)
        reader = Local(reference, tokenizer, spec.batch_tokens)
        referred = collect(
            of_reference,
            reader,
            out / "reference.jsonl",
            lambda done, total: work.progress(done, total, "reading by the reference"),
        )
    else:
        referred = answers
    rows = rows_of(schedule, answers, referred, seen)
    rows += [row for row in able if spec.half in ("all", row.half)]
    (out / "rows.jsonl").write_text(
        "".join(row.model_dump_json() + "\n" for row in rows), encoding="utf-8"
    )
    texts = texts_of(schedule, answers)
    (out / "texts.jsonl").write_text(
        "".join(json.dumps(t, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8"
    )
    checks = found + checks_of(rows, texts)
    write_checks(out, checks)
    if not work.known:  # nobody will seal the folder and leave these out
        for name in GOES_ON_FROM:
            (out / name).unlink(missing_ok=True)
    return MeasureResult(
        absent=schedule.absent | lacking,
        rows=len(rows),
        signs=_signs(corpus, texts),
        half=spec.half,
        decoding=spec.decoding,
        form=manner.form,
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
    file = gguf_file(inputs)
    assert file is not None
    return LlamaCpp(file, tokenizer)


def gguf_file(inputs: Mapping[str, Path]) -> Path | None:
    """The GGUF file that is measured, if the model is one."""
    return gguf_in(inputs["model"]) if "model" in inputs else None


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
