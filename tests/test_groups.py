"""Groups that do not divide a layer's rows: everywhere the layer is left as it is and named, or the
library that cannot do that names it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant import api, cli
from remnant.methods import step
from remnant.model.load import matrices, open_model, save_model
from remnant.stages import transform
from remnant.testing import tiny_model
from tests.conftest import silent

Save = Callable[[PreTrainedModel, str], Path]
ODD = [f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)]


@pytest.fixture
def odd(tokenizer: PreTrainedTokenizerBase, folder_of: Save) -> Path:
    """A model whose last projections have rows of 96, the others of 64."""
    return folder_of(tiny_model(vocab=len(tokenizer), intermediate_size=96), "odd")


LIBRARIES = {"ao-int4-g64": "torchao", "hqq4-g64": "hqq", "bnb-nf4": "bitsandbytes"}


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_librarys_groups_leave_out_the_same_layers_as_ours(
    name: str, odd: Path, tmp_path: Path
) -> None:
    pytest.importorskip(LIBRARIES[name])
    out = tmp_path / "q"
    out.mkdir()
    said = transform.run(step(name).spec, {"model": odd}, out, silent)
    assert list(said.left_out) == ODD
    before, after = open_model(str(odd)).state_dict(), open_model(str(out)).state_dict()
    quantized = [m.name for m in matrices(open_model(str(odd))) if m.name not in ODD]
    assert all(torch.equal(before[n], after[n]) for n in ODD)
    assert not any(torch.equal(before[n], after[n]) for n in quantized)


@pytest.mark.parametrize("name", ["ao-int4-g64", "bnb-nf4"])
def test_a_library_that_packs_all_or_nothing_names_the_layers(
    name: str, odd: Path, tmp_path: Path
) -> None:
    pytest.importorskip(LIBRARIES[name])
    done = CliRunner().invoke(
        cli.main,
        ["deploy", str(odd), "--as", name, "-o", str(tmp_path / "o"), "--store", str(tmp_path)],
    )
    assert done.exit_code == 2, done.output
    assert "cannot keep rows of 96 in groups of 64" in done.output
    assert all(name in done.output for name in ODD)


def test_transform_says_which_layers_it_left(odd: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli.main, ["transform", str(odd), "--use", "int4-g64", "--store", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    assert f"Left as they are (2): {', '.join(ODD)}." in done.output


def test_a_forecast_names_what_its_grids_leave(
    odd: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    moved = open_model(str(odd))
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.001 * torch.randn_like(parameter))
    save_model(moved, tokenizer, tmp_path / "moved")
    found = api.predict(odd, tmp_path / "moved", ["int4", "int4-g64", "int4-g128"])
    columns = {m.name: m.read().shape[-1] for m in matrices(moved)}
    for grid, group in (("int4-g64", 64), ("int4-g128", 128)):
        assert set(found.left_out[grid]) == {n for n, c in columns.items() if c % group}
    assert set(found.left_out) == {"int4-g64", "int4-g128"}
    assert list(found.whole) == ["int4", "int4-g64"]
    assert set(found.left_out["int4-g64"]) == set(ODD)
    done = CliRunner().invoke(
        cli.main,
        [
            "predict", str(odd), str(tmp_path / "moved"), "-q", "int4-g64",
            "--out", str(tmp_path / "p"),
        ],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    kept = json.loads((tmp_path / "p/prediction.json").read_text())
    assert kept["left_out"] == {"int4-g64": list(found.left_out["int4-g64"])}
    assert ODD[0] in (tmp_path / "p/prediction.html").read_text()


def test_a_forecast_whose_grids_divide_nothing_says_so(odd: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli.main,
        ["predict", str(odd), str(odd), "-q", "int4-g128", "--out", str(tmp_path / "p")],
    )
    assert done.exit_code == 2, done.output
    assert "No weight has rows that the groups of int4-g128 divide" in done.output
    assert not (tmp_path / "p").exists()
