"""Checkpoints: how often, two generations, and a run that is killed anywhere and goes on."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remnant.records import OptimSpec
from remnant.testing import tiny_model
from remnant.trainable.layers import everything
from remnant.training import checkpoints
from remnant.training.checkpoints import GENERATIONS, Pace
from remnant.training.loop import fit
from tests.conftest import hearing

STEPS = 6


def trained(folder: Path, told: Callable[[int, int, str], None], pause: float = 0.0) -> bytes:
    """The weights behind a short run in a folder, as bytes."""
    torch.manual_seed(0)
    model = tiny_model(vocab=64, hidden_size=16, intermediate_size=16)

    def loss_at(micro: int) -> tuple[Tensor, dict[str, float]]:
        time.sleep(pause)
        values = [(p.float() * (micro + 1)).square().mean() for p in model.parameters()]
        loss = torch.stack(values).sum()
        return loss, {"loss": loss.item()}

    folder.mkdir(exist_ok=True)
    spec = OptimSpec(steps=STEPS, lr=1e-2, weights="bf16-stochastic-rounding", compute="fp32")
    fit(everything(model), spec, loss_at, folder, hearing(told))
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters())


def unheard(done: int, total: int, note: str) -> None:
    """Nobody watches."""


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint behind every step."""
    monkeypatch.setattr(checkpoints, "apart", lambda size, model: -1.0)
    monkeypatch.setattr(checkpoints, "SHARE", 1e9)


def test_a_run_that_is_cut_at_any_rename_ends_with_the_same_bits(
    often: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(tmp_path / "whole", unheard)
    moves: list[str] = []
    real = os.replace

    def counted(source: Any, target: Any) -> None:
        moves.append(str(target))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("remnant.durable.os.replace", counted)
        trained(tmp_path / "counted", unheard)
    assert len(moves) > 2 * STEPS - 2
    for cut in range(len(moves)):
        left = iter(range(cut))

        def power_cut(source: Any, target: Any, left: Any = left) -> None:
            if next(left, None) is None:
                raise SystemExit
            real(source, target)

        folder = tmp_path / f"cut-{cut}"
        with monkeypatch.context() as patch:
            patch.setattr("remnant.durable.os.replace", power_cut)
            with pytest.raises(SystemExit):
                trained(folder, unheard)
        begun: list[int] = []

        def listen(done: int, total: int, note: str, told: list[int] = begun) -> None:
            told.append(done)

        assert trained(folder, listen) == whole
        # No more is lost than what came behind the last whole checkpoint.
        assert not begun or begun[0] >= cut // 2


@pytest.mark.parametrize("seed", range(4))
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(
    seed: int, often: None, tmp_path: Path
) -> None:
    whole = trained(tmp_path / "whole", unheard)
    chance = random.Random(seed)
    folder, kills = tmp_path / "killed", 0
    for _ in range(5):
        child = os.fork()
        if not child:
            try:
                # A whole run takes longer than the longest wait, so that the first one is killed.
                trained(folder, unheard, pause=0.4 / STEPS)
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0.0, 0.25))
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert trained(folder, unheard) == whole
    assert kills


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    damaged: int, often: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trained(tmp_path, unheard)
    for name in GENERATIONS[:damaged]:
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-9])
    done: list[int] = []
    assert trained(tmp_path, lambda step, total, note: done.append(step)) == whole
    assert done == ([] if damaged == 1 else list(range(1, STEPS + 1)))
    assert "damaged" in capsys.readouterr().err


def test_no_more_than_two_generations_lie_on_the_disk(often: None, tmp_path: Path) -> None:
    seen: set[str] = set()

    def look(done: int, total: int, note: str) -> None:
        seen.update(path.name for path in tmp_path.iterdir())

    trained(tmp_path, look)
    assert seen == {*GENERATIONS, "steps.jsonl"}


@pytest.mark.parametrize("cost", [0.01, 1.0, 20.0])
@pytest.mark.parametrize("guess", [0.01, 1.0, 20.0])
def test_checkpoints_take_at_most_their_share_of_the_time(cost: float, guess: float) -> None:
    now = 0.0

    def save() -> None:
        nonlocal now
        now += cost
        at.append(now)

    at: list[float] = []
    pace = Pace(int(guess * checkpoints.SPEED), int(1e15), lambda: now)
    while now < 5000.0:
        now += 1.0
        if pace.due():
            pace.timed(save)
    assert len(at) * cost <= checkpoints.SHARE * now
    # They are not rarer than need be either.
    most = min(now / checkpoints.LEAST_SECONDS, checkpoints.SHARE * now / cost)
    assert len(at) >= 0.8 * most - 1


def test_checkpoints_spare_the_disk_but_not_at_the_cost_of_much_work() -> None:
    # An adapter of a thousandth of the model may be written often, a whole state every ten minutes.
    assert checkpoints.apart(10**6, 10**9) == checkpoints.LEAST_SECONDS
    assert checkpoints.apart(3 * 10**9, 10**9) == checkpoints.AT_STAKE
    # In between at most so much of the model is written a minute.
    seconds = checkpoints.apart(10**8, 10**9)
    assert 10**8 * 60 / seconds == pytest.approx(checkpoints.WRITTEN * 10**9)


def test_a_run_is_known_by_the_same_sums_in_pieces_as_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, spec = tiny_model(), OptimSpec()
    at_once = checkpoints.fingerprint(model, spec)
    monkeypatch.setattr(checkpoints, "PIECE", 1000)
    assert checkpoints.fingerprint(model, spec) == at_once
    next(model.parameters()).data[0, 0] += 1
    assert checkpoints.fingerprint(model, spec) != at_once
