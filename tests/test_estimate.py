"""The forecast of memory, time and fitting settings, against autograd, the models themselves and
slow search."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from transformers import PreTrainedModel

from remnant.cli import main
from remnant.errors import UserError
from remnant.estimate.fitting import cheapest, choices, largest_batch
from remnant.estimate.memory import (
    Text,
    kept_by_a_block,
    moving_of,
    of_moments,
    of_the_head,
    peak,
)
from remnant.estimate.needs import shape_from, steps_of
from remnant.estimate.shape import KNOWN, Shape, shape_of
from remnant.estimate.time import operations, seconds_of, step_of
from remnant.flow.node import Node
from remnant.flow.place import Made, Outside
from remnant.flow.store import Store
from remnant.flow.together import Spread
from remnant.functional.pieces import pieces
from remnant.model.blocks import blocks
from remnant.records import OptimSpec, TrainSpec, UnlearnSpec
from remnant.testing import tiny_model
from remnant.trainable.attach import attach
from remnant.training.stepper import Stepper

SHAPE = Shape(64, 64, 128, 2, 4, 2, 16)
TEXT = Text(batch=2, length=32)
REGIMES: list[dict[str, Any]] = [
    {},
    {"weights": "bf16"},
    {"train": {"lora": {"rank": 4}}},
    {"train": {"lora": {"rank": 4}}, "weights": "bf16"},
]


def model_in(spec: OptimSpec) -> PreTrainedModel:
    model = tiny_model()
    return model.bfloat16() if spec.weights == "bf16" else model


def kept_by_autograd(model: PreTrainedModel) -> int:
    """Bytes of what the second block saves, each storage once, without weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []
    inside = False

    def enter(*_: Any) -> None:
        nonlocal inside
        inside = True

    def leave(*_: Any) -> None:
        nonlocal inside
        inside = False

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if inside and storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        alive.append(value)
        return value

    second = blocks(model)[1]
    second.register_forward_pre_hook(enter)
    second.register_forward_hook(leave)
    mask = torch.ones(TEXT.batch, TEXT.length, dtype=torch.long)
    mask[1, 20:] = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        model(input_ids=torch.ones_like(mask), attention_mask=mask)
    return sum(sizes.values())


@pytest.mark.parametrize("settings", REGIMES, ids=str)
def test_what_a_block_keeps_is_what_autograd_saves(settings: dict[str, Any]) -> None:
    spec = OptimSpec.model_validate(settings)
    model = attach(model_in(spec), spec).model
    width = 2 if spec.weights == "bf16" else 4
    told = kept_by_a_block(SHAPE, TEXT, width, moving_of(SHAPE, spec).adapters)
    # Places of rotary embeddings, which all blocks share, are not counted.
    assert told == pytest.approx(kept_by_autograd(model), rel=0.02)


@pytest.mark.parametrize(
    "train",
    ["all", "matrices", ["layers.1.mlp"], ["lm_head"], {"lora": {"rank": 4}},
     {"lora": {"rank": 2, "targets": ["q_proj"]}}],
    ids=str,
)  # fmt: skip
def test_as_many_numbers_move_as_in_the_model_itself(train: Any) -> None:
    spec = OptimSpec.model_validate({"train": train})
    parts = attach(tiny_model(), spec).parts
    told = moving_of(SHAPE, spec)
    assert told.numbers == sum(part.size() for part in parts)
    assert told.largest == max(part.size() for part in parts)


def held(model: PreTrainedModel, spec: OptimSpec) -> int:
    """Bytes of the moments behind a step, maps of codes left out, which all blocks share."""
    moving = Stepper(attach(model, spec).parts, spec, None)
    for part in moving.parts:
        part.parameter.grad = torch.ones_like(part.parameter)
    moving.step(1e-3)
    states = [state for own in moving.optimizers for state in own.state.values()]
    named = {name for state in states for name in state} - {"step", "qmap1", "qmap2"}
    return sum(state[name].nbytes for state in states for name in named & set(state))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weights": "bf16"},
        {"moments": "bf16"},
        {"moments": "8bit", "train": ["mlp"]},  # parts of less than 4096 numbers keep float32
        {"update": "sign"},
    ],
    ids=str,
)
def test_moments_are_as_large_as_is_told(settings: dict[str, Any]) -> None:
    if settings.get("moments") == "8bit":
        pytest.importorskip("bitsandbytes")
    spec = OptimSpec.model_validate(settings)
    told = of_moments(spec, moving_of(SHAPE, spec))
    # Of every part also how many steps it took.
    assert told == pytest.approx(held(model_in(spec), spec), rel=0.001)


