"""NVFP4 and MXFP4: a slow reference and compressed-tensors agree to the last bit, the forecast sees
what the quantizers do, and the files for vLLM hold what was judged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant import cli
from remnant.forecast.checkpoint import Checkpoint
from remnant.forecast.forecast import calibration, forecast, verdict
from remnant.forecast.grids import grid
from remnant.forecast.stream import scan
from remnant.formats.microscaling import by_weight
from remnant.functional.microscaling import LEVELS, mxfp4, nvfp4
from remnant.functional.quantized import Indivisible, Quantized
from remnant.functional.survival import survival
from remnant.methods import step
from remnant.model.load import open_model, save_model
from remnant.stages import transform
from remnant.testing import tiny_model
from tests.conftest import silent
from tests.test_predict import BFLOATS, LAYER, assert_exact, checkpoint, exact, pair, surveyed

BOTH = ["nvfp4", "mxfp4"]
Grid = Callable[[Tensor], Quantized]


def drawn(seed: int = 0, rows: int = 16, columns: int = 128) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


WEIGHTS = {
    "random": drawn(),
    "bfloat16": drawn(1).bfloat16().float(),
    "small": 1e-30 * drawn(2),
    "next to nothing": 1e-37 * drawn(3),
    "below every normal number": 1e-42 * drawn(4),
    "huge": 3e37 * drawn(5),
    "zero": torch.zeros(4, 64),
    "constant": torch.full((4, 64), 0.37),
    "ties": torch.randint(-28, 29, (16, 128), generator=torch.Generator().manual_seed(6)) / 4.0,
    "far apart": drawn(7) * 10.0 ** torch.arange(-30, 30, 3.75)[:, None],
    "far apart within blocks": drawn(8) * 10.0 ** (torch.arange(128) % 11 - 8),
    "powers of two": 2.0 ** (torch.arange(16 * 128).view(16, 128) % 250 - 125),
}  # fmt: skip


def slow(kind: str, weight: Tensor) -> tuple[Tensor, list[float]]:
    """Decoded values and scales, block by block and value by value, in numpy's float32."""
    size, f32 = {"nvfp4": 16, "mxfp4": 32}[kind], np.float32
    values = weight.numpy().reshape(-1, size)
    with np.errstate(all="ignore"):
        shared = f32(2688) * (f32(1) / max(np.abs(values).max(), np.finfo(f32).tiny))
    shared = shared if np.isfinite(shared) else f32(1)
    found, scales = [], []
    for block in values:
        largest = np.abs(block).max()
        if kind == "nvfp4":
            wanted = shared * (largest / f32(6))
            eights = np.sort(torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float())
            near = int(np.abs(eights - wanted).argmin())
            tied = near < 126 and abs(eights[near + 1] - wanted) == abs(eights[near] - wanted)
            kept = eights[near + 1] if tied and near % 2 else eights[near]
            scale = f32(kept or 0.125) / shared
        else:
            mantissa, exponent = np.frexp(largest)  # largest = mantissa * 2^exponent, from 1/2 on
            power = int(exponent) - 1 + int(2 * mantissa >= 1.75)
            scale = f32(2.0 ** max(power - 2, -127)) if largest else f32(2.0**-127)
        scales.append(float(scale))
        for value in block:
            ratio = min(float(f32(abs(value)) / scale), 6.0)
            apart = [(abs(level - ratio), i % 2, level) for i, level in enumerate(LEVELS)]
            found.append(float(np.sign(value) * f32(min(apart)[2]) * scale))
    return torch.tensor(found).view(weight.shape), scales


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("name", WEIGHTS)
def test_every_value_is_the_nearest_level_of_a_slow_reference(kind: str, name: str) -> None:
    weight = WEIGHTS[name]
    ours: Quantized = {"nvfp4": nvfp4, "mxfp4": mxfp4}[kind](weight)
    decoded, scales = slow(kind, weight)
    assert ours.scale.flatten().tolist() == scales
    assert torch.equal(ours.weight, decoded)
    level = torch.tensor([*LEVELS, *(-v for v in LEVELS)])[ours.codes.long()]
    columns = 16 if kind == "nvfp4" else 32
    assert torch.equal((level.view(-1, columns) * ours.scale).view_as(decoded), decoded)


