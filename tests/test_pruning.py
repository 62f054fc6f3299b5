"""Pruning: exactly so many entries of every row go, the least important ones."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.functional.pruning import magnitude, wanda
from remnant.functional.quantized import Indivisible
from remnant.methods import step
from remnant.model.load import matrices, open_model
from remnant.stages import transform
from remnant.testing import tiny_model
from tests.conftest import silent

SETTINGS = [(0, ""), (20, ""), (33, ""), (99, ""), (20, "2:4"), (20, "4:8")]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slowly(weight: Tensor, norms: list[float], percent: int, pattern: str) -> list[list[float]]:
    """Row by row: sort the places by score, put zero at the first."""
    kept, block = (int(n) for n in pattern.split(":")) if pattern else (0, weight.shape[-1])
    gone = block - kept if pattern else int(weight.shape[-1] * percent / 100 + 1e-9)
    rows = []
    for row in weight.tolist():
        for start in range(0, len(row), block):
            places = range(start, start + block)
            least = sorted(places, key=lambda i, row=row: abs(row[i]) * norms[i])[:gone]  # type: ignore[misc]
            for i in least:
                row[i] = 0.0
        rows.append(row)
    return rows


@pytest.mark.parametrize(("percent", "pattern"), SETTINGS)
def test_the_least_important_entries_of_every_row_go(percent: int, pattern: str) -> None:
    weight, norms = drawn(7, 48), drawn(48, seed=1).abs() + 0.1
    plain = magnitude(weight, percent=percent, pattern=pattern)
    assert plain.tolist() == slowly(weight, [1.0] * 48, percent, pattern)
    by_input = wanda(weight, norms, percent=percent, pattern=pattern)
    assert by_input.tolist() == slowly(weight, norms.tolist(), percent, pattern)
    assert percent == 0 or not torch.equal(plain, by_input) or percent == 99


@pytest.mark.parametrize(("percent", "pattern"), SETTINGS)
def test_exactly_so_many_are_kept_and_they_are_the_same_bit_for_bit(
    percent: int, pattern: str
) -> None:
    weight = drawn(3, 5, 40)
    found = magnitude(weight, percent=percent, pattern=pattern)
    kept = found != 0
    assert kept.sum(-1).unique().tolist() == [20 if pattern else 40 - 40 * percent // 100]
    assert torch.equal(found[kept], weight[kept])
    if pattern:
        keep, block = map(int, pattern.split(":"))
        assert kept.view(-1, block).sum(-1).unique().tolist() == [keep]


def test_with_equal_inputs_wanda_is_magnitude() -> None:
    weight = drawn(9, 64)
    for percent, pattern in SETTINGS:
        equal = wanda(weight, torch.full((64,), 4.0), percent=percent, pattern=pattern)
        assert torch.equal(equal, magnitude(weight, percent=percent, pattern=pattern))


def test_an_input_that_is_always_zero_costs_its_weights_first() -> None:
    norms = torch.ones(8)
    norms[5] = 0.0
    assert (wanda(drawn(4, 8), norms, percent=13)[:, 5] == 0).all()


def test_what_cannot_be_pruned_is_refused() -> None:
    with pytest.raises(Indivisible, match="2:4 does not divide the row length 6"):
        magnitude(drawn(2, 6), pattern="2:4")
    with pytest.raises(ValueError, match="not finite"):
        magnitude(torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(UserError, match=r"the percent that go are 0 to 99, not 100"):
        step("prune", {"params": {"percent": 100}})
    with pytest.raises(UserError, match="the pattern is"):
        step("wanda", {"params": {"pattern": "1:4"}})


@pytest.mark.parametrize("name", ["prune100", "prune-1:4", "prune-5:4", "prune020", "wanda7x"])
def test_other_names_stand_for_nothing(name: str) -> None:
    with pytest.raises(UserError):
        step(name)


@pytest.mark.parametrize("name", ["prune20", "wanda20", "wanda-2:4"])
def test_a_model_is_pruned_where_a_quantizer_would_round(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Path,
    tmp_path: Path,
    folder_of: Callable[[PreTrainedModel, str], Path],
) -> None:
    model = tiny_model("gpt2" if "2:4" in name else "llama", vocab=len(tokenizer))
    out = tmp_path / "out"
    out.mkdir()
    spec = step(name, {"calibration_samples": 4, "calibration_tokens": 32}).spec
    said = transform.run(spec, {"model": folder_of(model, "m"), "corpus": corpus}, out, silent)
    assert (said.calibration is not None) == ("wanda" in name)
    plain = dict(model.named_parameters())
    touched = {m.name: m for m in matrices(open_model(str(out)))}
    assert set(said.changed) == set(touched)
    for matrix in touched.values():
        columns = matrix.read().shape[-1]
        gone = columns // 2 if "2:4" in name else columns // 5
        assert ((matrix.read() == 0).sum(-1) == gone).all()
        kept = matrix.parameter != 0
        assert torch.equal(matrix.parameter[kept], plain[matrix.name][kept])
