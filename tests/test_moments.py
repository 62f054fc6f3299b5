"""Moments in less than float32: the steps by hand, what is kept of them, where they are refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from remnant.errors import UserError
from remnant.functional.weights import stochastic_round
from remnant.records import OptimSpec
from remnant.trainable.parts import Part
from remnant.training import gradients
from remnant.training.stepper import Stepper

SPEC: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "beta2": 0.99, "seed": 3}
STEPS = 4
BLOCK = 256


def noise(step: int, size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(step))


def stepped(spec: OptimSpec, parts: list[Part]) -> Stepper:
    """Some steps along known gradients."""
    moving = Stepper(parts, spec)
    for step in range(STEPS):
        for part in parts:
            grad = noise(step, part.parameter.numel()).view(part.parameter.shape)
            part.parameter.grad = grad.to(part.parameter.dtype)
        moving.step(spec.lr)
    return moving


def by_hand(spec: OptimSpec, start: Tensor, kept: Any) -> Tensor:
    """AdamW by its formulas, its moments going through a function behind every step."""
    value, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(STEPS):
        grad = noise(step, start.numel())
        value = value * (1 - spec.lr * spec.weight_decay)
        first = 0.9 * first + 0.1 * grad
        second = spec.beta2 * second + (1 - spec.beta2) * grad**2
        mean, square = first / (1 - 0.9 ** (step + 1)), second / (1 - spec.beta2 ** (step + 1))
        value = value - spec.lr * mean / (square.sqrt() + 1e-8)
        first, second = kept(first, signed=True), kept(second, signed=False)
    return value


def nearest(values: Tensor, *, signed: bool) -> Tensor:
    """The nearest code in every block, times the largest number of the block."""
    functional = pytest.importorskip("bitsandbytes.functional")
    codes = functional.create_dynamic_map(signed=signed)
    found = []
    for block in values.split(BLOCK):
        largest = block.abs().max()
        places = (block[:, None] / largest - codes).abs().argmin(1)
        found.append(codes[places] * largest)
    return torch.cat(found)


def test_moments_of_bfloat16_are_rounded_behind_every_step() -> None:
    spec = OptimSpec(moments="bf16", **SPEC)
    drawn = torch.Generator().manual_seed(spec.seed)
    own = nn.Parameter(noise(9, 500))
    want = by_hand(spec, own.data, lambda v, signed: stochastic_round(v, drawn).float())
    moving = stepped(spec, [Part(own)])
    assert torch.allclose(own.data, want, rtol=1e-6, atol=1e-7)
    (state,) = moving.optimizers[0].state.values()
    assert {state[name].dtype for name in ("exp_avg", "exp_avg_sq")} == {torch.bfloat16}
    exact = by_hand(spec, noise(9, 500), lambda v, signed: v)
    assert not torch.allclose(own.data, exact, rtol=1e-6, atol=1e-7)


def test_a_second_moment_of_bfloat16_shrinks_as_one_of_float32_does() -> None:
    """To the nearest it would stay what it is for ever."""
    spec = OptimSpec(moments="bf16", lr=1e-3)
    own = nn.Parameter(torch.ones(2000))
    moving = Stepper([Part(own)], spec)
    for step in range(300):
        own.grad = torch.full_like(own, 1.0 if step == 0 else 0.0)
        moving.step(spec.lr)
    (state,) = moving.optimizers[0].state.values()
    want = (1 - spec.beta2) * spec.beta2**299
    assert float(state["exp_avg_sq"].float().mean()) == pytest.approx(want, rel=0.02)
    stuck = torch.tensor(1 - spec.beta2).bfloat16()
    assert (stuck * spec.beta2).bfloat16() == stuck


def test_moments_of_8_bits_are_codes_behind_every_step() -> None:
    spec = OptimSpec(moments="8bit", **SPEC)
    start = noise(9, 20 * BLOCK)
    own = nn.Parameter(start.clone())
    want = by_hand(spec, start, nearest)
    moving = stepped(spec, [Part(own)])
    # On the processor some three of a hundred small numbers go to the second nearest code.
    exact = by_hand(spec, start, lambda v, signed: v)
    near, far = ((own.data - other).abs() > 1e-6 for other in (want, exact))
    assert float(near.float().mean()) < 0.05
    assert float(far.float().mean()) > 0.9
    (state,) = moving.optimizers[0].state.values()
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8
    small = Stepper([Part(nn.Parameter(torch.ones(8)))], spec)
    small.parts[0].parameter.grad = torch.ones(8)
    small.step(spec.lr)
    (state,) = small.optimizers[0].state.values()
    assert state["state1"].dtype == torch.float32


@pytest.mark.parametrize("moments", ["bf16", "8bit"])
def test_what_a_mask_leaves_out_stands_still(moments: Any) -> None:
    if moments == "8bit":
        pytest.importorskip("bitsandbytes")
    spec = OptimSpec(moments=moments, weights="bf16-stochastic-rounding", **SPEC)
    own = nn.Parameter(noise(9, 128 * 96).view(128, 96).bfloat16())
    before = own.data.clone()
    mask = torch.arange(own.numel()).view(own.shape) % 2 == 0
    stepped(spec, [Part(own, mask)])
    assert torch.equal(own.data[~mask], before[~mask])
    assert float((own.data[mask] != before[mask]).float().mean()) > 0.9


def test_float32_written_out_is_the_same_piece_of_work() -> None:
    assert OptimSpec(moments="fp32") == OptimSpec()
    assert "moments" not in OptimSpec().identity()
    assert OptimSpec(moments="bf16").identity()["moments"] == "bf16"


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"weights": "bf16"}, "in bf16 already"), ({"update": "sign"}, "keeps no moments")],
)
def test_where_there_is_nothing_to_narrow_it_is_refused(
    settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        OptimSpec.model_validate({"moments": "8bit"} | settings)
    lora = OptimSpec.model_validate(
        {"moments": "8bit", "weights": "bf16", "train": {"lora": {"rank": 4}}}
    )
    assert lora.moments == "8bit"


def test_shards_do_not_divide_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "count", lambda: 2)
    with pytest.raises(UserError, match=r"Use moments = bf16, or one device\."):
        gradients.check_steps(OptimSpec(moments="8bit"))
    gradients.check_steps(OptimSpec(moments="bf16"))
    adapters = {"moments": "8bit", "train": {"lora": {"rank": 4}}}
    gradients.check_steps(OptimSpec.model_validate(adapters))
