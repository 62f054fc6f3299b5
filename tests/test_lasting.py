"""Grids that are trained on, and promises: cells against a slow reference, gradients against a
plain model of the rounded weights, certificates against the codes that other stages write."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.functional.cells import cells, crossing, width
from remnant.functional.quantized import Quantized
from remnant.methods import check_lasting, grid, levels, step
from remnant.model.load import in_dtype, matrices, open_model
from remnant.model.rounding import on_grid, rounded
from remnant.model.terms import make_loss, make_streams, terms_of
from remnant.parsing import parse
from remnant.records import Certificate, PromiseSpec, TransformSpec, UnlearnSpec
from remnant.stages import transform, unlearn
from remnant.testing import tiny_model
from remnant.trainable.layers import everything
from remnant.training.loop import fit
from remnant.training.on_grid import noisy, trained_on_grids
from remnant.training.promise import CERTIFICATE, Given, fewest, keep
from tests.conftest import hearing, silent
from tests.test_loss_references import pools

GRIDS = [
    "int8", "int4", "int4-tensor", "int4-g16", "int3", "int4-half-step", "int4-paper",
    "int4-g32-asym", "nf4", "fp4", "nf4-b32", "nvfp4", "mxfp4", "q4_0",
]  # fmt: skip
SAME = """
from remnant.functional.quantized import Quantized

def same(weight):
    codes = weight.new_zeros(weight.shape, dtype=__import__("torch").int8)
    return Quantized(codes, weight.abs().amax().view(1, 1), None, weight.clone())