def test_a_shape_has_the_weights_of_the_model_with_its_configuration() -> None:
    for tied in (False, True):
        model = tiny_model(tie_word_embeddings=tied)
        shape = shape_of(model.config.to_dict())
        assert shape == SHAPE._replace(tied=tied)
        assert shape.weights == sum(p.numel() for p in model.parameters())


def test_a_model_of_another_build_is_refused_by_its_kind() -> None:
    with pytest.raises(UserError, match="of the kind 'mamba'"):
        shape_of({"model_type": "mamba"})


def test_the_peak_is_no_less_than_any_moment_of_a_step_by_hand() -> None:
    spec = OptimSpec()
    found = peak(SHAPE, spec, TEXT)
    parameters = 4 * SHAPE.weights
    stepped = parameters * 4 + found.libraries
    assert found.total >= stepped
    assert found.weights == parameters
    assert found.moments == 2 * parameters


def test_more_of_anything_needs_more_memory() -> None:
    spec, shape = OptimSpec(), KNOWN["1B"]
    text = Text(4, 512, 2)
    base = peak(shape, spec, text).total
    for more in (text._replace(batch=8), text._replace(length=1024), text._replace(cached=10**6)):
        assert peak(shape, spec, more).total > base
    assert peak(shape._replace(layers=17), spec, text).total > base
    assert peak(shape, OptimSpec(checkpointing=True), text).total < base
    assert peak(shape, spec, text, shards=8).total < base


@pytest.mark.parametrize("tokens", [1, 300, 511, 512, 4000])
def test_pieces_of_logits_are_as_large_as_they_are_made(tokens: int) -> None:
    shape, text = SHAPE._replace(vocabulary=49152), Text(1, tokens)
    largest = max(p.stop - p.start for p in pieces(tokens, shape.vocabulary))
    frozen = moving_of(shape, OptimSpec.model_validate({"train": ["mlp"]}))
    told = of_the_head(shape, text, 4, frozen, divergence=False) / 4
    # The last piece may be shorter than the others by a text's rows.
    assert told == pytest.approx(4 * largest * shape.vocabulary, rel=0.01)
    whole = of_the_head(shape, text, 4, frozen, divergence=False, whole=True)
    assert whole == 4 * 4 * tokens * shape.vocabulary


