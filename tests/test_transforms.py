"""Transforms are values: what makes a model of a model is found by its name, needs what it says and
goes through one stage, alone or in a chain."""

import inspect
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.flow import plan as planning
from remnant.flow.place import Outside
from remnant.flow.sweepfile import read_sweep
from remnant.formats.table import FORMATS, checked, short
from remnant.methods import BY_WEIGHT, NEEDS, TRANSFORM_READS, chain, step, steps, taking
from remnant.model.activations import input_norms
from remnant.model.load import matrices, open_model
from remnant.records import TransformSpec
from remnant.resolve import is_user_code
from remnant.stages import transform
from remnant.testing import tiny_model
from remnant.transforms.table import NAMES, TRANSFORMS, by_name, told_by_weights
from tests.conftest import silent

Save = Callable[[PreTrainedModel, str], Path]
OWN = [key for key in TRANSFORMS if key not in FORMATS]
TO_TRY = [name for key in OWN for name in TRANSFORMS[key].names]

WHOLE = '''"""A user's transforms."""
import torch

def halved(weight):
    return weight / 2

def with_noise(weight, generator, *, scale: float = 0.1):
    return weight + scale * torch.randn(weight.shape, generator=generator)

def biased(model):
    for parameter in model.parameters():
        parameter.data += 1.0

def towards(weight, target):
    return target
'''


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(WHOLE)
    return path


@pytest.mark.parametrize("name", TO_TRY)
def test_names_and_parameters_go_both_ways_and_one_transform_alone_reads_a_name(name: str) -> None:
    found = by_name(name)
    assert found is not None
    assert sum(one.read(name) is not None for one in TRANSFORMS.values()) == 1
    assert found.format.write(found.params) == name
    assert short(found.format.key, found.params.model_dump(), TRANSFORMS) == (name, {})
    assert steps(f"{name}+int4") == [name, "int4"]
    assert not is_user_code(name, ())


@pytest.mark.parametrize("key", OWN)
def test_a_record_has_the_parameters_and_defaults_of_its_function(key: str) -> None:
    module, function = TRANSFORMS[key].path.split(":")
    taken = inspect.signature(getattr(import_module(module), function)).parameters.values()
    tuned = {p.name: p.default for p in taken if p.kind is p.KEYWORD_ONLY}
    assert tuned == {n: f.default for n, f in TRANSFORMS[key].params.model_fields.items()}
    reads = step(key).method.reads
    assert set(reads) <= set(TRANSFORM_READS)
    assert TRANSFORMS[key].by_text == ("corpus" in step(key).inputs)


def test_every_name_is_suggested_once_and_no_two_transforms_share_a_key() -> None:
    assert len(NAMES) == len(set(NAMES))
    assert len(TRANSFORMS) == len(FORMATS) + len(OWN)
    assert set(NEEDS) <= set(TRANSFORM_READS)
    with pytest.raises(UserError, match=r"Unknown transform 'int44'.*int4"):
        step("int44")


def test_a_chain_is_a_list_or_one_word_for_it() -> None:
    assert steps(("bf16", "int4")) == steps("bf16+int4") == steps("bf16+full+int4")
    assert steps(("mine.py:f", "int4")) == ["mine.py:f", "int4"]
    assert chain(("bf16", TransformSpec(use="rtn", params={"bits": 3}))).names == ("bf16", "int3")
    assert [s.spec.use for s in chain(("bf16", "int4")).steps] == ["cast", "rtn"]


