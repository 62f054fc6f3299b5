"""One model on which tests on weights are made, and what it says of the same texts behind each
change of its weights.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.attacks import UNCHANGED, learned
from remnant.context import Context, ModelCache, Place
from remnant.corpus.base import Item
from remnant.durable import read_json, write_json
from remnant.errors import Diverged, UserError
from remnant.evaluate.local import Local
from remnant.evaluate.requests import Reading
from remnant.functional.memory import exact_memorization
from remnant.functional.tokens import Tokens
from remnant.lineage import Lineage
from remnant.methods import step
from remnant.model.versions import opened
from remnant.stages import transform

Values = Mapping[str, float | None]


class Read(NamedTuple):
    """What a model says of the passages, and the mean loss of the lessons, nats per token.

    ``values``: passage -> share of its tokens that are the greedy choice; None where it has none,
    for which ``why`` is the reason.
    """

    values: Values
    loss: float
    why: str = ""


class Bench(NamedTuple):
    """What all tests on one model share.

    ``items``: the passages that are read. ``lessons``: the texts that are learned again.
    ``done``: counts what was done, as much as reading so many texts, and tells it.
    """

    inputs: Mapping[str, Path]
    tokenizer: PreTrainedTokenizerBase
    items: Sequence[Item]
    lessons: Sequence[str]
    place: Place
    models: ModelCache
    spool: Path
    done: Callable[[int, str], None]


def way_of(use: str) -> str:
    """How a transform trains; empty where it does not."""
    return str(step(use).spec.params["way"]) if learned(use) else ""


def read(bench: Bench, use: str, rate: float | None) -> Read:
    """The passages behind a transform, or as the model is; what was read before is not read
    again.
    """
    key = use if rate is None else f"{use} at {rate:g}"
    kept: Any = read_json(bench.spool) or {}
    if key not in kept:
        try:
            found = _said(bench, _behind(bench, use, rate))
        except Diverged as error:
            found = Read({item.id: None for item in bench.items}, math.inf, error.message)
        kept[key] = found._asdict()
        write_json(bench.spool, kept)
    return Read(**kept[key])


def _behind(bench: Bench, use: str, rate: float | None) -> PreTrainedModel:
    """The model as a transform leaves it, made as ``transform`` makes it and written nowhere."""
    bench.done(0, use)
    known = {"model": Lineage(UNCHANGED, UNCHANGED), "self": Lineage(use, UNCHANGED)}

    def training(done: int, total: int, note: str) -> None:
        is_step = rate is not None and total > 1 and done > 0
        bench.done(learned(use) // total if is_step else 0, f"{use}: {note}")

    work = Context(training, bench.models, bench.place, known, weights=False)
    if use == UNCHANGED:
        found = opened(bench.inputs["model"], work)
        bench.models.put(found)
        return found.model
    spec = step(use).spec
    if rate is not None:
        spec = spec.model_copy(update={"params": {**spec.params, "lr": rate}})
    with TemporaryDirectory() as folder:
        transform.run(spec, bench.inputs, Path(folder), work)
    made = bench.models.get(UNCHANGED)
    if made is None:
        raise UserError(f"'{use}' leaves no model in memory.", "Name another transform.")
    bench.models.put(made)
    return made.model


def _said(bench: Bench, model: PreTrainedModel) -> Read:
    """What a model says of passages and lessons, each read once."""
    backend = Local(model, bench.tokenizer)
    asked = [Reading(item.truth, columns=("logp", "rank")) for item in bench.items]
    asked += [Reading(text) for text in bench.lessons]
    answers: dict[int, Any] = {}
    for batch in backend.plan(asked):
        answers |= dict(zip(batch, backend.answer([asked[i] for i in batch]), strict=True))
        bench.done(sum(i < len(bench.items) for i in batch), "reading")
    values = {
        item.id: exact_memorization(found) if isinstance(found := answers[i], Tokens) else None
        for i, item in enumerate(bench.items)
    }
    lost = next((a.reason for a in answers.values() if not isinstance(a, Tokens)), "")
    lessons = [answers[i] for i in range(len(bench.items), len(asked))]
    said = [lesson.logp for lesson in lessons if isinstance(lesson, Tokens)]
    loss = -np.concatenate(said).mean() if len(said) == len(lessons) else math.inf
    return Read(values, float(loss), lost)
