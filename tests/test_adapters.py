"""An adapter's folder is a model in every command: merged, known by content, refused in words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant import api
from remnant.cli import main
from remnant.errors import UserError
from remnant.flow import plan as planning
from remnant.flow import sources
from remnant.flow.run import make
from remnant.flow.store import Store
from remnant.flow.sweepfile import read_sweep
from remnant.forecast.adapter import opened
from remnant.forecast.checkpoint import Checkpoint
from remnant.forecast.grids import grid
from remnant.forecast.stream import scan
from remnant.model.adapter import merge
from remnant.model.load import open_model
from remnant.testing import tiny_model
from tests.conftest import unheard

peft = pytest.importorskip("peft")
Save = Callable[[PreTrainedModel, str], Path]


def adapter_of(base: Path, out: Path, targets: list[str], **settings: Any) -> Path:
    """A random adapter as peft writes it."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, **settings
    )
    peft.get_peft_model(open_model(str(base)), config).save_pretrained(out)
    return out


def slowly_merged(base: Path, adapter: Path, turned: bool = False) -> dict[str, Tensor]:
    """The weights by the definition, one product after the other."""
    weights = {n: p.clone() for n, p in open_model(str(base)).named_parameters()}
    factors = load_file(adapter / "adapter_model.safetensors")
    for name, down in factors.items():
        if "lora_A" in name:
            up = factors[name.replace("lora_A", "lora_B")]
            target = name.removeprefix("base_model.model.").replace("lora_A.", "")
            update = 2.0 * up @ down
            weights[target] += update.T if turned else update
    return weights