def test_a_sweep_takes_every_model_through_a_list(own: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "s.toml"
    sweep.write_text(
        f'name = "s"\nquantizers = [["{own}:halved", "int4"], "{own}:towards"]\n'
        '[[corpus]]\nlab = "news"\n[[unlearn]]\nmethod = "ga"\n'
    )
    nodes = planning.plan(read_sweep(sweep))
    assert planning.user_code(read_sweep(sweep)) == [f"{own}:halved", f"{own}:towards"]
    measured = {(n.label.model, n.label.form) for n in nodes if n.stage == "measure"}
    forms = ("full", f"{own}:halved+int4", f"{own}:towards")
    assert measured == {(m, f) for m in ("target", "retrain", "ga") for f in forms}
    target = next(n for n in nodes if n.stage == "train" and "forget" in n.spec.splits)  # type: ignore[attr-defined]
    for node in (n for n in nodes if n.stage == "transform"):
        wants = {"target": target} if node.spec.use.endswith("towards") else {}  # type: ignore[attr-defined]
        assert {r: n.digest for r, n in node.inputs.items() if r != "model"} == {
            r: n.digest for r, n in wants.items()
        }


def test_what_a_transform_needs_is_asked_for_before_anything_runs(own: Path) -> None:
    model = Outside(str(own.parent))
    with pytest.raises(UserError, match=r"needs text.*--data"):
        planning.transform_node(step("gptq4"), model, None)
    with pytest.raises(UserError, match=r"needs the model before unlearning.*--target"):
        planning.transform_node(step(f"{own}:towards"), model, None)
    own.write_text("def f(layers):\n    return layers\n")
    with pytest.raises(UserError, match="reads 'layers', which is not on offer"):
        step(f"{own}:f")


def test_a_target_that_nothing_reads_is_refused_and_who_reads_one_is_named() -> None:
    for use in ("int4", "prune20", "noise0.02"):
        with pytest.raises(UserError, match=r"takes no target.*mix, taskvector, randomupdate"):
            taking(step(use), "some/target")
        assert taking(step(use), None) == step(use)
    assert taking(step("mix0.5"), "some/target") == step("mix0.5")


def through(
    use: str, inputs: dict[str, Path], out: Path, **more: Any
) -> tuple[PreTrainedModel, Any]:
    """A model behind a transform, opened again, and what the stage says."""
    out.mkdir()
    said = transform.run(step(use, more).spec, inputs, out, silent)
    return open_model(str(out)), said


def test_a_function_of_weights_or_of_the_model_may_give_no_codes(
    own: Path, tokenizer: PreTrainedTokenizerBase, folder_of: Save, tmp_path: Path
) -> None:
    model = tiny_model(vocab=len(tokenizer))
    folder = folder_of(model, "m")
    before = {n: p.clone() for n, p in model.named_parameters()}
    touched = {m.name for m in matrices(model)}
    halved, said = through(f"{own}:halved", {"model": folder}, tmp_path / "h")
    assert set(said.changed) == touched
    assert said.quantized_weights == 0
    for name, parameter in halved.named_parameters():
        assert torch.equal(parameter, before[name] / 2 if name in touched else before[name])
    raised, said = through(f"{own}:biased", {"model": folder}, tmp_path / "b")
    assert set(said.changed) == set(before)
    assert all(torch.equal(p, before[n] + 1) for n, p in raised.named_parameters())


def test_every_weight_has_a_generator_of_its_own(
    own: Path, tokenizer: PreTrainedTokenizerBase, folder_of: Save, tmp_path: Path
) -> None:
    model = tiny_model(vocab=len(tokenizer))
    folder = folder_of(model, "m")
    use, inputs = f"{own}:with_noise", {"model": folder}
    fewer_of = ["layers.0.", "lm_head", "embedding", "norm"]
    settings: list[dict[str, Any]] = [{}, {}, {"seed": 1}, {"skip": fewer_of}]

    def weights(place: int) -> dict[str, torch.Tensor]:
        found = through(use, inputs, tmp_path / f"o{place}", **settings[place])[0]
        return {m.name: m.read() for m in matrices(found)}

    once, again, other, fewer = map(weights, range(4))
    assert all(torch.equal(once[n], again[n]) for n in once)
    assert not any(torch.equal(once[n], other[n]) for n in once)
    assert all(torch.equal(once[n], fewer[n]) for n in once if "layers.1." in n)
    query, key = (f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1))
    plain = dict(model.named_parameters())
    assert not torch.allclose(once[query] - plain[query], once[key] - plain[key], atol=1e-3)


def test_a_target_of_another_shape_is_refused(
    own: Path, tokenizer: PreTrainedTokenizerBase, folder_of: Save, tmp_path: Path
) -> None:
    folder = folder_of(tiny_model(vocab=len(tokenizer)), "m")
    other = folder_of(tiny_model(vocab=len(tokenizer), intermediate_size=96), "o")
    with pytest.raises(UserError, match=r"has no weight .* of shape"):
        through(f"{own}:towards", {"model": folder, "target": other}, tmp_path / "t")


@pytest.mark.parametrize("form", ["llama", "gpt2"])
def test_norms_of_inputs_are_those_that_the_layers_see(
    form: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = tiny_model(form, vocab=len(tokenizer))
    names = [m.name for m in matrices(model)]
    texts = [
        torch.randint(0, 60, (1, n), generator=torch.Generator().manual_seed(n)) for n in (5, 9)
    ]
    found = input_norms(model, names, texts)
    for name in names:
        layer = model.get_submodule(name.removesuffix(".weight"))
        seen: list[torch.Tensor] = []
        hook = layer.register_forward_hook(
            lambda m, i, o, s=seen: s.append(i[0].reshape(-1, i[0].shape[-1]))
        )
        for text in texts:
            model(input_ids=text)
        hook.remove()
        rows = torch.cat(seen).tolist()
        slow = [math.hypot(*column) for column in zip(*rows, strict=True)]
        assert torch.allclose(found[name], torch.tensor(slow), rtol=1e-4)
    with pytest.raises(UserError, match="No text comes to the weight"):
        input_norms(model, names, [])


def test_a_report_forecasts_only_what_weights_tell() -> None:
    assert told_by_weights(["bf16", "int4"])
    assert told_by_weights(["mine.py:grid"])
    assert not told_by_weights(["int8", "awq4-g128"])
    assert not any(told_by_weights([name]) or told_by_weights([name, "int4"]) for name in TO_TRY)


@pytest.mark.parametrize("key", OWN)
def test_parameters_are_checked_in_the_table(key: str) -> None:
    checked(TRANSFORMS[key], {})
    with pytest.raises(UserError, match=f"The transform '{key}'"):
        checked(TRANSFORMS[key], {"surely_not": 1})
    assert BY_WEIGHT[0] in step(key).method.reads or "model" in step(key).method.reads
