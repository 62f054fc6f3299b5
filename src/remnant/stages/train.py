"""train: corpus -> a model that has read some of its splits, from scratch or from a base model."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.context import Context
from remnant.corpus.prepared import raw_texts
from remnant.errors import UserError
from remnant.functional.losses import gdr
from remnant.lab.shapes import fresh_model
from remnant.model.blocks import blocks, said
from remnant.model.data import batch_order, pack
from remnant.model.door import check_plain
from remnant.model.examples import Example, batch_of, pool_of
from remnant.model.head import trained_head
from remnant.model.load import context_length, in_dtype, on_device, open_tokenizer
from remnant.model.saving import LEFT_BY_MODELS, check_saving, save
from remnant.model.shardfiles import saved_by_rows
from remnant.model.whole import DIVERGED, check_finite, check_ids
from remnant.ranks import gathered, own, spread
from remnant.records import TrainResult, TrainSpec
from remnant.stages.examples import questions_of
from remnant.trainable.attach import attach
from remnant.training.checkpoints import LEFT
from remnant.training.loop import fit, last_of
from remnant.training.stepper import in_regime, opened, storage_dtype

LEAVES = (*LEFT_BY_MODELS, "steps.jsonl")
GOES_ON_FROM = (*LEFT, "steps.jsonl")


def run(spec: TrainSpec, inputs: Mapping[str, Path], out: Path, work: Context) -> TrainResult:
    """Train and save the model."""
    work.models.clear()
    corpus = inputs["corpus"]
    base = str(inputs.get("base", spec.base)) if spec.base else None
    if base:
        check_plain(base, "packed weights cannot be trained")
    tokenizer = open_tokenizer(base or str(corpus / "tokenizer"))
    if base:
        model, collect = opened(base, work.place.device, spec)
    else:
        fresh = on_device(fresh_model(spec, tokenizer), work.place.device)
        collect = spread(fresh, blocks)
        model = in_regime(fresh, spec).eval()
    check_saving(model, tokenizer)
    check_ids(model, tokenizer)
    make = epochs_of_documents if spec.examples == "documents" else epochs_of_questions
    epochs = make(spec, tokenizer, corpus, context_length(model))
    spec = _with_steps(spec, epochs.batches)
    moving = attach(model, spec)
    loss_at = _loss(model, tokenizer.pad_token_id, epochs)
    steps, _ = fit(moving, spec, loss_at, out, work)
    if not saved_by_rows(model):
        collect()
    model = moving.settle()
    in_dtype(model, storage_dtype(spec.weights))
    check_finite(model, "the trained model", DIVERGED)
    save(model, tokenizer, out)
    return TrainResult(
        steps=steps,
        loss=last_of(out / "steps.jsonl", "loss"),
        parameters=sum(p.numel() for p in model.parameters()),
    )


class Epochs(NamedTuple):
    """What is trained on: how many batches an epoch has, and by epoch and place the examples of
    one.
    """

    batches: int
    batch: Callable[[int, int], list[Example]]


def epochs_of_documents(
    spec: TrainSpec, tokenizer: PreTrainedTokenizerBase, corpus: Path, context: int
) -> Epochs:
    """Blocks of packed documents."""
    if spec.block_tokens > context:
        raise UserError(
            (
                f"Blocks of {spec.block_tokens} tokens are longer than the model's context of "
                f"{context}."
            ),
            "Lower train.block_tokens or raise train.context.",
        )
    texts = [text for split in spec.splits for text in raw_texts(corpus, split)]
    blocks = _Blocks(tokenizer, texts, spec)
    if not blocks.of(0):
        raise UserError(
            f"There is no text to train on (splits: {', '.join(spec.splits) or 'none'}).",
            "Name other splits of the corpus; a retrain model never reads the forget split.",
        )

    def batch(epoch: int, place: int) -> list[Example]:
        own = blocks.of(epoch)
        size = min(spec.batch_size, len(own))
        first = place * spec.batch_size
        return pool_of([own[(first + i) % len(own)] for i in range(size)]).examples

    return Epochs(blocks.batches, batch)


def epochs_of_questions(
    spec: TrainSpec, tokenizer: PreTrainedTokenizerBase, corpus: Path, context: int
) -> Epochs:
    """Questions with their answers, each once in every epoch; the last batch may be smaller."""
    examples = questions_of(spec, tokenizer, corpus)
    count = len(examples)
    longest = max(examples, key=lambda example: len(example.ids))
    if len(longest.ids) > context:
        raise UserError(
            (
                f"The question {longest.id} has {len(longest.ids)} tokens with its answer, more "
                f"than the model's context of {context}."
            ),
            "Leave it out of the corpus, or raise train.context.",
        )

    def batch(epoch: int, place: int) -> list[Example]:
        order = batch_order(count, count, epoch, spec.seed)
        first = place * spec.batch_size
        return [examples[i] for i in order[first : first + spec.batch_size]]

    return Epochs(-(-count // spec.batch_size), batch)


class _Blocks:
    """Blocks of packed text, packed anew in every epoch, so that neighbours in a block do not
    become a cue.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, texts: list[str], spec: TrainSpec
    ) -> None:
        self._packed: dict[int, list[list[int]]] = {}
        self._pack = partial(pack, tokenizer, texts, spec.block_tokens)
        self._seed = spec.seed * 100_003
        # Epochs differ a little in their number of blocks; the first one sets how many batches
        # every epoch has.
        self.batches = max(1, len(self.of(0)) // spec.batch_size)

    def of(self, epoch: int) -> list[list[int]]:
        """The blocks of one epoch."""
        if epoch not in self._packed:
            self._packed.clear()
            self._packed[epoch] = self._pack(seed=self._seed + epoch)
        return self._packed[epoch]


def _with_steps(spec: TrainSpec, batches: int) -> TrainSpec:
    """The steps that some passes over the text or the questions are."""
    if spec.passes is None:
        return spec
    return spec.model_copy(update={"steps": -(-spec.passes * batches // spec.accumulate)})


def _loss(
    model: PreTrainedModel, pad: int, epochs: Epochs
) -> Callable[[int], tuple[Tensor, dict[str, float]]]:
    """Cross entropy on the counted tokens, averaged over texts."""
    head = trained_head(model)

    def loss_at(micro: int) -> tuple[Tensor, dict[str, float]]:
        examples = epochs.batch(*divmod(micro, epochs.batches))
        batch = batch_of(own(examples), pad, model.device)
        with torch.enable_grad():
            loss = gathered(gdr(said(model, batch, head)), len(examples)).mean()
        return loss, {"loss": loss.item()}

    return loss_at