@pytest.fixture
def base(tokenizer: PreTrainedTokenizerBase, folder_of: Save) -> Path:
    return folder_of(tiny_model(vocab=len(tokenizer), max_position_embeddings=1024), "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return adapter_of(base, tmp_path / "adapter", ["q_proj", "down_proj"])


@pytest.mark.parametrize("form", ["llama", "gpt2"])
def test_a_merge_is_the_sum_of_weights_and_update(
    form: str, tokenizer: PreTrainedTokenizerBase, folder_of: Save, tmp_path: Path
) -> None:
    base = folder_of(tiny_model(form, vocab=len(tokenizer)), "b")
    settings = {"fan_in_fan_out": True} if form == "gpt2" else {}
    targets = ["c_attn"] if form == "gpt2" else ["q_proj", "down_proj"]
    adapter = adapter_of(base, tmp_path / "a", targets, **settings)
    expected = slowly_merged(base, adapter, turned=form == "gpt2")
    merged, changed, relative = merge(open_model(str(base)), adapter)
    plain = dict(open_model(str(base)).named_parameters())
    for name, weight in merged.named_parameters():
        assert torch.allclose(weight, expected[name], atol=1e-6), name
        touched = any(t in name for t in targets)
        assert torch.equal(weight, plain[name]) != (touched and weight.ndim > 1), name
        assert (name in changed) == (touched and weight.ndim > 1)
    update = sum(float((expected[n] - plain[n]).detach().square().sum()) for n in changed)
    whole = sum(float(plain[n].detach().square().sum()) for n in changed)
    assert relative == pytest.approx((update / whole) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("form", ["llama", "gpt2"])
def test_a_checkpoint_with_an_adapter_reads_as_if_merged(
    form: str, tokenizer: PreTrainedTokenizerBase, folder_of: Save, tmp_path: Path
) -> None:
    base = folder_of(tiny_model(form, vocab=len(tokenizer)), "b")
    settings = {"fan_in_fan_out": True} if form == "gpt2" else {}
    targets = ["c_attn"] if form == "gpt2" else ["q_proj", "down_proj"]
    adapter = adapter_of(base, tmp_path / "a", targets, **settings)
    merged = folder_of(merge(open_model(str(base)), adapter).model, "merged")
    found, plain = opened(str(adapter)), Checkpoint(merged)
    for name in plain.matrices():
        assert np.allclose(found.read(name), plain.read(name), atol=1e-6), name
        size = plain.entries[name].size
        piece = found.read_into(name, size // 3, np.empty(4 * (size // 2), np.uint8))
        whole = plain.read_into(name, size // 3, np.empty(4 * (size // 2), np.uint8))
        assert np.allclose(piece.view(np.float32), whole.view(np.float32), atol=1e-6), name
    grids = [grid("int4-tensor"), grid("nf4")]
    sums = [scan(Checkpoint(base), c, grids) for c in (opened(f"{adapter}@{base}"), plain)]
    for name, by_grid in sums[1].items():
        for which, expected in by_grid.items():
            assert sums[0][name][which].update == pytest.approx(expected.update, rel=1e-4)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_every_command_takes_an_adapter_for_a_model(
    base: Path, adapter: Path, corpus: Path, tmp_path: Path
) -> None:
    store = ("--store", tmp_path / "store")
    merged = call("merge", adapter, *store)
    assert merged.exit_code == 0, merged.output
    folder = merged.stdout.splitlines()[-1]
    expected = slowly_merged(base, adapter)
    for name, weight in open_model(folder).named_parameters():
        assert torch.allclose(weight, expected[name], atol=1e-6)
    data, few = ("--data", corpus), ("-m", "verbmem", "-m", "knowmem_forget")
    numbers = [call("measure", m, *data, *few, *store).stdout for m in (adapter, folder)]
    assert "verbmem" in numbers[0].lower()
    assert numbers[0].splitlines()[1:] == numbers[1].splitlines()[1:]
    copies = [call("transform", m, "--use", "int4", *store) for m in (adapter, folder)]
    assert copies[0].exit_code == copies[1].exit_code == 0
    assert copies[0].stdout == copies[1].stdout
    judged = call("audit", base, adapter, *data, "-q", "int4", "--out", tmp_path / "j", *store)
    assert judged.exit_code in (3, 4), judged.output
    steps = ("--set", "steps=1", "--set", "select=last")
    unlearned = call("unlearn", adapter, *data, "--method", "ga", *steps, *store)
    assert unlearned.exit_code == 0, unlearned.output
    said = call("predict", base, adapter, "--out", tmp_path / "p")
    assert said.exit_code == 0, said.output
    merges = list((tmp_path / "store/objects").glob("merge-*"))
    assert len(merges) == 1


def test_the_python_interface_takes_an_adapter_for_a_model(
    base: Path, adapter: Path, corpus: Path, tmp_path: Path
) -> None:
    store, few = tmp_path / "store", ("verbmem",)
    found = api.measure(adapter, corpus, store=store, metrics=few)
    merged = next((store / "objects").glob("merge-*"))
    again = api.measure(merged, corpus, store=store, metrics=few)
    assert found.cells[0].value == again.cells[0].value
    assert api.predict(base, adapter, ["int4"], store=store).whole.keys() == {"int4"}
    assert len(list((store / "objects").glob("merge-*"))) == 1


def test_adapter_and_model_enter_by_content(base: Path, adapter: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "s").open()

    def key(reference: object) -> str:
        node = sources.model(store, str(reference))
        assert isinstance(node, planning.Node)
        return node.digest

    first = key(adapter)
    shutil.copytree(base, tmp_path / "other" / "base")
    assert key(f"{adapter}@{tmp_path / 'other' / 'base'}") == first
    shutil.copytree(adapter, tmp_path / "other" / "adapter")
    assert key(tmp_path / "other" / "adapter") == first
    factors = load_file(adapter / "adapter_model.safetensors")
    name = next(iter(factors))
    save_file(factors | {name: factors[name] + 1}, adapter / "adapter_model.safetensors")
    assert key(adapter) != first
    (base / "config.json").write_text((base / "config.json").read_text() + " ")
    assert key(tmp_path / "other" / "adapter") != first


def test_a_sweep_may_start_from_an_adapter(adapter: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "s.toml"
    sweep.write_text(
        f'name = "s"\ntarget = "{adapter}"\n[[corpus]]\nlab = "news"\n[[unlearn]]\nmethod = "ga"\n'
    )
    nodes = planning.plan(read_sweep(sweep))
    assert [n.stage for n in nodes].count("merge") == 1


def damaged(adapter: Path, what: str) -> Path:
    path = adapter / "adapter_model.safetensors"
    factors, config = load_file(path), json.loads((adapter / "adapter_config.json").read_text())
    name = next(iter(factors))
    if what == "one factor short":
        del factors[name]
    elif what == "a factor too many":
        factors[name.replace("layers.0", "layers.9")] = factors[name].clone()
    elif what == "not finite":
        factors[name][0, 0] = float("inf")
    elif what == "another shape":
        factors[name] = torch.zeros(4, 7)
    elif what == "another kind":
        config["peft_type"] = "NOSUCH"
    save_file(factors, path)
    if what == "a pickle":
        path.unlink()
        torch.save(factors, path.with_suffix(".bin"))
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return adapter


@pytest.mark.filterwarnings("ignore:.*missing adapter keys")
@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("one factor short", "lacks .*other than its model"),
        ("a factor too many", "holds .*layers.9"),
        ("not finite", "not finite"),
        ("another shape", "cannot be opened"),
        ("another kind", "cannot be opened"),
        ("a pickle", "has no adapter_model.safetensors"),
    ],
)
def test_a_damaged_adapter_is_refused(what: str, says: str, base: Path, adapter: Path) -> None:
    with pytest.raises(UserError, match=says):
        merge(open_model(str(base)), damaged(adapter, what))


def test_what_is_no_adapter_of_a_model_that_is_there_is_said(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "s").open()
    config = json.loads((adapter / "adapter_config.json").read_text())
    for recorded, says in (
        (None, "does not say which model it is of"),
        ("/gone/base-of-old", "is of /gone/base-of-old, which is not there"),
    ):
        (adapter / "adapter_config.json").write_text(
            json.dumps(config | {"base_model_name_or_path": recorded})
        )
        with pytest.raises(UserError, match=says) as caught:
            sources.model(store, str(adapter))
        assert f"{adapter}@MODEL" in str(caught.value)
    moved = config | {"base_model_name_or_path": f"/gone/{base.name}"}
    (adapter / "adapter_config.json").write_text(json.dumps(moved))
    node = sources.model(store, str(adapter))
    assert isinstance(node, planning.Node)
    make(store, node, unheard)
    assert call("merge", base, "--store", tmp_path / "s").exit_code == 2
