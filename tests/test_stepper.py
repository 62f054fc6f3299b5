"""The stepper against AdamW over copies of all parts at once, and what it holds while it steps."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from remnant.functional.weights import stochastic_round
from remnant.records import OptimSpec
from remnant.trainable.parts import Part
from remnant.training import stepper as module
from remnant.training.stepper import Stepper, storage_dtype

REGIMES = ["fp32", "bf16", "bf16-stochastic-rounding"]
SHAPES = [(40, 30), (30,), (16, 64), (8, 8)]


def parameters(regime: str, *, exact: bool) -> list[nn.Parameter]:
    """Weights as a regime stores them; ``exact``: as float32 tensors that hold these values."""
    noise = torch.Generator().manual_seed(3)
    stored = [torch.randn(s, generator=noise).to(storage_dtype(regime)) for s in SHAPES]
    return [nn.Parameter(value.float() if exact else value) for value in stored]


def parts_of(own: list[nn.Parameter], kind: str) -> list[Part]:
    """Whole parameters, or two slices and a mask of them."""
    if kind == "whole":
        return [Part(parameter) for parameter in own]
    mask = torch.arange(own[2].numel()).view(own[2].shape) % 3 == 0
    return [Part(own[0], slice(0, 7)), Part(own[0], slice(20, 31)), Part(own[2], mask)]


def gradients(own: list[nn.Parameter], step: int) -> None:
    """Fresh gradients; the last parameter has none in the second step."""
    noise = torch.Generator().manual_seed(step)
    for place, parameter in enumerate(own):
        values = torch.randn(parameter.shape, generator=noise).to(parameter.dtype)
        parameter.grad = None if step == 1 and place == len(own) - 1 else values


def all_at_once(parts: list[Part], own: list[nn.Parameter], spec: OptimSpec, steps: int) -> None:
    """Every part as a copy of its own, all of them under one optimiser of torch."""
    dtype = torch.bfloat16 if spec.weights == "bf16" else torch.float32
    copies = [nn.Parameter(part.read().to(dtype, copy=True)) for part in parts]
    betas = (0.9, spec.beta2)
    optimizer = torch.optim.AdamW(copies, spec.lr, betas, weight_decay=spec.weight_decay)
    noise = torch.Generator().manual_seed(spec.seed)
    for step in range(steps):
        gradients(own, step)
        for copy, part in zip(copies, parts, strict=True):
            found = part.gradient()
            copy.data.copy_(part.read())
            copy.grad = None if found is None else found.to(dtype)
        if spec.clip is not None:
            torch.nn.utils.clip_grad_norm_(copies, spec.clip)
        optimizer.step()
        for copy, part in zip(copies, parts, strict=True):
            if copy.grad is not None:
                values = copy.data
                sr = spec.weights == "bf16-stochastic-rounding"
                part.write(stochastic_round(values, noise) if sr else values)


def stepped(spec: OptimSpec, kind: str, *, exact: bool, steps: int = 4) -> list[Tensor]:
    own = parameters(spec.weights, exact=exact)
    moving = Stepper(parts_of(own, kind), spec)
    for step in range(steps):
        gradients(own, step)
        moving.step(spec.lr)
        assert all(part.parameter.grad is None for part in moving.parts)
    return [parameter.data for parameter in own]


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", ["whole", "slices"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_part_by_part_gives_the_bits_of_all_at_once(
    regime: Any, exact: bool, kind: str, clip: float | None
) -> None:
    spec = OptimSpec(lr=1e-2, weights=regime, clip=clip, weight_decay=0.1, seed=5)
    expected = parameters(regime, exact=exact)
    all_at_once(parts_of(expected, kind), expected, spec, 4)
    found = stepped(spec, kind, exact=exact)
    assert all(torch.equal(a.data, b) for a, b in zip(expected, found, strict=True))
    before = parameters(regime, exact=exact)
    assert not any(torch.equal(a.data, b) for a, b in zip(before[:1], found[:1], strict=True))


def test_no_copy_stays_behind_a_step() -> None:
    own = parameters("bf16", exact=False)
    moving = Stepper(parts_of(own, "whole"), OptimSpec(weights="bf16-stochastic-rounding"))
    gradients(own, 0)
    moving.step(1e-3)
    held = [p for optimizer in moving.optimizers for p in optimizer.param_groups[0]["params"]]
    assert sum(p.numel() for p in held) == 0


@pytest.mark.parametrize("regime", ["fp32", "bf16-stochastic-rounding"])
def test_the_fused_kernel_of_large_models_differs_in_last_bits_only(
    regime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = OptimSpec(lr=1e-2, weights=regime, clip=1.0, weight_decay=0.1)
    plain = stepped(spec, "whole", exact=False)
    monkeypatch.setattr(module, "FUSED_FROM", 1)
    fused = stepped(spec, "whole", exact=False)
    # Where a step is rounded to bfloat16, a last bit may tip it to the neighbour.
    close = 1e-6 if regime == "fp32" else 2**-7
    for a, b in zip(plain, fused, strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=close, atol=close / 10)
        assert float((a == b).float().mean()) > 0.9


def test_plain_bfloat16_is_never_stepped_by_the_fused_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FUSED_FROM", 1)
    own = parameters("bf16", exact=False)
    moving = Stepper(parts_of(own, "whole"), OptimSpec(weights="bf16"))
    assert not any(optimizer.param_groups[0]["fused"] for optimizer in moving.optimizers)
