"""Part of the way back to the target: exact at both ends, a straight line between."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.functional.mixing import mix, task_vector
from remnant.methods import step
from remnant.model.load import matrices, open_model
from remnant.records import TransformSpec
from remnant.stages import transform
from remnant.testing import tiny_model
from tests.conftest import silent


def drawn(seed: int) -> torch.Tensor:
    return torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))


def test_both_ends_are_exact_and_the_line_between_is_straight() -> None:
    weight, target = drawn(0), 1e-3 * drawn(1)
    assert torch.equal(mix(weight, target, share=0.0), weight)
    assert torch.equal(mix(weight, target, share=1.0), target)
    for share in (0.1, 0.25, 0.5, 0.9):
        slowly = (1 - share) * weight.double() + share * target.double()
        assert torch.allclose(mix(weight, target, share=share).double(), slowly, atol=1e-6)
    with pytest.raises(ValueError, match="not finite"):
        mix(weight, target / 0)


@pytest.mark.parametrize("form", ["llama", "gpt2"])
def test_all_of_a_model_goes_back_to_its_target(
    form: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    folder_of: Callable[[PreTrainedModel, str], Path],
) -> None:
    target, model = tiny_model(form, vocab=len(tokenizer)), tiny_model(form, vocab=len(tokenizer))
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * (i + 1))
    inputs = {"model": folder_of(model, "m"), "target": folder_of(target, "t")}
    for share in (0, 0.5, 1):
        out = tmp_path / f"out{share}"
        out.mkdir()
        transform.run(step(f"mix{share}").spec, inputs, out, silent)
        mixed = dict(open_model(str(out)).named_parameters())
        ends = zip(model.named_parameters(), target.parameters(), strict=True)
        for (name, start), end in ends:
            between = {0: start, 1: end, 0.5: (start + end) / 2}[share]
            assert torch.allclose(mixed[name], between, atol=1e-6 if share == 0.5 else 0.0)


def test_a_part_of_the_model_may_be_left_alone(
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    folder_of: Callable[[PreTrainedModel, str], Path],
) -> None:
    target, model = (tiny_model(vocab=len(tokenizer), seed=seed) for seed in (0, 1))
    (tmp_path / "out").mkdir()
    inputs = {"model": folder_of(model, "m"), "target": folder_of(target, "t")}
    spec = step("mix1", {"skip": ["layers.0."]}).spec
    said = transform.run(spec, inputs, tmp_path / "out", silent)
    assert said.changed
    mixed = open_model(str(tmp_path / "out"))
    plain = dict(model.named_parameters())
    for (name, parameter), end in zip(mixed.named_parameters(), target.parameters(), strict=True):
        assert torch.equal(parameter, plain[name] if "layers.0." in name else end)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_beyond_the_ends_is_refused(share: float) -> None:
    with pytest.raises(UserError):
        step("mix", {"params": {"share": share}})


def test_a_task_vector_is_taken_off_in_float32() -> None:
    target = drawn(0)
    learned = target + 1e-5 * drawn(1)
    assert torch.equal(task_vector(learned, target, scale=0.0), target)
    slowly = target.double() - 5.0 * (learned.double() - target.double())
    assert torch.allclose(task_vector(learned, target, scale=5.0).double(), slowly, atol=1e-6)
    with pytest.raises(ValueError, match="not finite"):
        task_vector(learned, target / 0)


def values(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def test_a_random_update_is_as_long_in_every_weight_and_of_another_direction(
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    folder_of: Callable[[PreTrainedModel, str], Path],
) -> None:
    target, model = (tiny_model(vocab=len(tokenizer), seed=n) for n in (0, 0))
    with torch.no_grad():
        for matrix in list(matrices(model))[::2]:
            matrix.write(matrix.read() + 0.01 * matrix.read().roll(1, 0))
    inputs = {"model": folder_of(model, "model"), "target": folder_of(target, "target")}
    found: dict[int, dict[str, torch.Tensor]] = {}
    for seed in (0, 0, 1):
        out = tmp_path / f"out-{len(found)}-{seed}"
        out.mkdir(exist_ok=True)
        transform.run(TransformSpec(use="randomupdate", seed=seed), inputs, out, silent)
        again = values(open_model(str(out)))
        if seed in found:
            assert all(torch.equal(again[n], found[seed][n]) for n in again)
        found[seed] = again
    before, after = values(target), values(model)
    for name, start in before.items():
        own = (after[name] - start).flatten().double()
        drawn, other = ((found[s][name] - start).flatten().double() for s in (0, 1))
        if not own.any():
            assert torch.equal(found[0][name], start)
            continue
        assert float(drawn.norm()) == pytest.approx(float(own.norm()), rel=1e-4)
        for one in (own, other):
            assert abs(float(drawn @ one / own.norm() ** 2)) < 6 / len(own) ** 0.5


def test_the_target_less_what_the_forget_text_adds_to_it(
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    folder_of: Callable[[PreTrainedModel, str], Path],
) -> None:
    target, learned = (tiny_model(vocab=len(tokenizer), seed=seed) for seed in (0, 1))
    inputs = {"model": folder_of(learned, "m"), "target": folder_of(target, "t")}
    transform.run(step("taskvector2").spec, inputs, tmp_path, silent)
    found = dict(open_model(str(tmp_path)).named_parameters())
    plain = dict(learned.named_parameters())
    for name, own in target.named_parameters():
        assert torch.allclose(found[name], own - 2 * (plain[name] - own), atol=1e-6)
