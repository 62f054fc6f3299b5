"""Noise on weights: of the size that is asked for, and of every weight's own kind."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.functional.noise import noise, shrink_and_perturb
from remnant.methods import step
from remnant.model.load import matrices, open_model
from remnant.stages import transform
from remnant.testing import tiny_model
from tests.conftest import silent


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_is_as_large_as_a_share_of_the_weights_own_size() -> None:
    weight = 3e-4 * torch.randn(200, 300, generator=generator(0)) + 1e-4
    rms = sum(x * x for row in weight.tolist() for x in row) ** 0.5 / (200 * 300) ** 0.5
    for scale in (0.01, 0.1, 1.0):
        added = (noise(weight, generator(1), scale=scale).double() - weight.double()) / rms
        assert abs(float(added.std()) - scale) < 0.01 * scale
        assert abs(float(added.mean())) < 0.02 * scale
    slowly = weight + 0.1 * rms * torch.randn(200, 300, generator=generator(1))
    assert torch.allclose(noise(weight, generator(1), scale=0.1), slowly, rtol=1e-6, atol=1e-10)


def test_no_noise_changes_nothing_and_a_seed_says_which() -> None:
    weight = torch.randn(5, 7, generator=generator(0))
    assert torch.equal(noise(weight, generator(1), scale=0.0), weight)
    assert torch.equal(noise(weight, generator(1)), noise(weight, generator(1)))
    assert not torch.equal(noise(weight, generator(1)), noise(weight, generator(2)))


@pytest.mark.parametrize("name", ["noise", "noise-1", "noise11", "noise0,1", "noise1e9"])
def test_sizes_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(UserError):
        step(name) if name != "noise" else step("noise", {"params": {"scale": float("nan")}})


def test_a_model_gets_the_same_noise_as_its_target(
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    folder_of: Callable[[PreTrainedModel, str], Path],
) -> None:
    model = tiny_model(vocab=len(tokenizer))
    signs = tiny_model(vocab=len(tokenizer))
    with torch.no_grad():
        for matrix in matrices(signs):
            matrix.write(-matrix.read())  # of the same size, so that noise alone is compared
    added: list[dict[str, Tensor]] = []
    for name, one in {"a": model, "b": signs}.items():
        out = tmp_path / f"out-{name}"
        out.mkdir()
        transform.run(step("noise0.5").spec, {"model": folder_of(one, name)}, out, silent)
        plain = dict(one.named_parameters())
        noisy = open_model(str(out))
        added.append({m.name: m.parameter - plain[m.name] for m in matrices(noisy)})
    assert all(torch.allclose(added[0][n], added[1][n], atol=1e-6) for n in added[0])


def test_noise_in_the_place_of_what_a_weight_lost() -> None:
    weight = torch.randn(30, 50, generator=generator(0))
    made = shrink_and_perturb(weight, generator(1), share=0.4, scale=0.5)
    draws = generator(1)
    reach = (6 / (30 + 50)) ** 0.5
    uniform = torch.rand(30, 50, generator=draws) * 2 * reach - reach
    assert torch.allclose(made, 0.6 * weight + 0.4 * 0.5 * uniform, rtol=1e-6, atol=1e-7)
    assert torch.equal(shrink_and_perturb(weight, generator(1), share=0.0), weight)
    gone = shrink_and_perturb(weight, generator(1), share=1.0, scale=1.0)
    assert float(gone.abs().max()) <= reach
    assert abs(float(gone.std()) - reach / 3**0.5) < 0.02 * reach
    assert torch.equal(shrink_and_perturb(weight[0], generator(1), share=0.5), weight[0] / 2)