@pytest.mark.parametrize(("ours", "preset"), [(nvfp4, "NVFP4A16"), (mxfp4, "MXFP4A16")])
@pytest.mark.parametrize("name", WEIGHTS)
def test_compressed_tensors_has_the_same_bits(ours: Grid, preset: str, name: str) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    weight, args = WEIGHTS[name], PRESET_SCHEMES[preset]["weights"]
    blocks = weight.unflatten(-1, (-1, args.group_size))
    shared = generate_gparam(weight.min()[None], weight.max()[None]) if ours is nvfp4 else None
    scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, global_scale=shared)
    found = ours(weight)
    assert torch.equal(found.weight, fake_quantize(weight, scale, zero, args, global_scale=shared))
    effective = scale if shared is None else scale / shared
    assert torch.equal(found.scale.flatten(), effective.flatten())
    if shared is not None:
        assert found.shared is not None
        assert torch.equal(found.shared, shared)
        assert by_weight(float(weight.abs().max())) == float(shared)


def test_stacked_matrices_have_a_number_each_and_odd_rows_are_refused() -> None:
    stacked = drawn(rows=48).view(3, 16, 128) * torch.tensor([1.0, 30.0, 1e-4])[:, None, None]
    found = nvfp4(stacked)
    for i, matrix in enumerate(stacked):
        assert torch.equal(found.weight[i], nvfp4(matrix).weight)
    assert found.shared is not None
    assert found.shared.shape == (3,)
    for one, columns in ((nvfp4, 24), (mxfp4, 48)):
        with pytest.raises(Indivisible, match="does not divide"):
            one(torch.zeros(2, columns))


