"""In which dtype a model is measured: as asked, as its files have it, and float32 by default."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, PreTrainedModel

from remnant.cli import main
from remnant.context import ModelCache
from remnant.errors import UserError
from remnant.estimate.needs import of_use as needed
from remnant.estimate.shape import KNOWN
from remnant.flow.place import Outside
from remnant.flow.plan import measure_node
from remnant.gate.policy import weaker
from remnant.lineage import Lineage
from remnant.model import versions
from remnant.model.load import dtype_of
from remnant.parsing import parse
from remnant.records import MeasureSpec, Rule, SweepSpec
from remnant.stages import measure
from tests.conftest import silent

Save = Callable[[PreTrainedModel, str], Path]


@pytest.fixture
def half(model: PreTrainedModel, folder_of: Save) -> Path:
    """The folder of a model in bfloat16."""
    return folder_of(model.bfloat16(), "half")


def test_float32_by_any_name_leaves_what_was_measured_as_it_is() -> None:
    plain = MeasureSpec()
    assert parse(MeasureSpec, {"dtype": "fp32"}, "measure") == plain
    assert "dtype" not in plain.identity()
    source, text = Outside("m"), Outside("c")
    names = {measure_node(MeasureSpec(dtype=d), source, text).spec.identity().get("dtype")
             for d in (None, "bf16", "stored")}  # fmt: skip
    assert names == {None, "bf16", "stored"}
    with pytest.raises(UserError, match=r"dtype.*fp32"):
        parse(MeasureSpec, {"dtype": "fp8"}, "measure")
    assert "dtype" not in Rule().told()
    own = {"name": "s", "corpus": [], "unlearn": [], "measure": {"dtype": "bf16"}}
    with pytest.raises(UserError, match=r"rule\.dtype and measure\.dtype differ"):
        parse(SweepSpec, own, "sweep")
    assert parse(SweepSpec, own | {"rule": {"dtype": "bf16"}}, "sweep").rule.dtype == "bf16"
    assert weaker(Rule(dtype="bf16"), Rule()) == ["dtype is bf16, and the policy asks for none"]
    assert weaker(Rule(dtype="bf16"), Rule(dtype="bf16")) == []


def test_what_is_stored_is_what_most_numbers_are(
    model: PreTrainedModel, folder_of: Save, half: Path
) -> None:
    assert dtype_of("stored", half) == torch.bfloat16
    assert dtype_of("bf16", half) == torch.bfloat16
    assert dtype_of(None, half) == torch.float32
    model.float()
    next(p for p in model.parameters() if p.ndim == 1).data = torch.zeros(64, dtype=torch.float16)
    assert dtype_of("stored", folder_of(model, "mixed")) == torch.float32


def test_a_model_is_opened_in_its_dtype_and_only_float32_is_held(half: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(half, dtype="auto")
    ids = torch.arange(20)[None]
    work = silent._replace(models=ModelCache())
    for name in ("bf16", "stored"):
        own = versions.opened(half, work, name).model
        assert {p.dtype for p in own.parameters()} == {torch.bfloat16}
        assert torch.equal(own(input_ids=ids).logits, theirs(input_ids=ids).logits)
    # A copy of which there are no files is cast where it is.
    held = versions.opened(half, work)
    assert {p.dtype for p in held.model.parameters()} == {torch.float32}
    bare = half.with_name("bare")
    bare.mkdir()
    work = work._replace(known={"model": Lineage("copy", "copy")})
    work.models.put(held._replace(lineage=Lineage("copy", "copy")))
    cast = versions.opened(bare, work, "bf16").model
    assert cast is held.model
    assert torch.equal(cast(input_ids=ids).logits, theirs(input_ids=ids).logits)


def test_what_is_measured_in_bfloat16_is_near_what_is_in_float32(half: Path, corpus: Path) -> None:
    found = {}
    for name in (None, "stored"):
        out = half.with_name(f"of-{name}")
        out.mkdir()
        spec = MeasureSpec(metrics=("mia_loss",), dtype=name)
        work = silent._replace(models=ModelCache())
        measure.run(spec, {"model": half, "corpus": corpus}, out, work)
        lines = (out / "rows.jsonl").read_text().splitlines()
        found[name] = [json.loads(line)["value"] for line in lines]
    assert found[None] != found["stored"]
    assert found["stored"] == pytest.approx(found[None], rel=1e-2)


def test_the_dtype_is_told_and_estimated(half: Path, corpus: Path, tmp_path: Path) -> None:
    common = ["measure", str(half), "--data", str(corpus), "--store", str(tmp_path / "s")]
    asked = ["-m", "mia_loss", "--form", "published", "--dtype", "bf16"]
    said = CliRunner().invoke(main, [*common, *asked])
    assert said.exit_code == 0, said.output
    assert "Computed in bfloat16" in said.output
    spec = MeasureSpec(dtype="bf16")
    weights = {d: needed(KNOWN["8B"], spec.model_copy(update={"dtype": d})).peak.weights
               for d in (None, "bf16", "stored")}  # fmt: skip
    assert weights["bf16"] == weights["stored"] == weights[None] // 2
