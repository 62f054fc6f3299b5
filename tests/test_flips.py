"""Survival of an update: by hand, at both ends, and against the theory of a uniform position in a
bin."""

import math

import pytest
import torch

from remnant.functional.flips import expected_noise, sums
from remnant.functional.quantized import Quantized
from remnant.functional.quantizers import rtn
from remnant.functional.survival import Sums, survival


def quantized(weight: torch.Tensor, step: float = 1.0) -> Quantized:
    codes = (weight / step).round()
    return Quantized(codes.to(torch.int8), torch.full((1, 1), step), None, codes * step)


def of(target: torch.Tensor, unlearned: torch.Tensor, step: float = 1.0) -> Sums:
    return sums(target, unlearned, quantized(target, step), quantized(unlearned, step))


def test_by_hand() -> None:
    # Updates 0.4 (stays in its bin), 0.4 (crosses from 0 to 1), 0.2 inside the zero bin, and 0.
    target, unlearned = torch.tensor([[2.0, 0.3, 0.1, 5.0]]), torch.tensor([[2.4, 0.7, 0.3, 5.0]])
    found = of(target, unlearned)
    assert (found.weights, found.changed, found.same_code, found.erased) == (4, 3, 3, 1)
    said = survival(found)
    assert said.gain is not None
    assert said.gain == pytest.approx(0.4 / (0.16 + 0.16 + 0.04), rel=1e-5)
    assert said.cosine == pytest.approx(0.4 / 0.6, rel=1e-5)
    assert said.same_codes == 0.75
    assert said.in_zero_bin == pytest.approx(1 / 3)
    assert said.update_over_scale == pytest.approx(1 / 3)
    assert said.changed == 0.75
    residual = [0 - said.gain * 0.4, 1 - said.gain * 0.4, 0 - said.gain * 0.2]
    assert said.signal_to_noise == pytest.approx(
        said.gain * 0.6 / sum(r * r for r in residual) ** 0.5, rel=1e-5
    )


def test_both_ends() -> None:
    weight = torch.linspace(-0.4, 0.4, 9)[None]
    erased = survival(of(weight, weight + 0.05))
    assert (erased.gain, erased.same_codes, erased.in_zero_bin) == (0.0, 1.0, 1.0)
    assert erased.cosine is None
    whole = survival(of(weight, weight + 3.0))
    assert whole.gain == pytest.approx(1.0)
    assert whole.cosine == pytest.approx(1.0)
    assert whole.same_codes == 0.0
    nothing = survival(of(weight, weight))
    assert nothing.gain is None
    assert nothing.in_zero_bin is None


def test_sums_of_parts_add_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(8, 64, generator=generator)
    unlearned = target + 0.05 * torch.randn(8, 64, generator=generator)
    whole = sums(target, unlearned, rtn(target), rtn(unlearned))
    halves = [
        sums(t, u, rtn(t), rtn(u)) for t, u in zip(target.split(4), unlearned.split(4), strict=True)
    ]
    assert tuple(halves[0].plus(halves[1])) == pytest.approx(tuple(whole))


@pytest.mark.parametrize("size", [0.03, 0.2, 0.7, 1.6])
def test_a_uniform_position_keeps_the_update_and_adds_the_expected_noise(size: float) -> None:
    target = torch.rand(1, 200_000, generator=torch.Generator().manual_seed(1)) * 40 - 20
    found = of(target, target + size)
    said = survival(found)
    noise = float(expected_noise(torch.tensor(size), 1.0))
    assert said.gain == pytest.approx(1.0, abs=0.03)
    variance = found.restored / found.weights - size**2
    assert variance == pytest.approx(noise, rel=0.05)
    assert said.cosine == pytest.approx(size / math.sqrt(size**2 + noise), rel=0.03)