def test_what_the_library_turns_into_nan_is_refused() -> None:
    weight = torch.ones(1, 32)
    weight[0, 3] = 1.75 * 2.0**127
    with pytest.raises(ValueError, match="not finite"):
        mxfp4(weight)
    weight[0, 3] = (1.75 - 2.0**-23) * 2.0**127
    assert bool(mxfp4(weight).weight.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_forecast_sees_what_the_quantizers_do(dtype: torch.dtype, tmp_path: Path) -> None:
    target, unlearned = (w.to(dtype).float() for w in pair())
    assert_exact(tmp_path, BOTH, target, unlearned, dtype)
    for name in BOTH:
        found = surveyed(tmp_path, target, unlearned, [name], dtype)[name]
        assert found.over_scale == pytest.approx(
            exact(name, target, unlearned).over_scale, rel=1e-4
        )


@pytest.mark.parametrize("largest", [1.0, 7 / 64, 0.75, 1.5])
def test_every_value_of_bfloat16_is_foreseen(largest: float, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    values = BFLOATS[BFLOATS.isfinite() & (BFLOATS.abs() <= largest) & (BFLOATS.abs() >= 1e-30)]
    mixed = values[torch.randperm(len(values), generator=generator)]
    target = mixed[: len(mixed) // 128 * 128].reshape(-1, 128).clone()
    target[:, ::32] = largest
    moved = 2.0**-7 * torch.randint(-1, 2, target.shape, generator=generator)
    unlearned = (target * (1 + moved)).bfloat16().float()
    assert_exact(tmp_path, BOTH, target, unlearned, torch.bfloat16)


@pytest.mark.parametrize("size", [1e-44, 1e-41, 1e-39, 1e-30, 1e-6])
def test_tiny_blocks_zeros_and_stacks_are_foreseen(size: float, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    target = size * torch.randn(3, 16, 256, generator=generator)
    unlearned = target + 0.3 * size * torch.randn(target.shape, generator=generator)
    target[0, 3], unlearned[0, 4], target[1, 6, :64], target[2] = 0.0, 0.0, 0.0, 0.0
    target[1, 5] = 0.02 * torch.randn(256, generator=generator)
    assert_exact(tmp_path, BOTH, target, unlearned)


def test_a_sample_knows_the_largest_weight_of_the_whole(tmp_path: Path) -> None:
    target, unlearned = pair(rows=800, columns=2048, update=4e-3)
    target[777, 5] = unlearned[777, 5] = 30000.0  # in no slice but its own
    folders = [
        checkpoint(tmp_path / n, {LAYER: w}, torch.bfloat16)
        for n, w in (("target", target), ("unlearned", unlearned))
    ]
    models = [Checkpoint(f) for f in folders]
    grids = [grid(name) for name in BOTH]
    whole, part = (scan(models[0], models[1], grids, sample=n)[LAYER] for n in (0, 1 << 18))
    for name in BOTH:
        assert part[name] != whole[name]
        assert survival(part[name]).gain == pytest.approx(survival(whole[name]).gain, abs=0.03)
        assert survival(part[name]).in_zero_bin == pytest.approx(
            survival(whole[name]).in_zero_bin, abs=0.03
        )
    bare = (
        torch.where(target == 30000.0, 0.02, target),
        torch.where(unlearned == 30000.0, 0.02, unlearned),
    )
    without = survival(exact("nvfp4", *(w.bfloat16().float() for w in bare)))
    assert abs((survival(whole["nvfp4"]).gain or 0) - (without.gain or 0)) > 0.003


def test_a_forecast_says_that_it_was_not_fitted_to_them(tmp_path: Path) -> None:
    found = surveyed(tmp_path, *pair(), [*BOTH, "int4"])
    told = verdict(
        {(n,): forecast(survival(s), calibration()) for n, s in found.items()}, calibration()
    )
    assert told.endswith("fitted to other formats than nvfp4, mxfp4: quantize and audit these.")


@pytest.mark.parametrize("name", ["ct-nvfp4a16", "ct-mxfp4a16"])
def test_files_for_vllm_hold_what_was_judged(
    name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    pytest.importorskip("llmcompressor")
    shape: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    model = tiny_model(vocab=len(tokenizer), initializer_range=0.2, **shape)
    save_model(model, tokenizer, tmp_path / "m")
    (tmp_path / "dense").mkdir()
    transform.run(step(name).spec, {"model": tmp_path / "m"}, tmp_path / "dense", silent)
    assert_grid(name, model, tmp_path / "dense")
    options = ["--as", name, "-o", str(tmp_path / "out"), "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(cli.main, ["deploy", str(tmp_path / "m"), *options])
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "out" / "remnant.json").read_text())["summary"]
    layer = "model.layers.0.mlp.down_proj"
    judged, opened = (open_model(str(tmp_path / f)).state_dict() for f in ("dense", "out"))
    assert torch.equal(opened[f"{layer}.weight"], judged[f"{layer}.weight"].bfloat16().float())
    # transformers unpacks to bfloat16, which holds MXFP4's values and rounds NVFP4's.
    limit = 0.02 if "nv" in name else 1e-6
    assert summary["against_dense_copy"]["relative"] < limit
    assert summary["against_before_saving"]["relative"] < limit
    kept = load_file(tmp_path / "out" / "model.safetensors")
    assert kept[f"{layer}.weight_packed"].shape == (128, 128)
    narrow = torch.float8_e4m3fn if "nv" in name else torch.uint8
    assert kept[f"{layer}.weight_scale"].dtype == narrow


def assert_grid(name: str, model: PreTrainedModel, dense: Path) -> None:
    """A dense copy of llm-compressor against our grids; layers that vLLM fuses share a number."""
    found, plain = open_model(str(dense)).state_dict(), model.state_dict()
    block = "model.layers.0."
    groups = [["self_attn.o_proj"], ["mlp.down_proj"], ["mlp.gate_proj", "mlp.up_proj"],
              [f"self_attn.{p}_proj" for p in "qkv"]]  # fmt: skip
    for group in groups:
        names = [f"{block}{layer}.weight" for layer in group]
        together = torch.cat([plain[n] for n in names])
        ours = (nvfp4 if "nv" in name else mxfp4)(together).weight
        assert torch.equal(torch.cat([found[n] for n in names]), ours), group