def test_devices_share_weights_and_moments_but_neither_adapters_nor_what_is_gathered() -> None:
    shape, text = KNOWN["1B"], Text(1, 512, 2, 100 * 512, divergence=True)
    one, eight = (peak(shape, OptimSpec(checkpointing=True), text, n) for n in (1, 8))
    assert (eight.weights, eight.moments) == (one.weights // 8, one.moments // 8)
    assert eight.cache == one.cache
    gathered = 4 * (shape.table + 2 * shape.block)
    assert eight.total > one.libraries + one.cache + (one.weights + one.moments) // 8 + gathered
    spec = OptimSpec.model_validate({"train": {"lora": {"rank": 4}}, "checkpointing": True})
    one, eight = (peak(shape, spec, text, n) for n in (1, 8))
    numbers = moving_of(shape, spec).numbers
    assert one.moments == eight.moments == 8 * numbers
    assert eight.weights - 4 * numbers == (one.weights - 4 * numbers) // 8


def test_several_devices_are_proposed_nothing_that_they_refuse() -> None:
    spec, text = UnlearnSpec(method="ga_gdr"), Text(8, 512, 2)
    alone, four = (
        [*choices(KNOWN["1B"], spec, text, spread)] for spread in (Spread(), Spread(4, 2))
    )
    refused = [c for c in alone if "8bit" in str(c.settings) or "nf4" in str(c.settings)]
    assert len(refused) == 2
    assert [c.settings for c in four] == [c.settings for c in alone if c not in refused]
    assert all(b.peak.weights <= a.peak.weights for a, b in zip(alone, four, strict=False))


def test_the_first_setting_that_fits_is_chosen_and_none_below_all() -> None:
    spec, text = UnlearnSpec(method="ga_gdr"), Text(8, 512, 2)
    found = list(choices(KNOWN["1B"], spec, text))
    for choice in found:
        chosen = cheapest(KNOWN["1B"], spec, text, choice.peak.total)
        slow = next(c for c in found if c.peak.total <= choice.peak.total)
        assert chosen == slow
    assert cheapest(KNOWN["1B"], spec, text, min(c.peak.total for c in found) - 1) is None


def test_every_setting_that_is_proposed_can_be_given() -> None:
    for train in ("all", {"lora": {"rank": 4}}):
        spec = UnlearnSpec.model_validate({"method": "ga_gdr", "train": train})
        for choice in choices(SHAPE, spec, Text(8, 64, 2)):
            assert UnlearnSpec.model_validate(choice.spec.model_dump()) == choice.spec


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    spec, text, shape = OptimSpec(checkpointing=True), Text(1, 512, 2), KNOWN["1B"]
    free = 40 * 10**9
    batch = largest_batch(shape, spec, text, free)
    sizes = [peak(shape, spec, text._replace(batch=b)).total for b in range(1, batch + 2)]
    assert batch == sum(size <= free for size in sizes)
    assert largest_batch(shape, spec, text, 10**9) == 0


class Fast:
    """A machine of round numbers."""

    matmul, half, copy = 1e12, 4e12, 1e11


def test_operations_are_six_for_every_weight_and_token_and_more_with_checkpointing() -> None:
    short = Text(1, 1)
    matrices = sum(a * b for a, b in SHAPE.matrices().values())
    attention = 12 * SHAPE.layers * SHAPE.query
    logits = 8 * SHAPE.table
    assert operations(SHAPE, OptimSpec(), short) == 6 * matrices + attention + logits
    again = operations(SHAPE, OptimSpec(checkpointing=True), short)
    assert again == 8 * matrices + attention * 4 / 3 + logits


def test_options_of_the_optimiser_have_their_own_passes_and_copies() -> None:
    text, numbers = Text(1, 1), SHAPE.weights
    plain, *others = (
        UnlearnSpec.model_validate({"method": "ga", "update": update})
        for update in (None, "sign", "zeroth", "sam", "rectified")
    )
    work = [operations(SHAPE, spec, text) / operations(SHAPE, plain, text) for spec in others]
    assert work[0] == work[3] == 1
    assert work[2] == 2
    matrices = sum(a * b for a, b in SHAPE.matrices().values())
    forward = 2 * matrices + 4 * SHAPE.layers * SHAPE.query + 2 * SHAPE.table
    assert operations(SHAPE, others[1], text) == 2 * forward
    weights, moments = peak(SHAPE, plain, text).weights, peak(SHAPE, plain, text).moments
    found = [peak(SHAPE, spec, text) for spec in others]
    assert [p.weights - weights for p in found] == [0, 8 * numbers, 8 * numbers, 8 * numbers]
    assert [p.moments for p in found] == [0, 0, moments, moments]


def test_looking_at_rounded_weights_takes_two_passes_and_their_memory() -> None:
    plain, on_grids, bf16 = (
        UnlearnSpec.model_validate({"method": "ga"} | more)
        for more in ({}, {"grids": "int4,nf4"}, {"grids": "int4", "weights": "bf16"})
    )
    rounded = sum(a * b for a, b in SHAPE.matrices().values())
    one, two = (step_of(SHAPE, spec, TEXT, Fast()) for spec in (plain, on_grids))
    assert two.products == pytest.approx(2 * one.products)
    assert two.between > 2 * one.between
    assert two.optimiser == one.optimiser
    held = peak(SHAPE, on_grids, TEXT).weights - peak(SHAPE, plain, TEXT).weights
    assert held == 5 * rounded
    assert peak(SHAPE, bf16, TEXT).weights == 2 * SHAPE.weights + 7 * rounded


def test_a_promise_takes_longer_the_more_grids_and_text_it_reads() -> None:
    def made(*grids: str) -> UnlearnSpec:
        return UnlearnSpec.model_validate({"method": "ga", "promise": grids or None})

    text = TEXT._replace(forget=1000)

    def seconds(spec: UnlearnSpec, of: Text = text) -> float:
        return seconds_of(SHAPE, spec, of, Fast()) - seconds_of(SHAPE, made(), of, Fast())

    assert seconds(made()) == 0
    assert 0 < seconds(made("int4")) < seconds(made("int4", "nf4"))
    longer = seconds(made("int4"), text._replace(forget=2000)) - seconds(made("int4"))
    assert longer == pytest.approx(12 * 2 * 2 * SHAPE.weights * 1000 / Fast().matmul)
    # What it holds lies behind the last step; on a long text a step holds more.
    short, long = (Text(1, 1), Text(64, 512))
    assert peak(SHAPE, made("int4"), short).around > peak(SHAPE, made(), short).around
    assert peak(SHAPE, made("int4"), long).total == peak(SHAPE, made(), long).total


def test_time_grows_with_steps_and_falls_with_speed() -> None:
    text = Text(2, 64, 2)
    one = sum(step_of(SHAPE, OptimSpec(), text, Fast()))
    ten, twenty = (seconds_of(SHAPE, OptimSpec(steps=n), text, Fast()) for n in (10, 20))
    assert twenty - ten == pytest.approx(10 * one)
    half = step_of(SHAPE, OptimSpec(weights="bf16"), text, Fast())
    assert half.products == pytest.approx(step_of(SHAPE, OptimSpec(), text, Fast()).products / 4)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "raw").mkdir(parents=True)
    (folder / "corpus.json").write_text(json.dumps({"absent": {}, "answer_tokens": 8}))
    for split in ("forget", "retain1"):
        (folder / "raw" / f"{split}.json").write_text(json.dumps(["x" * 400, "y" * 80]))
    return folder


