"""Weights that are not finite, told from files before several models are measured."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from remnant import api
from remnant.errors import UserError
from remnant.flow import finite
from remnant.flow.place import Outside
from remnant.flow.store import Store
from remnant.model.load import matrices
from remnant.records import FULL, Rule
from remnant.testing import tiny_model
from remnant.weightfiles import entries_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0, 6e4, -1e-7])
def test_a_file_is_finite_where_torch_says_so(
    dtype: torch.dtype, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finite, "PIECE", 7)
    weight = torch.randn(5, 4).to(dtype)
    weight[4, 3] = value
    save_file({"a": torch.ones(3), "w": weight}, tmp_path / "model.safetensors")
    found = entries_of(tmp_path)
    assert finite.is_finite(found["w"]) == bool(weight.isfinite().all())
    assert finite.is_finite(found["a"])


def test_an_audit_of_a_broken_model_ends_before_anything_is_measured(
    corpus: Path, folder_of: Callable[[PreTrainedModel, str], Path], tmp_path: Path
) -> None:
    whole, broken = folder_of(tiny_model(), "whole"), folder_of(tiny_model(), "broken")
    model = tiny_model()
    weight = next(iter(matrices(model))).parameter
    weight.data[0, 0] = float("nan")
    save_file(dict(model.state_dict()), broken / "model.safetensors", {"format": "pt"})
    store = Store(tmp_path / "store").open()
    models = {"target": Outside(str(whole)), "unlearned": Outside(str(broken))}
    text = (Outside(str(corpus)), "text")
    with pytest.raises(UserError, match=r"broken holds values that are not finite"):
        api.audited(store, models, text, (FULL,), Rule(), progress=False)
    assert store.manifests() == {}
