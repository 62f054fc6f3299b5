"""What several processes write of one model is what one process writes, byte for byte."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from remnant import ranks
from remnant.model.shardfiles import LARGEST, _file, save_rows, saved_by_rows
from remnant.model.spread import open_spread
from remnant.testing import tiny_model
from tests.test_ranks import TWO_BY_TWO, World, on_ranks

Save = Callable[[PreTrainedModel, str], Path]
# Files so small that a model of the tests needs several.
SMALL = "20KB"


def check_files(folder: Path, out: Path, largest: str, dtype: torch.dtype) -> None:
    """Write a model by rows, and whole by the first rank."""
    model, collect = open_spread(str(folder), "cpu", dtype)
    model.register_buffer("counted", torch.arange(3))
    assert saved_by_rows(model)
    if ranks.first():
        (out / "rows").mkdir()
        (out / "rows" / "model.safetensors").write_bytes(b"of an earlier run")
    save_rows(model, out / "rows" if ranks.first() else out / "nowhere", largest)
    try:
        collect()
    except ranks.Given:
        return
    model.save_pretrained(out / "whole", max_shard_size=largest)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check_same_bytes(out: Path, world: World, model: PreTrainedModel, settings: Any) -> int:
    """How many files there are."""
    model.save_pretrained(out / "model")
    assert on_ranks(world, check_files, out / "model", out, *settings) == [0] * world.size
    whole, rows = files_in(out / "whole"), files_in(out / "rows")
    if "model.safetensors" not in whole:
        del rows["model.safetensors"]  # transformers leaves it beside the parts, too
    assert rows == whole
    return len(whole)


def test_two_processes_write_the_files_of_one(tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=True)
    parts = check_same_bytes(tmp_path, World(2), model, (SMALL, torch.float32))
    assert parts > 5


@pytest.mark.slow
@pytest.mark.parametrize("world", [World(3), TWO_BY_TWO], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_more_processes_and_copies_write_the_files_of_one(
    world: World, tied: bool, tmp_path: Path
) -> None:
    model = tiny_model(tie_word_embeddings=tied, hidden_size=24)
    assert check_same_bytes(tmp_path, world, model, (LARGEST, torch.bfloat16)) == 3


def test_a_header_is_that_of_the_library(tmp_path: Path) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.float16)
    tensors = {
        f"w{i}.gewicht\u00e9": torch.ones(3 - i % 2, i, dtype=d) for i, d in enumerate(dtypes)
    }
    save_file(tensors, tmp_path / "f.safetensors", metadata={"format": "pt"})
    written = (tmp_path / "f.safetensors").read_bytes()
    file = _file("f.safetensors", tensors, tensors)
    assert written.startswith(file.head)
    assert len(written) == file.size
    for name, begin in file.begins.items():
        own = tensors[name].flatten().view(torch.uint8).numpy().tobytes()
        assert written[begin : begin + len(own)] == own


def test_a_model_whose_experts_are_taken_apart_is_not_written_by_rows() -> None:
    assert saved_by_rows(tiny_model())
    assert not saved_by_rows(tiny_model("mixtral", num_local_experts=4, num_experts_per_tok=2))