def told(*command: str) -> str:
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    return done.output


def test_an_estimate_is_told_and_nothing_is_run(tmp_path: Path, corpus: Path) -> None:
    model, store = tmp_path / "model", tmp_path / "runs"
    model.mkdir()
    config = tiny_model().config.to_dict()
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    common = ("--data", str(corpus), "--store", str(store), "--estimate")
    for command in (("unlearn", str(model), "--method", "npo_klr"), ("measure", str(model))):
        said = told(*command, *common)
        assert "fits" in said
        assert "Nothing was run." in said
    spread = ("--devices", "4", "--replicate", "2")
    said = told("unlearn", str(model), "--method", "npo_klr", *spread, *common)
    assert "So much on each of 4 devices" in said
    said = told("transform", str(model), "--use", "int4", "--store", str(store), "--estimate")
    assert "peak memory" in said
    assert not list(store.rglob("model.safetensors"))


def test_a_sweep_is_estimated_before_any_of_its_models_is_there(tmp_path: Path) -> None:
    said = told("plan", "demo", "--estimate", "--store", str(tmp_path / "runs"))
    rows = [line.split()[0] for line in said.splitlines()]
    assert {"train", "unlearn", "transform", "measure"} <= set(rows)
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


def test_passes_are_as_many_steps_as_the_training_takes(tmp_path: Path, corpus: Path) -> None:
    settings: dict[str, Any] = {"base": "m", "passes": 3, "batch_size": 3, "accumulate": 2}
    store, place = Store(tmp_path / "runs"), Made("prepare-0", "0")
    shutil.copytree(corpus, store.path(place.name))

    def told_of(**more: Any) -> int | None:
        spec = TrainSpec(**settings, **more)
        return steps_of(store, Node("train", spec, {"corpus": place}), spec)

    # Texts of 400 and 80 letters on each of two sides: of 101 and 21 tokens, about.
    assert told_of(examples="questions") == math.ceil(3 * math.ceil(4 / 3) / 2)
    assert told_of(block_tokens=10) == math.ceil(3 * ((2 * 101 + 2 * 21) // 10 // 3) / 2)
    shutil.rmtree(store.path(place.name))
    assert told_of(examples="questions") is None


def test_a_gguf_file_tells_the_shape_that_its_configuration_does(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    config = tiny_model().config
    shape = shape_of(config.to_dict())
    writer.add_token_list([str(i) for i in range(shape.vocabulary)])
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.inner)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    if not shape.tied:
        writer.add_tensor("output.weight", np.zeros((shape.vocabulary, shape.width), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = shape_from(Store(tmp_path / "runs"), Outside(str(tmp_path / "m.gguf")))
    assert found == shape._replace(saved=found.saved)
