"""What stages are given: one model in memory for as long as a call lasts, a place that says where
to compute, and the same numbers in every process of one piece."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import remnant
from remnant.context import ModelCache, Opened, Place
from remnant.flow import run as running
from remnant.flow.place import Outside
from remnant.flow.plan import measure_node, transform_node
from remnant.flow.store import Store
from remnant.lineage import Lineage
from remnant.methods import step
from remnant.model import versions
from remnant.model.load import open_model
from remnant.records import MeasureSpec
from tests.conftest import silent, unheard

Save = Callable[[PreTrainedModel, str], Path]
SPEC = MeasureSpec(metrics=("verbmem",))


def of(model: PreTrainedModel, digest: str, origin: str) -> Opened:
    return Opened(model, Lineage(digest, origin))


def test_a_model_is_handed_out_once_and_only_to_work_on_its_origin(model: PreTrainedModel) -> None:
    models = ModelCache()
    assert models.get("a") is None
    models.put(of(model, "copy", "a"))
    found = models.get("a")
    assert found is not None
    assert found.model is model
    assert models.get("a") is None
    models.put(found)
    assert models.get("b") is None
    assert models.get("a") is None, "what is of no use is not held any longer"
    models.put(found)
    models.clear()
    assert models.get("a") is None


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices for which a model was opened whole to be used and changed."""
    seen: list[str] = []

    def counted(source: str, device: str, *, dtype: torch.dtype) -> PreTrainedModel:
        seen.append(device)
        return open_model(source, device, dtype=dtype)

    monkeypatch.setattr(versions, "open_model", counted)
    return seen


def test_pieces_of_one_call_share_a_model_and_of_two_calls_do_not(
    model: PreTrainedModel, corpus: Path, folder_of: Save, tmp_path: Path, opened: list[str]
) -> None:
    store, source = Store(tmp_path / "s").open(), Outside(str(folder_of(model, "m")))
    text = Outside(str(corpus))
    copies = [transform_node(step(name), source, None) for name in ("int8", "int4")]
    nodes = [copies[0], measure_node(SPEC, copies[0], text), measure_node(SPEC, source, text)]
    assert running.work(store, nodes, lambda node: unheard) == []
    assert len(opened) == 1
    running.make(store, copies[1], unheard)
    assert len(opened) == 2


def test_a_call_of_the_python_interface_leaves_no_model_for_the_next(
    model: PreTrainedModel, corpus: Path, folder_of: Save, tmp_path: Path, opened: list[str]
) -> None:
    folder = folder_of(model, "m")
    for use in ("int8", "int4"):
        remnant.transform(folder, use, store=tmp_path / "s")
    assert len(opened) == 2


def test_models_go_where_the_place_says(
    model: PreTrainedModel, folder_of: Save, opened: list[str]
) -> None:
    """The device of no machine holds sizes alone, so a model that went there cannot be read."""
    work = silent._replace(place=Place("meta"), models=ModelCache())
    found = versions.opened(folder_of(model, "m"), work)
    assert opened == ["meta"]
    assert {p.device.type for p in found.model.parameters()} == {"meta"}


def test_without_an_accelerator_the_place_of_a_process_is_its_cpu(
    monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> None:
    for there, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert running.here().device == device
