"""What a piece of work needs: memory, disk, what is read, time. From its settings, its model's
configuration and the lengths of its texts; no weight is read. No torch.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from remnant.corpus.prepared import raw_texts
from remnant.errors import UserError
from remnant.estimate.memory import (
    LIBRARIES,
    Peak,
    Text,
    moving_of,
    of_moments,
    of_opening,
    peak,
    room_of,
    width_of,
)
from remnant.estimate.shape import Shape, shape_of
from remnant.estimate.time import Speed, seconds_of, stored
from remnant.flow.node import Input, Node
from remnant.flow.place import Outside
from remnant.flow.store import Store
from remnant.flow.together import ALONE, Spread
from remnant.methods import loss_reads, term_specs
from remnant.packing import gguf_config, gguf_in
from remnant.records import (
    MeasureSpec,
    OptimSpec,
    PrepareSpec,
    Record,
    TrainSpec,
    TransformSpec,
    UnlearnSpec,
    saves_apart,
)
from remnant.weightfiles import config_of, object_in

# Letters of a token of English text, about; a text of so many letters has one token.
LETTERS = 4
# What stages that read or round a model hold beside it: as evaluate/local.py and
# functional/quantizers.py, at most so many tokens of a batch, and so many float32 copies of the
# largest matrix.
READ_TOKENS, COPIES = 4096, 6


class Needs(NamedTuple):
    """Of one piece of work: the peak of its memory, the most bytes that it has on the disk while it
    runs, the bytes that it reads, and seconds; None where they hang on answers that are not there.
    ``spec`` and ``text``: of training, for whoever looks for a setting that fits.
    """

    peak: Peak
    disk: int
    read: int
    seconds: float | None
    shape: Shape
    spec: OptimSpec | None = None
    text: Text | None = None


def needs_of(store: Store, node: Node, speed: Speed, spread: Spread = ALONE) -> Needs | None:
    """What a piece needs of each device; None for one that works with no model.

    Raises:
        UserError: the model's configuration is out of reach, or tells no shape that is known.
    """
    match node.spec:
        case TrainSpec() | UnlearnSpec() as spec:
            return _of_training(store, node, spec, speed, spread)
        case TransformSpec() | MeasureSpec() as spec if not getattr(spec, "endpoint", None):
            return of_use(shape_from(store, node.inputs["model"]), spec)
        case _:
            return None


def _of_training(
    store: Store, node: Node, spec: TrainSpec | UnlearnSpec, speed: Speed, spread: Spread
) -> Needs:
    shape = shape_from(store, node)
    text, steps = text_of(store, node, spec), steps_of(store, node, spec)
    moving = moving_of(shape, spec)
    # Two generations of what moves and its moments, and the best weights so far.
    weight = 4 if moving.adapters else (2 if spec.weights != "fp32" and not spec.compute else 4)
    state = 3 * weight * moving.numbers + 2 * of_moments(spec, moving)
    saved = 4 * moving.numbers if saves_apart(spec.train) else stored(shape, spec)
    read = 0 if isinstance(spec, TrainSpec) and not spec.base else shape.saved * shape.weights
    timed = None if steps is None else spec.model_copy(update={"steps": steps})
    alone = timed if spread.devices == 1 else None
    seconds = seconds_of(shape, alone, text, speed) if alone else None
    text = text._replace(batch=-(-text.batch // spread.devices))
    found = peak(shape, spec, text, spread.sharing)
    rows = text.cached * shape.width * width_of(spec)
    shelved = rows if rows > room_of(spec) else 0
    return Needs(found, state + saved + shelved, read, seconds, shape, spec, text)


def of_use(shape: Shape, spec: Record) -> Needs:
    """Of measuring and of transforming: a model in its dtype, and what one pass or matrix takes."""
    largest = max(a * b for a, b in shape.matrices().values())
    kept = {None: 4, "bf16": 2, "stored": shape.saved}[getattr(spec, "dtype", None)]
    whole = kept * shape.weights
    cached = 2 * shape.layers * shape.kv_heads * shape.head
    token = kept * (cached + 8 * shape.width + 3 * shape.inner)
    rounded = isinstance(spec, TransformSpec)
    passing = 4 * COPIES * largest if rounded else READ_TOKENS * token
    # Codes, in bytes, and the tables that stay as they are.
    codes = shape.weights + 4 * shape.tables * shape.table if rounded else 0
    found = Peak(whole, 0, 0, 0, passing, codes, LIBRARIES)
    opening = of_opening(shape, kept, kept) + LIBRARIES
    found = found._replace(around=max(0, opening - found.total))
    return Needs(found, (whole + shape.weights) * rounded, shape.saved * shape.weights, None, shape)


def shape_from(store: Store, source: Input) -> Shape:
    """The shape of a model, made or not: by its configuration, or by the settings of the piece that
    trains it from scratch or changes it.

    Raises:
        UserError: as ``needs_of``.
    """
    if isinstance(source, Outside):
        return shape_of(_config(source.source))
    if not isinstance(source, Node):
        return shape_of(config_of(store.path(source.name)))
    if isinstance(source.spec, TrainSpec) and not source.spec.base:
        return _fresh(source.spec, source.inputs["corpus"])
    role = next(r for r in ("target", "model", "base") if r in source.inputs)
    return shape_from(store, source.inputs[role])


def _fresh(spec: TrainSpec, corpus: Input) -> Shape:
    """Of a model from scratch; a trained tokenizer has as many tokens as was asked for."""
    own = corpus.spec if isinstance(corpus, Node) else None
    vocabulary = (
        own.vocab_size if isinstance(own, PrepareSpec) else PrepareSpec(lab="news").vocab_size
    )
    sizes = (spec.hidden, spec.intermediate, spec.layers, spec.heads, spec.kv_heads)
    return Shape(vocabulary, *sizes, spec.hidden // spec.heads)


def _config(source: str) -> dict[str, object]:
    """The configuration of a folder or a GGUF file, or of a model of the hub, of which nothing else
    is fetched.
    """
    if file := gguf_in(Path(source)):
        return dict(gguf_config(file))
    if Path(source).is_dir():
        return dict(config_of(Path(source)))
    try:
        return dict(object_in(Path(hf_hub_download(source, "config.json"))))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"The configuration of {source} is out of reach.",
            "Name a folder with its config.json; the weights need not be there.",
        ) from error


def text_of(store: Store, node: Node, spec: TrainSpec | UnlearnSpec) -> Text:
    """What a step reads: the longest text of the corpus where that is there, else as long as texts
    may be; questions as the longest document, which they are shorter than.
    """
    if isinstance(spec, TrainSpec):
        padded = spec.examples == "questions"
        own = _trained_on(store, node.inputs["corpus"], spec) if padded else []
        return Text(spec.batch_size, max(own, default=spec.block_tokens), padded=padded)
    readings = {r for term in term_specs(spec) for r in loss_reads(term)}
    lengths = _lengths(store, node.inputs["corpus"], spec)
    longest = max([n for own in lengths.values() for n in own], default=spec.max_tokens)
    batch = max(1, spec.batch_tokens // longest) if spec.batch_tokens else spec.batch_size
    seen = spec.steps * batch * spec.accumulate * longest
    cached = 0
    for side in sorted({r.side for r in readings}):
        still = [r for r in readings if r.side == side and r.model != "policy"]
        states = {(r.model, r.what, r.layer) for r in still}
        number = sum(what in ("view", "hidden") for _, what, _ in states)
        split = "forget" if side in ("forget", "alternative") else "retain"
        cached += number * (sum(lengths[split]) if lengths else seen)
    passes = len({r.side for r in readings if r.model == "policy"})
    compared = {r.side for r in readings if r.what == "view" and r.model != "policy"}
    early = bool(compared - {"retain"})
    forget = sum(lengths["forget"]) if lengths else seen
    found = Text(batch, longest, passes, cached, bool(compared), early=early)
    return found._replace(forget=forget)


def steps_of(store: Store, node: Node, spec: TrainSpec | UnlearnSpec) -> int | None:
    """Optimiser steps: as many as are asked for, or as passes over the corpus are, about; None
    where that is not there yet. A text is taken for one question.
    """
    if isinstance(spec, UnlearnSpec) or spec.passes is None:
        return spec.steps
    own = _trained_on(store, node.inputs["corpus"], spec)
    if not own:
        return None
    packed = spec.examples == "documents"
    batches = (
        max(1, sum(own) // spec.block_tokens // spec.batch_size)
        if packed
        else -(-len(own) // spec.batch_size)
    )
    return -(-spec.passes * batches // spec.accumulate)


def _trained_on(store: Store, corpus: Input, spec: TrainSpec) -> list[int]:
    """Tokens of every text that a training reads, about; none where the corpus is not there yet."""
    folder = _folder(store, corpus)
    return [*_tokens(folder, spec.splits)] if (folder / "raw").is_dir() else []


def _folder(store: Store, corpus: Input) -> Path:
    return Path(corpus.source) if isinstance(corpus, Outside) else store.path(corpus.name)


def _lengths(store: Store, corpus: Input, spec: UnlearnSpec) -> dict[str, list[int]]:
    """Tokens of every text of each side, about; nothing where the corpus is not there yet."""
    folder = _folder(store, corpus)
    if not (folder / "raw").is_dir():
        return {}
    splits = {"forget": ("forget",), "retain": spec.retain or ("retain1",)}
    return {
        side: [*map(partial(min, spec.max_tokens), _tokens(folder, own))]
        for side, own in splits.items()
    }


def _tokens(folder: Path, splits: Iterable[str]) -> Iterable[int]:
    for split in splits:
        if (folder / "raw" / f"{split}.json").is_file():
            for text in raw_texts(folder, split):
                yield -(-len(text) // LETTERS) + 1
