"""What a rate can move in bfloat16, and what a grid leaves of it: against steps that are taken."""

import json
from pathlib import Path
from typing import cast

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from transformers import PreTrainedModel

from remnant.cli import main
from remnant.errors import UserError
from remnant.forecast.checkpoint import Checkpoint, Floats
from remnant.forecast.grids import grid
from remnant.forecast.zone import zone
from remnant.functional.weights import movable
from remnant.methods import step
from remnant.parsing import parse
from remnant.records import OptimSpec, TrainSpec
from remnant.report import prediction
from remnant.trainable.parts import Part
from remnant.trainable.trainable import of_weights
from remnant.training.stepper import Stepper, movable_share, warning_of_rate
from tests.test_predict import LAYER, checkpoint

RATE = 6e-5


def spread(rows: int = 16, columns: int = 256, std: float = 0.05) -> torch.Tensor:
    weight = std * torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    weight[1, :9] = 0.0
    return weight.bfloat16().float()


@pytest.mark.parametrize("rate", [1e-6, 1e-5, 6e-5, 2e-4])
def test_what_can_move_is_what_a_step_moves(rate: float) -> None:
    weight = spread().bfloat16()
    parameter = nn.Parameter(weight.clone())
    spec = OptimSpec(weights="bf16", lr=rate)
    parameter.grad = torch.ones_like(weight)
    stepper = Stepper([Part(parameter)], spec)
    stepper.step(rate)
    moved = parameter.data != weight
    expected = movable(weight.float(), rate)
    # A step towards zero crosses into a finer binade from exactly a power of two.
    edge = weight.abs().log2() % 1 == 0
    assert torch.equal(moved | edge, expected | edge)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["int8", "int4-tensor", "int4", "int4-g128", "nf4", "fp4", "int3"])
def test_the_stream_counts_what_exact_tensors_count(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    weight = spread()
    folder = checkpoint(tmp_path / "target", {LAYER: weight}, dtype)
    found = zone(Checkpoint(folder), RATE, [grid(name)])
    reach, by = movable(weight, RATE), step(name)
    decoded = by.method.load()(weight, **by.spec.params).weight
    assert found.movable == pytest.approx(float(reach.double().mean()), abs=1e-9)
    share = float((decoded == 0)[reach].double().mean())
    assert found.in_zero_bin[name] == pytest.approx(share, abs=1e-9)


def test_groups_that_divide_no_row_are_left_out(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "target", {LAYER: spread(columns=72)})
    found = zone(Checkpoint(folder), RATE, [grid("int4-g128"), grid("int4")])
    assert set(found.in_zero_bin) == {"int4"}


def test_an_adapters_update_is_part_of_the_target(tmp_path: Path) -> None:
    weight = spread()
    target = Checkpoint(checkpoint(tmp_path / "target", {LAYER: weight}))
    doubled = target.moved(_Same())
    moved = zone(doubled, RATE, [grid("int4")])
    whole = Checkpoint(checkpoint(tmp_path / "twice", {LAYER: 2 * weight}))
    assert moved == zone(whole, RATE, [grid("int4")])


class _Same:
    def entries(self, first: int, weight: Floats) -> Floats:
        return weight


def test_the_command_says_what_will_come_back(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "target", {LAYER: spread(std=0.08)})
    run = CliRunner().invoke(main, ["predict", str(folder), "--lr", "6e-5", "-q", "int4"])
    assert run.exit_code == 0, run.output
    assert "expect the text back there" in " ".join(run.output.split())
    slow = CliRunner().invoke(main, ["predict", str(folder), "--lr", "1e-7", "-q", "int4"])
    assert "little may be forgotten at all" in " ".join(slow.output.split())


@pytest.mark.parametrize("more", [[], ["--lr", "1e-5", "OTHER"], ["--lr", "0"], ["--lr", "nan"]])
def test_a_forecast_needs_a_model_or_a_rate(more: list[str], tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "target", {LAYER: spread()})
    run = CliRunner().invoke(main, ["predict", str(folder), *more])
    assert run.exit_code == 2
    assert "Give" in run.output


def test_unlearning_warns_where_a_rate_moves_too_little() -> None:
    model = nn.Linear(256, 16, bias=False, dtype=torch.bfloat16)
    weight = model.weight = nn.Parameter(spread(std=0.2).bfloat16())
    moving = of_weights(cast(PreTrainedModel, model), [Part(weight)])
    low = OptimSpec(weights="bf16", lr=1e-5)
    share = movable_share(moving, low, 1e-5)
    said = warning_of_rate(moving, low, share)
    assert f"moves {share:.1%}" in said
    enough = float(said.rsplit(" ", 1)[1].rstrip("."))
    assert movable_share(moving, low, enough) >= 0.1 > movable_share(moving, low, enough / 2)
    for other in (low.model_copy(update={"lr": 1e-3}), OptimSpec(lr=1e-5)):
        assert not warning_of_rate(moving, other, movable_share(moving, other, other.lr))


def test_a_base_is_trained_at_rates_of_its_own() -> None:
    assert TrainSpec().lr == 6e-3
    from_base = TrainSpec(base="model")
    assert (from_base.lr, from_base.passes) == (2e-5, 5)
    asked = TrainSpec(base="model", lr=1e-4, steps=7)
    assert (asked.lr, asked.steps, asked.passes) == (1e-4, 7, None)
    again = TrainSpec.model_validate(json.loads(asked.model_dump_json()))
    assert again == asked
    with pytest.raises(UserError, match="the base model decides hidden"):
        parse(TrainSpec, {"base": "model", "hidden": 64}, "train")


def test_a_rate_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "target", {LAYER: spread()})
    with pytest.raises(UserError, match="no learning rate"):
        prediction.before(str(folder), 2.0, ["int4"], (), lambda *_: None)
