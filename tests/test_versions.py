"""Versions of one model are opened by reading what differs: equal to opening them afresh, and only
those weights are read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.context import Context, Opened
from remnant.lineage import Lineage
from remnant.model import versions
from remnant.model.load import open_model, save_model
from remnant.records import TransformSpec
from remnant.stages import transform
from remnant.testing import tiny_model
from tests.conftest import silent

COPIES: dict[str, Lineage] = {}
BASE, OTHER = "train-0123456789abcdef", "train-fedcba9876543210"


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The folders that were opened whole."""
    seen: list[str] = []

    def counted(source: str, device: str, *, dtype: torch.dtype) -> PreTrainedModel:
        seen.append(Path(source).name)
        return open_model(source, device, dtype=dtype)

    silent.models.clear()
    monkeypatch.setattr(versions, "open_model", counted)
    yield seen
    silent.models.clear()


@pytest.fixture
def store(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    for seed, name in enumerate((BASE, OTHER)):
        torch.manual_seed(seed)
        save_model(tiny_model(vocab=len(tokenizer)), tokenizer, tmp_path / name)
    return tmp_path


def quantized(store: Path, bits: int, source: str = BASE, **more: Any) -> Path:
    out = store / f"transform-{bits:016d}"
    out.mkdir(exist_ok=True)
    known = {"model": whole(source), "self": whole(out.name)}
    summary = transform.run(
        TransformSpec(use="rtn", params={"bits": bits}, **more),
        {"model": store / source},
        out,
        knowing(known),
    )
    COPIES[out.name] = Lineage(out.name, source, frozenset(summary.changed))
    return out


def whole(name: str) -> Lineage:
    return Lineage(name, name)


def knowing(known: dict[str, Lineage]) -> Context:
    """The context of all these tests, with one memory."""
    return silent._replace(known=known)


def take(folder: Path) -> Opened:
    return versions.opened(folder, knowing({"model": COPIES.get(folder.name, whole(folder.name))}))


def equal(model: PreTrainedModel, folder: Path) -> bool:
    fresh = open_model(str(folder)).state_dict()
    return all(torch.equal(w, fresh[n]) for n, w in model.state_dict().items())


def test_a_copy_is_taken_as_it_was_left_and_its_source_by_what_differs(
    store: Path, opened: list[str]
) -> None:
    out = quantized(store, 4)
    copy = take(out)
    assert opened == [BASE]
    assert equal(copy.model, out)
    silent.models.put(copy)
    source = take(store / BASE)
    assert opened == [BASE]
    assert source.model is copy.model
    assert equal(source.model, store / BASE)


def test_two_copies_made_earlier_share_what_is_equal(
    store: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [quantized(store, bits) for bits in (4, 8)]
    silent.models.clear()
    opened.clear()
    silent.models.put(take(folders[0]))
    read: list[str] = []
    real: Any = safetensors.safe_open

    class Watched:
        def __init__(self, path: Path, framework: str) -> None:
            self.file = real(path, framework)

        def __enter__(self) -> "Watched":
            self.opened = self.file.__enter__()
            return self

        def __exit__(self, *fault: Any) -> None:
            self.file.__exit__(*fault)

        def keys(self) -> list[str]:
            return list(self.opened.keys())

        def get_tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            tensor: torch.Tensor = self.opened.get_tensor(name)
            return tensor

    monkeypatch.setattr(versions, "safe_open", Watched)
    second = take(folders[1])
    assert opened == [folders[0].name]
    assert equal(second.model, folders[1])
    assert read
    assert all("proj" in name for name in read)
    assert not any("embed" in name or "norm" in name for name in read)


def test_a_cast_changes_every_weight(store: Path) -> None:
    out = quantized(store, 8, source_dtype="bfloat16")
    silent.models.put(take(out))
    assert equal(take(store / BASE).model, store / BASE)


def test_another_origin_is_opened_whole(store: Path, opened: list[str]) -> None:
    silent.models.put(take(store / BASE))
    other = take(store / OTHER)
    assert opened == [BASE, OTHER]
    assert equal(other.model, store / OTHER)


def test_a_failed_quantization_leaves_nothing_half_changed(store: Path, opened: list[str]) -> None:
    with pytest.raises(Exception, match="group"):
        transform.run(
            TransformSpec(use="rtn", params={"bits": 4, "granularity": "group", "group_size": 7}),
            {"model": store / BASE},
            store,
            silent,
        )
    assert equal(take(store / BASE).model, store / BASE)
    assert opened == [BASE, BASE]


def test_two_folders_of_one_name_are_two_models(
    store: Path, tokenizer: PreTrainedTokenizerBase, opened: list[str]
) -> None:
    for seed, parent in enumerate("ab"):
        torch.manual_seed(seed)
        model = tiny_model(vocab=len(tokenizer))
        next(model.parameters()).data.add_(seed)
        save_model(model, tokenizer, store / parent / "checkpoint-0123456789abcdef")
        (store / parent / "manifest.json").write_text(
            '{"inputs": {"model": "x"}, "summary": {"changed": []}}'
        )
        silent.models.put(versions.opened(store / parent / "checkpoint-0123456789abcdef", silent))
    assert len(opened) == 2
    assert equal(
        versions.opened(store / "a" / "checkpoint-0123456789abcdef", silent).model,
        store / "a" / "checkpoint-0123456789abcdef",
    )


def test_a_folder_whose_files_were_changed_is_another_model(
    store: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    silent.models.put(versions.opened(store / BASE, silent))
    model = tiny_model(vocab=len(tokenizer))
    next(model.parameters()).data.add_(1.0)
    save_model(model, tokenizer, store / BASE)
    assert equal(versions.opened(store / BASE, silent).model, store / BASE)
