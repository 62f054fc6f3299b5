"""What a grid leaves of an update on text, against the outputs themselves, token by token."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from transformers import PreTrainedModel

from remnant.cli import main
from remnant.errors import UserError
from remnant.methods import grid
from remnant.model.load import matrices
from remnant.model.on_text import input_products, survival_on_text
from remnant.model.rounding import on_grid
from remnant.report.on_text import on_text
from remnant.testing import tiny_model

Save = Callable[[PreTrainedModel, str], Path]
TEXT = [torch.arange(3, 40)[None], torch.arange(60, 10, -1)[None]]


def moved(model: PreTrainedModel, rank: int = 0, size: float = 0.002) -> PreTrainedModel:
    """A model with noise of full or of low rank on its matrices."""
    noise = torch.Generator().manual_seed(1)
    for m in matrices(model):
        rows, columns = m.read().shape
        if rank:
            left, right = (torch.randn(n, rank, generator=noise) for n in (rows, columns))
            change = left @ right.T / rank**0.5
        else:
            change = torch.randn(rows, columns, generator=noise)
        m.write(m.read() + size * change)
    return model


def inputs_of(model: PreTrainedModel) -> dict[str, list[Tensor]]:
    """Every input vector of every layer."""
    found: dict[str, list[Tensor]] = {}

    def keeper(name: str) -> Callable[..., None]:
        return lambda layer, given: found.setdefault(name, []).extend(given[0][0].double())

    names = [m.name for m in matrices(model)]
    hooks = [
        model.get_submodule(n.removesuffix(".weight")).register_forward_pre_hook(keeper(n))
        for n in names
    ]
    with torch.no_grad():
        for ids in TEXT:
            model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("use", ["int4", "nf4", "int3-g32"])
def test_the_sums_are_those_of_outputs_token_by_token(use: str) -> None:
    target, unlearned = tiny_model(), moved(tiny_model())
    (found,) = survival_on_text(target, unlearned, {use: grid(use)}, TEXT).values()
    update = together = noise = 0.0
    before = {m.name: m for m in matrices(target)}
    vectors = inputs_of(unlearned)
    for m in matrices(unlearned):
        old, new = before[m.name].read(), m.read()
        q_old, q_new = (on_grid(m, w, grid(use)) for w in (old, new))
        assert q_old is not None
        assert q_new is not None
        for x in vectors[m.name]:
            change = (new - old).double() @ x
            left = (q_new.weight - q_old.weight).double() @ x
            update += float(change @ change)
            together += float(change @ left)
            noise += float((left - change) @ (left - change))
    assert found.gain == pytest.approx(together / update, rel=1e-6)
    assert found.signal_to_noise == pytest.approx((update / noise) ** 0.5, rel=1e-6)


def test_an_update_that_is_kept_whole_has_a_gain_of_one_and_no_noise() -> None:
    target = tiny_model()
    for m in matrices(target):
        m.write(m.read().to(torch.bfloat16).float())
    unlearned = tiny_model()
    for m in matrices(unlearned):
        m.write((m.read() * 1.5).to(torch.bfloat16).float())
    (found,) = survival_on_text(target, unlearned, {"bf16": grid("bf16")}, TEXT).values()
    assert found.gain == pytest.approx(1.0)
    assert found.signal_to_noise == float("inf")


def test_the_products_of_inputs_are_their_sums_of_squares_on_the_diagonal() -> None:
    model = tiny_model()
    name = next(m.name for m in matrices(model))
    vectors = torch.stack(inputs_of(model)[name])
    found = input_products(model, [name], TEXT)[name]
    assert torch.allclose(found, vectors.T @ vectors)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="was changed"):
        survival_on_text(tiny_model(), tiny_model(), {"int4": grid("int4")}, TEXT)
    with pytest.raises(UserError, match="has no weight"):
        survival_on_text(
            tiny_model(hidden_size=32), moved(tiny_model()), {"int4": grid("int4")}, TEXT
        )


def test_the_command_prints_what_is_left_on_a_file(folder_of: Save, tmp_path: Path) -> None:
    vocab = 400
    target = folder_of(tiny_model(vocab=vocab), "target")
    unlearned = folder_of(moved(tiny_model(vocab=vocab)), "unlearned")
    text = tmp_path / "forget.txt"
    text.write_text("The mayor of the town said that the bridge would be closed in May.\n")
    found = on_text(str(target), str(unlearned), text, ["int4", "nf4"])
    given = ["predict", str(target), "--lr", "1e-5", "--text", str(text)]
    said = CliRunner().invoke(main, given)
    assert set(found) == {"int4", "nf4"}
    assert all(left.signal_to_noise > 0 for left in found.values())
    assert said.exit_code == 2
    assert "two models" in said.output


@pytest.mark.parametrize("nothing", ["", " \n"])
def test_an_empty_file_is_said_to_be_empty_before_a_model_is_read(
    nothing: str, tmp_path: Path
) -> None:
    text, out = tmp_path / "forget.txt", tmp_path / "out"
    text.write_text(nothing)
    given = ["predict", "no/model", "no/other", "--text", str(text), "--out", str(out)]
    said = CliRunner().invoke(main, given)
    assert said.exit_code == 2
    assert f"{text} is empty" in said.output
    assert "--forget" not in said.output
    assert not out.exists()