"""
Save = Callable[[PreTrainedModel, str], Path]


def drawn(seed: int = 0, rows: int = 6, columns: int = 64) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=noise)


def quantize(use: str, weight: Tensor) -> Quantized:
    by = step(use)
    found: Quantized = by.method.load()(weight, **by.method.params)
    return found


def levels_by_block(use: str, found: Quantized) -> list[list[float]]:
    """Every weight's levels, one after the other."""
    table, size = levels(grid(use)), -(-found.weight.numel() // found.scale.numel())
    zero = found.zero if found.zero is not None else torch.zeros_like(found.scale)
    pairs = list(zip(found.scale.flatten().tolist(), zero.flatten().tolist(), strict=True))
    own = [on_block(table, *pair) for pair in pairs]
    return [own[i // size] for i in range(found.weight.numel())]


def on_block(table: tuple[float, ...], scale: float, zero: float) -> list[float]:
    return sorted((level - zero) * scale for level in table)


@pytest.mark.parametrize("use", GRIDS)
def test_a_cell_is_that_of_the_nearest_level_and_as_wide_as_halfway_to_its_neighbours(
    use: str,
) -> None:
    weight = drawn()
    found = quantize(use, weight)
    of = cells(found, levels(grid(use)))
    assert torch.allclose(of.at(of.place), found.weight, rtol=1e-5, atol=1e-7)
    wide = width(of).flatten().tolist()
    for place, own in enumerate(levels_by_block(use, found)):
        here = min(range(len(own)), key=lambda i: abs(own[i] - found.weight.flatten()[place]))
        beside = [abs(own[i] - own[here]) for i in (here - 1, here + 1) if 0 <= i < len(own)]
        assert wide[place] == pytest.approx(sum(beside) / len(beside), rel=1e-4)


@pytest.mark.parametrize("use", GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_crosses_has_another_code_and_nothing_else_has(use: str, dtype: torch.dtype) -> None:
    target, update = drawn().to(dtype).float(), drawn(1) * (drawn(2) > 0)
    before = quantize(use, target)
    value, can = crossing(target, update, [(before, levels(grid(use)))], dtype)
    after = quantize(use, value)
    assert torch.equal(after.codes != before.codes, can)
    assert torch.equal(after.scale, before.scale)
    assert torch.equal(value, value.to(dtype).float())
    assert not bool((can & (update == 0)).any())
    assert can.sum() > 0.2 * (update != 0).sum()
    assert torch.equal((value - target)[can].sign(), update[can].sign())


def test_a_crossing_is_the_farthest_next_level_of_a_slow_search() -> None:
    uses = ["int4-g16", "int3", "nf4", "nvfp4", "q4_0"]
    target, update = drawn(), drawn(1)
    found = [quantize(use, target) for use in uses]
    pairs = zip(found, map(levels, map(grid, uses)), strict=True)
    value, can = crossing(target, update, [*pairs])
    own = [levels_by_block(use, q) for use, q in zip(uses, found, strict=True)]
    for place in can.flatten().nonzero().flatten().tolist():
        sign = 1 if update.flatten()[place] > 0 else -1
        ahead = []
        for q, table in zip(found, own, strict=True):
            decoded = float(q.weight.flatten()[place])
            ahead.append(
                min((v for v in table[place] if sign * (v - decoded) > 1e-6), key=abs_to(decoded))
            )
        far = max(ahead, key=lambda v: sign * v)
        assert float(value.flatten()[place]) == pytest.approx(far, rel=1e-5, abs=1e-7)


def abs_to(value: float) -> Callable[[float], float]:
    return lambda other: abs(other - value)


def test_no_weight_that_decides_a_scale_crosses() -> None:
    target = drawn()
    update = torch.ones_like(target)
    _, can = crossing(target, update, [(quantize("int4-g16", target), levels(grid("int4-g16")))])
    blocks = target.view(-1, 16).abs()
    assert not bool(can.view(-1, 16)[blocks == blocks.amax(-1, keepdim=True)].any())


def run(
    folder: Path, cut: int | None = None, **settings: Any
) -> tuple[list[Tensor], list[dict[str, float]]]:
    """A small run: the weights at its end, and its log."""
    given = {"method": "npo_gdr", "steps": 4, "lr": 1e-3, "batch_size": 4}
    spec = UnlearnSpec.model_validate(given | settings)
    folder.mkdir(exist_ok=True)
    model, terms = tiny_model(), terms_of(spec)
    groups = make_streams(model, terms, pools(), 0, spec.seed)
    loss_at = make_loss(model, terms, groups, spec.batch_size, 0)

    def stop(done: int, total: int, note: str) -> None:
        if done == cut:
            raise KeyboardInterrupt

    fit(trained_on_grids(everything(model), spec), spec, loss_at, folder, hearing(stop))
    lines = (folder / "steps.jsonl").read_text().splitlines()
    return [p.detach().clone() for p in model.parameters()], [json.loads(x) for x in lines]


@pytest.fixture
def same(tmp_path: Path) -> str:
    (tmp_path / "same.py").write_text(SAME)
    return f"{tmp_path / 'same.py'}:same"


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_the_identity_as_grid_is_the_plain_method_bit_for_bit(
    weights: str, same: str, tmp_path: Path
) -> None:
    plain, log = run(tmp_path / "plain", weights=weights)
    on, own = run(tmp_path / "on", weights=weights, grids=[same])
    assert log == own
    assert all(torch.equal(a, b) for a, b in zip(plain, on, strict=True))
    other, _ = run(tmp_path / "other", weights=weights, grids=["int4"])
    assert not all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


def gradients(model: PreTrainedModel, spec: UnlearnSpec) -> dict[str, Tensor]:
    """Of the loss of the first step of a plain model; the reference is another's."""
    terms = terms_of(spec)
    groups = make_streams(tiny_model(), terms, pools(), 0, spec.seed)
    loss, _ = make_loss(model, terms, groups, spec.batch_size, 0)(0)
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("by", ["straight", "noise"])
def test_the_gradient_is_the_mean_of_two_plain_models(by: str) -> None:
    grids = {"use": ["int4-g16"], "by": by}
    spec = UnlearnSpec.model_validate({"method": "npo_gdr", "batch_size": 4, "grids": grids})
    model = tiny_model(seed=3)
    versions = trained_on_grids(everything(model), spec).versions(0)
    found: dict[str, Tensor] = {}
    for version in versions:
        with version:
            for name, grad in gradients(model, spec).items():
                found[name] = found.get(name, 0) + grad / 2
    twin = tiny_model(seed=3)
    whole, expected = gradients(twin, spec), {}
    moved = tiny_model(seed=3)
    with (
        noisy(moved, grid("int4-g16"), 0, 0) if by == "noise" else rounded(moved, grid("int4-g16"))
    ):
        values = {n: p.detach().clone() for n, p in moved.named_parameters()}
    twin.load_state_dict(values, strict=False)
    for name, grad in gradients(twin, spec).items():
        expected[name] = whole[name] / 2 + grad / 2
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    changed = [m.name for m in matrices(model) if not torch.equal(values[m.name], m.read())]
    assert changed == [m.name for m in matrices(model)]


def test_noise_stays_in_the_cell_and_is_as_large_as_the_error_of_rounding() -> None:
    model, by = tiny_model(), grid("int4")
    before = {m.name: m.read().clone() for m in matrices(model)}
    with noisy(model, by, 0, 5):
        after = {m.name: m.read().clone() for m in matrices(model)}
    apart = torch.cat(
        [
            ((after[m.name] - before[m.name]) / width(cells(q, levels(by)))).flatten()
            for m in matrices(model)
            if (q := on_grid(m, before[m.name], by))
        ]
    )
    assert float(apart.abs().max()) <= 0.5 + 1e-3
    assert float(apart.square().mean()) == pytest.approx(1 / 12, rel=0.02)
    assert all(torch.equal(m.read(), before[m.name]) for m in matrices(model))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_weights_are_what_they_were_even_behind_an_error(architecture: str) -> None:
    shape = {"n_embd": 64, "n_head": 4, "n_layer": 2} if architecture == "gpt2" else {}
    model = tiny_model(architecture, **shape)
    before = {m.name: m.read().clone() for m in matrices(model)}
    with pytest.raises(KeyError):
        look_and_fail(model, before)
    assert all(torch.equal(m.read(), before[m.name]) for m in matrices(model))


def look_and_fail(model: PreTrainedModel, before: dict[str, Tensor]) -> None:
    with rounded(model, grid("int3")):
        for m in matrices(model):
            assert torch.equal(m.read(), quantize("int3", before[m.name]).weight)
        raise KeyError


@pytest.mark.parametrize("by", ["straight", "noise"])
def test_a_run_that_was_cut_draws_the_same_grids(by: str, tmp_path: Path) -> None:
    grids = {"use": ["int4", "nf4", "int3-g32"], "by": by}
    whole = run(tmp_path / "whole", grids=grids)
    with pytest.raises(UserError, match="Interrupted"):
        run(tmp_path / "cut", 2, grids=grids)
    again = run(tmp_path / "cut", grids=grids)
    assert whole[1] == again[1]
    assert all(torch.equal(a, b) for a, b in zip(whole[0], again[0], strict=True))


REFUSED = [
    ({"grids": ["gptq4"]}, "is no grid that rounds a weight by itself"),
    ({"grids": ["int9"]}, "int9"),
    ({"promise": ["bnb-nf4"]}, "cells of 'bnb-4bit' are not known"),
    ({"promise": ["fp8"]}, "cells of 'fp8' are not known"),
    ({"grids": {"use": ["fp8"], "by": "noise"}}, "cells of 'fp8' are not known"),
    ({"grids": ["int4"], "train": {"lora": {}}}, "adapters do not move"),
    ({"promise": ["int4"], "train": {"lora": {"save": "adapter"}}}, "merge the adapter"),
    ({"promise": []}, "at least 1"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_cannot_be_kept_is_refused_in_a_sentence(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_lasting(parse(UnlearnSpec, {"method": "ga"} | settings, "unlearn"))


def test_names_with_commas_are_a_list_and_plain_runs_keep_their_keys() -> None:
    spec = UnlearnSpec.model_validate({"method": "ga", "promise": "int4-g128, nf4"})
    assert spec.promise is not None
    assert spec.promise.use == ("int4-g128", "nf4")
    assert not {"grids", "promise"} & UnlearnSpec(method="ga").identity().keys()


def test_the_fewest_that_are_enough_are_found_with_few_tries() -> None:
    for least in (3, 7, 50, 999, 1000):
        tried: list[int] = []

        def enough(number: int, least: int = least, tried: list[int] = tried) -> bool:
            tried.append(number)
            return number >= least

        assert least <= fewest(enough, 7, 1000) <= max(7, 1.06 * least)
        assert len(tried) < 14


PROMISED = ("int4-g16", "int3", "nf4", "q4_0")


@pytest.mark.parametrize(
    ("weights", "train"),
    [
        ("bf16", "all"),
        pytest.param("fp32", "matrices", marks=pytest.mark.slow),
        pytest.param("bf16", {"lora": {"rank": 4}}, marks=pytest.mark.slow),
    ],
)
def test_a_promise_holds_by_the_codes_that_the_transform_writes(
    weights: str,
    train: Any,
    corpus: Path,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    folder_of: Save,
) -> None:
    model = tiny_model(vocab=len(tokenizer), max_position_embeddings=1024)
    target = folder_of(in_dtype(in_dtype(model, torch.bfloat16), torch.float32), "target")
    spec = UnlearnSpec.model_validate(
        {
            "method": "ga", "steps": 3, "lr": 1e-3, "batch_size": 4, "max_tokens": 64,
            "weights": weights, "compute": "fp32", "train": train, "select": "last",
            "probe_every": 3, "promise": PROMISED,
        }
    )  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    said = unlearn.run(spec, {"target": target, "corpus": corpus}, out, silent)
    kept = json.loads((out / CERTIFICATE).read_text())
    assert said.certificate is not None
    assert kept == said.certificate.model_dump(mode="json")
    assert [k["format"] for k in kept["formats"]] == [*PROMISED]
    edited = edits(open_model(str(target)), open_model(str(out)))
    assert kept["edited"] == sum(int(mask.sum()) for mask in edited.values())
    assert kept["edited"] <= 0.05 * kept["weights"]
    for own in kept["formats"]:
        one, other = (codes(folder, own["format"], tmp_path / f"{name}-{own['format']}")
                      for name, folder in (("target", target), ("out", out)))  # fmt: skip
        differ = {n: one[f"{n}.codes"] != other[f"{n}.codes"] for n in edited}
        assert all(torch.equal(differ[n], edited[n]) for n in edited)
        assert all(torch.equal(one[n], other[n]) for n in one if n.endswith(".scale"))
        assert (own["differ"], own["elsewhere"]) == (kept["edited"], 0)
        assert own["differ_by_library"] in (None, kept["edited"])
    assert kept["formats"][2]["library"] in ("bnb-nf4", "")
    assert "has to be measured" in kept["claim"]
    assert kept["reached"] == (min(losses_in(kept)) >= kept["level"])


def losses_in(kept: dict[str, Any]) -> list[float]:
    return [kept["forget_loss"], *(own["forget_loss"] for own in kept["formats"])]


def edits(target: PreTrainedModel, result: PreTrainedModel) -> dict[str, Tensor]:
    before = {m.name: m.read() for m in matrices(target)}
    return {m.name: m.read() != before[m.name] for m in matrices(result)}


def codes(model: Path, use: str, out: Path) -> dict[str, Tensor]:
    out.mkdir()
    by = step(use)
    transform.run(
        TransformSpec(use=by.spec.use, params=by.spec.params), {"model": model}, out, silent
    )
    found: dict[str, Tensor] = load_file(out / "codes.safetensors")
    return found


def test_where_nothing_moved_nothing_can_be_promised(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, folder_of: Save
) -> None:
    target = folder_of(tiny_model(vocab=len(tokenizer), max_position_embeddings=1024), "target")
    spec = UnlearnSpec(
        method="ga", steps=1, lr=1e-30, max_tokens=64, promise=PromiseSpec(use=("int4",))
    )
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="No weight that the run moved can cross"):
        unlearn.run(spec, {"target": target, "corpus": corpus}, tmp_path / "out", silent)
    assert not (tmp_path / "out" / CERTIFICATE).exists()


@pytest.mark.parametrize("setting", ["promise", "grids"])
def test_a_grid_that_rounds_nothing_of_the_model_is_refused_before_a_step(
    setting: str, corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, folder_of: Save
) -> None:
    target = folder_of(tiny_model(vocab=len(tokenizer), max_position_embeddings=1024), "target")
    settings = {"method": "ga", "steps": 1, "max_tokens": 64, setting: "int4,int4-g5"}
    (tmp_path / "out").mkdir()
    spec = UnlearnSpec.model_validate(settings)
    with pytest.raises(UserError, match="'int4-g5' divide the rows of no weight"):
        unlearn.run(spec, {"target": target, "corpus": corpus}, tmp_path / "out", silent)
    assert not (tmp_path / "out" / "steps.jsonl").exists()


def certified(folder: Path, use: tuple[str, ...], most: float, losses: list[float]) -> Certificate:
    """Of a run that moved all weights at random, whose forget losses are these, one at a look."""
    target, model = open_model(str(folder)), open_model(str(folder))
    for matrix in matrices(model):
        matrix.write(matrix.read() + 0.05 * drawn(3, *matrix.read().shape))
    ahead = iter(losses)
    given = Given(model, target, cast(Any, None), lambda: next(ahead))
    return keep(PromiseSpec(use=use, most=most), given, torch.float32, lambda *said: None)


def test_a_certificate_says_where_the_runs_level_is_not_reached(folder_of: Save) -> None:
    folder = folder_of(tiny_model(), "target")
    # Of the run, then two looks at the most, then the certificate's.
    short = certified(folder, ("int4",), 1e-4, [2.0, 1.0, 1.9, 1.5])
    assert not short.reached
    assert "2.000 nats per token that the run had reached: it is 1.500 under int4" in short.claim
    lost = certified(folder, ("int4",), 1e-4, [2.0, 2.0, math.nan, 2.0, math.nan])
    assert not lost.reached
    assert "nan under int4" in lost.claim
    whole = certified(folder, ("int4",), 1e-4, [2.0, 2.0, 2.0, 2.0, 2.0])
    assert whole.reached
    assert "had reached" not in whole.claim


def test_a_share_of_no_weight_is_said_to_be_none(folder_of: Save) -> None:
    with pytest.raises(UserError, match=r"most = 1e-09 of \d+ weights is none"):
        certified(folder_of(tiny_model(), "target"), ("int4",), 1e-9, [2.0])


def test_weights_that_two_grids_share_out_are_not_counted_under_every(folder_of: Save) -> None:
    # Rows of 64 and of 96: groups of 24 divide the second only, groups of 16 both.
    folder = folder_of(tiny_model(intermediate_size=96), "target")
    found = certified(folder, ("int4-g16", "int4-g24"), 0.01, [9.0] + [1.0] * 20)
    both, some = (kept.differ for kept in found.formats)
    assert 0 < some < both == found.edited
    assert f"and {some} of them have another code than the target's under every" in found.claim


@pytest.mark.slow
def test_the_libraries_find_the_edit_under_their_own_grids(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, folder_of: Save
) -> None:
    pytest.importorskip("llmcompressor")
    pytest.importorskip("bitsandbytes")
    model = tiny_model(
        vocab=len(tokenizer), max_position_embeddings=1024, hidden_size=128, head_dim=32
    )
    target = folder_of(in_dtype(in_dtype(model, torch.bfloat16), torch.float32), "target")
    uses = ("nf4", "fp4", "mxfp4", "nvfp4", "int4-g128-half-step", "q8_0")
    spec = UnlearnSpec.model_validate(
        {"method": "ga", "steps": 3, "lr": 1e-3, "max_tokens": 64, "weights": "bf16"}
        | {"compute": "fp32", "train": "matrices", "promise": uses}
    )
    out = tmp_path / "out"
    out.mkdir()
    found = unlearn.run(spec, {"target": target, "corpus": corpus}, out, silent).certificate
    assert found is not None
    by = {kept.format: (kept.library, kept.differ_by_library) for kept in found.formats}
    exact = {"nf4": "bnb-nf4", "fp4": "bnb-fp4", "mxfp4": "ct-mxfp4a16", "q8_0": "gguf Q8_0"}
    exact |= {"int4-g128-half-step": "ct-w4a16"}
    for use, library in exact.items():
        assert by[use] == (library, found.edited), use
    # llm-compressor gives the projections that vLLM fuses one number, so scales are others there.
    assert by["nvfp4"][0] == "ct-nvfp4a16"
    assert (by["nvfp4"][1] or 0) >= 0.99 * found.edited
