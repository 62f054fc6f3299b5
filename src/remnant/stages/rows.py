"""From what was asked and answered to one row per item and metric."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.corpus.base import Item, ItemSet
from remnant.corpus.muse import privleak_texts
from remnant.errors import Unscorable
from remnant.evaluate.collect import Answers
from remnant.evaluate.reading import states
from remnant.evaluate.reads import Wanted, asked, is_cut, plain, value
from remnant.evaluate.requests import Refused, not_finite
from remnant.functional.text import cut_answer, way_of
from remnant.functional.tokens import Tokens
from remnant.functional.view import View
from remnant.model.data import collate, prompt_ids
from remnant.model.load import context_length
from remnant.readings import METRIC_READINGS
from remnant.records import Row
from remnant.stages.checks import CUT
from remnant.stages.schedule import Plan, Schedule, on_generated


def rows_of(
    schedule: Schedule,
    answers: Answers,
    referred: Answers,
    views: Mapping[str, Mapping[str, tuple[View, str]]],
) -> list[Row]:
    """The rows of all metrics.

    Args:
        schedule: what is measured.
        answers: those of the measured model.
        referred: those of the reference.
        views: of whole texts, by the set of their items.
    """
    rows = [
        _row(p, item, schedule.sets[p.on], answers, referred)
        for p in schedule.on_items
        for item in schedule.sets[p.on].items
    ]
    return rows + [
        row for p in schedule.on_views for row in _view_rows(p, schedule.sets[p.on], views[p.on])
    ]


def _made(plan: Plan, item: Item, value: float | None, status: str) -> Row:
    return Row(
        metric=plan.name,
        split=plan.split,
        id=item.id,
        half=item.half,
        value=value,
        status=status,
    )


def _row(plan: Plan, item: Item, of: ItemSet, answers: Answers, referred: Answers) -> Row:
    try:
        values = {r: _value(r, item, of, plan.wanted, answers, referred) for r in plan.method.reads}
        found = plan.method.load()(*map(plain, values.values()), **plan.method.params)
    except Unscorable as error:
        return _made(plan, item, None, str(error))
    if found is None or not math.isfinite(found):
        return _made(plan, item, None, "unscorable")
    way = way_of(plan.method.function, item.truth)
    notes = ["ok", *([CUT] if is_cut(values) else []), *([way] if way else [])]
    return _made(plan, item, float(found), ", ".join(notes))


def _value(
    read: str, item: Item, of: ItemSet, wanted: Wanted, answers: Answers, referred: Answers
) -> Any:
    reading = METRIC_READINGS[read]
    if reading.of is None:
        who = referred if reading.model == "reference" else answers
        return value(read, item, of, wanted, who)
    request = on_generated(item, of, wanted, answers)
    found = referred[request] if request else Refused("nothing was written")
    if not isinstance(found, Tokens):
        raise Unscorable(found.reason if isinstance(found, Refused) else "nothing was read")
    return found


@torch.no_grad()
def views_of(
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
        rows.append(_made(plan, item, value, status))
    return rows


def texts_of(schedule: Schedule, answers: Answers) -> list[dict[str, str]]:
    """What was written, once per set of items."""
    found = []
    for on, p in {p.on: p for p in schedule.plans if "generated" in p.method.reads}.items():
        of = schedule.sets[on]
        for item in of.items:
            (request,) = asked("generated", item, of, p.wanted)
            text = answers[request]
            if isinstance(text, str):
                shown = cut_answer(text, of.stops) if of.stops else text
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
