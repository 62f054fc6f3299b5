"""Rows on a shelf are those that were put there, in memory and on the disk."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from remnant.context import ModelCache
from remnant.estimate.memory import Text, peak
from remnant.estimate.shape import KNOWN
from remnant.model.reference import build
from remnant.model.shelf import Shelf
from remnant.readings import Reading
from remnant.records import UnlearnSpec
from remnant.stages import unlearn
from remnant.testing import tiny_model
from tests.conftest import silent
from tests.test_readings import LENGTHS, some

Save = Callable[[PreTrainedModel, str], Path]


def mapped(folder: Path) -> int:
    """Bytes of files of a folder, gone from it, that this process has mapped."""
    found = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if f"{folder}/" in line and line.endswith("(deleted)"):
            begin, end = line.split()[0].split("-")
            found += int(end, 16) - int(begin, 16)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_does_not_fit_is_in_files_that_go_with_the_process(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    rows = [torch.randn(n, 1024).to(dtype) for n in (1, 5, 2)]
    size = 8 * 1024 * dtype.itemsize
    own = Shelf(tmp_path, 1.5 * size)
    first, second = own.block(8), own.block(8)
    kept = [first(row) for row in rows]
    assert not mapped(tmp_path)
    beyond = [second(row) for row in rows]
    assert mapped(tmp_path) == size
    assert not list(tmp_path.iterdir())
    for given, one, other in zip(rows, kept, beyond, strict=True):
        assert torch.equal(one, given)
        assert torch.equal(other, given)
        assert other.dtype == dtype
    del second, beyond, other
    assert not mapped(tmp_path)


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, begin: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        Shelf(tmp_path, 0).block(2)(torch.ones(2, 3))
    assert not list(tmp_path.iterdir())


def test_a_reference_on_the_disk_is_the_one_in_memory(tmp_path: Path) -> None:
    model, given = tiny_model(num_hidden_layers=3), some(0)
    wanted = [Reading("forget", "reference", "view")]
    wanted += [Reading("forget", "reference", "hidden", layer) for layer in (0, 2)]
    one = build(model, given, 0, wanted, 2)
    other = build(model, given, 0, wanted, 2, Shelf(tmp_path, 0))
    assert mapped(tmp_path) >= 3 * 4 * 64 * sum(LENGTHS)
    pairs = [(one.finals, other.finals), *((one.states[n], other.states[n]) for n in (0, 2))]
    for rows, others in pairs:
        assert all(torch.equal(a, b) for a, b in zip(rows, others, strict=True))


def test_a_run_with_its_reference_on_the_disk_has_the_same_bits(
    model: PreTrainedModel, corpus: Path, folder_of: Save, tmp_path: Path
) -> None:
    inputs = {"target": folder_of(model, "target"), "corpus": corpus}
    common = {"method": "npo_klr", "steps": 2, "batch_size": 2, "max_tokens": 32, "select": "last"}
    found = []
    for room in (8.0, 0.0):
        out = tmp_path / f"{room}"
        out.mkdir()
        spec = UnlearnSpec.model_validate(common | {"reference_gb": room})
        unlearn.run(spec, inputs, out, silent._replace(models=ModelCache()))
        found.append((out / "model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_the_forecast_knows_where_the_reference_lies() -> None:
    cached = 10**7
    spec = UnlearnSpec(method="npo_klr", weights="bf16")
    rows = 2 * cached * KNOWN["8B"].width
    head = 2 * KNOWN["8B"].table
    for room in (math.ceil(rows / 1e9), 3.0):
        own = spec.model_copy(update={"reference_gb": room})
        found = peak(KNOWN["8B"], own, Text(1, 512, 2, cached)).cache
        assert found == min(rows, int(room * 1e9)) + head
