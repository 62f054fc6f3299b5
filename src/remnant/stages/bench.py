"""One model on which tests on weights are made, and what it says of the same texts behind each
change of its weights.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.attacks import (
    LENSES,
    PROBE,
    PROBED_AT,
    PROMPT_STEPS,
    SOFT_PROMPT,
    TEXTS_A_STEP,
    UNCHANGED,
    is_transform,
    learned,
)
from remnant.context import Context, ModelCache, Place
from remnant.corpus.base import Item
from remnant.durable import read_json, write_json
from remnant.errors import Interrupted, UserError
from remnant.evaluate.local import Local
from remnant.evaluate.requests import Reading
from remnant.functional.losses import gdr
from remnant.functional.memory import exact_memorization
from remnant.functional.probing import told_apart
from remnant.functional.tokens import Tokens
from remnant.lineage import Lineage
from remnant.methods import step
from remnant.model.blocks import blocks, forward, up_to
from remnant.model.data import collate, prompt_ids
from remnant.model.load import context_length
from remnant.model.versions import opened
from remnant.stages import transform
from remnant.training.softprompt import VECTORS, SoftPrompt, learn

# Cross-validation as usual, and what is drawn at random the same for all models.
FOLDS, CONTROL_SEED = 5, 0

Array = NDArray[np.float64]
Values = Mapping[str, float | None]


class Read(NamedTuple):
    """What a model says of the passages, and the mean loss of the lessons, nats per token.

    ``values``: passage -> share of its tokens that are the greedy choice, or what else a test
    finds, 0 to 1; None where it has none, for which ``why`` is the reason. ``before``: the loss
    before, where a test has lessons of its own.
    """

    values: Values
    loss: float = math.nan
    why: str = ""
    before: float = math.nan


class Bench(NamedTuple):
    """What all tests on one model share.

    ``items``: the passages of forget text that are read, ``unread`` those of text that was never
    read. ``lessons``: the texts that are learned again.
    ``done``: counts what was done, as much as reading so many texts, and tells it.
    """

    inputs: Mapping[str, Path]
    tokenizer: PreTrainedTokenizerBase
    items: Sequence[Item]
    unread: Sequence[Item]
    lessons: Sequence[str]
    place: Place
    models: ModelCache
    spool: Path
    done: Callable[[int, str], None]


def way_of(use: str) -> str:
    """How a transform trains; empty where it does not."""
    return str(step(use).spec.params["way"]) if is_transform(use) and learned(use) else ""


def read(bench: Bench, use: str, rate: float | None) -> Read:
    """The passages behind something that is done to the model, or as it is; what was read before is
    not read again. What cannot be done to this model leaves no numbers, and why.

    Args:
        bench: the model, and what is read.
        use: what is done (``Attack.behind``).
        rate: the learning rate of a transform that trains.

    Raises:
        UserError: the model as it is cannot be opened or read.
    """
    key = use if rate is None else f"{use} at {rate:g}"
    kept: Any = read_json(bench.spool) or {}
    if key not in kept:
        try:
            found = OTHERWISE.get(use, _behind_transform)(bench, use, rate)
        except UserError as error:
            if use == UNCHANGED or isinstance(error, Interrupted):
                raise
            found = _nothing(bench, error.message, math.inf)
        kept[key] = found._asdict()
        write_json(bench.spool, kept)
    return Read(**kept[key])


def _nothing(bench: Bench, why: str, loss: float = math.nan) -> Read:
    return Read({item.id: None for item in bench.items}, loss, why)


def _behind_transform(bench: Bench, use: str, rate: float | None) -> Read:
    return _said(bench, _behind(bench, use, rate))


def _behind_lens(bench: Bench, use: str, rate: float | None) -> Read:
    """The passages, each pass ending behind a part of the blocks."""
    model = _behind(bench, UNCHANGED, None)
    with up_to(model, LENSES[use]):
        return _said(bench, model)


def _probed(bench: Bench, use: str, rate: float | None) -> Read:
    """How much more surely a plane tells forget passages from unread ones, all of the other folds,
    than it tells labels drawn at random: 0.5 where not at all.
    """
    model = _behind(bench, UNCHANGED, None)
    texts = [*bench.items, *bench.unread]
    layer = max(0, math.ceil(PROBED_AT * len(blocks(model))) - 1)
    vectors = np.array([_middle(bench, model, layer, item.truth) for item in texts])
    if not np.isfinite(vectors).all():
        return _nothing(bench, "what the middle block gives is not finite")
    labels = np.array([1.0] * len(bench.items) + [0.0] * len(bench.unread))
    drawn = np.random.default_rng(CONTROL_SEED).permutation(labels)
    task, control = (told_apart(vectors, y, FOLDS, CONTROL_SEED) for y in (labels, drawn))
    values = ((1 + task - control) / 2).tolist()
    return Read({item.id: value for item, value in zip(texts, values, strict=True)})


def _middle(bench: Bench, model: PreTrainedModel, layer: int, text: str) -> Array:
    """[H] the mean over a text of what a block gives."""
    ids = prompt_ids(bench.tokenizer, text)[: context_length(model)]
    with torch.no_grad():
        _, kept = forward(model, collate([ids], 0, model.device), [layer], logits=False)
    bench.done(1, "reading")
    found: Array = kept[layer][0].double().mean(0).cpu().numpy()
    return found


def _prompted(bench: Bench, use: str, rate: float | None) -> Read:
    """The passages at odd places behind a soft prompt that was learned on those at even ones."""
    model = _behind(bench, UNCHANGED, None)
    room = max(0, context_length(model) - VECTORS)
    ids = {i.id: prompt_ids(bench.tokenizer, i.truth)[:room] for i in bench.items}
    whole = [item for item in bench.items if len(ids[item.id]) > 1]
    own = [ids[item.id] for item in whole if item.half == "dev"]
    if not own:
        return Read({})
    prompt = SoftPrompt(model, CONTROL_SEED)

    def step_done(loss: float) -> None:
        bench.done(learned(use) // PROMPT_STEPS, f"{use}: loss {loss:.3f}")

    before = _loss_of(bench, prompt, own)
    learn(prompt, own, PROMPT_STEPS, TEXTS_A_STEP, step_done)
    values: dict[str, float | None] = {}
    for item in (item for item in whole if item.half == "test"):
        with torch.no_grad():
            view = prompt.said([ids[item.id]], 0)
        right = view.logits[:, :-1].argmax(-1) == view.targets()
        finite = bool(view.logits.isfinite().all())
        values[item.id] = float(right.double().mean()) if finite else None
        bench.done(1, "reading")
    why = "" if None not in values.values() else "what the model says is not finite"
    return Read(values, _loss_of(bench, prompt, own), why, before)


def _loss_of(bench: Bench, prompt: SoftPrompt, texts: Sequence[Sequence[int]]) -> float:
    """Mean loss of texts behind a soft prompt, nats per token, each text counting alike."""
    found: list[float] = []
    for text in texts:
        with torch.no_grad():
            found.append(float(gdr(prompt.said([text], 0)).mean()))
        bench.done(1, "reading")
    return sum(found) / len(found)


# What is no transform, and how it is done.
OTHERWISE: Mapping[str, Callable[[Bench, str, float | None], Read]] = {
    **dict.fromkeys(LENSES, _behind_lens),
    PROBE: _probed,
    SOFT_PROMPT: _prompted,
}


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
