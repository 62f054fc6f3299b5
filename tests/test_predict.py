"""Prediction: sums of the stream against exact tensors, files in every form, faults in one
sentence, forecasts at both ends."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

from remnant.cli import main
from remnant.errors import UserError
from remnant.forecast.checkpoint import Checkpoint
from remnant.forecast.forecast import Calibration, Forecast, calibration, forecast, verdict
from remnant.forecast.grids import DEFAULT, grid
from remnant.forecast.stream import scan
from remnant.functional import flips
from remnant.functional.survival import Sums, Survival, survival, survival_of_model
from remnant.methods import step

NAMES = [
    *DEFAULT,
    "int2",
    "int4-g64-asym",
    "int4-asym",
    "int4-half-step",
    "int4-tensor-paper",
    "nf4-b128",
    "int8-tensor",
]
LAYER = "model.layers.0.mlp.up_proj.weight"


def pair(rows: int = 24, columns: int = 256, update: float = 2e-3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + columns)
    target = 0.02 * torch.randn(rows, columns, generator=generator)
    target[1] = 0.0
    moved = torch.rand(rows, columns, generator=generator) < 0.7
    return target, target + moved * update * torch.randn(rows, columns, generator=generator)


def checkpoint(
    folder: Path, weights: dict[str, Tensor], dtype: torch.dtype = torch.float32, **config: Any
) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(
        {k: v.to(dtype).contiguous() for k, v in weights.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    return folder


def exact(name: str, target: Tensor, unlearned: Tensor) -> Sums:
    by = step(name)
    quantize, params = by.method.load(), by.spec.params
    return flips.sums(target, unlearned, quantize(target, **params), quantize(unlearned, **params))


def surveyed(
    tmp_path: Path,
    target: Tensor,
    unlearned: Tensor,
    names: list[str],
    dtype: torch.dtype = torch.float32,
) -> dict[str, Sums]:
    folders = [
        checkpoint(tmp_path / n, {LAYER: w}, dtype)
        for n, w in (("target", target), ("unlearned", unlearned))
    ]
    return scan(Checkpoint(folders[0]), Checkpoint(folders[1]), [grid(n) for n in names])[LAYER]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_the_stream_equals_exact_tensors(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    target, unlearned = (w.to(dtype).float() for w in pair())
    found, known = (
        surveyed(tmp_path, target, unlearned, [name], dtype)[name],
        exact(name, target, unlearned),
    )
    assert (found.weights, found.changed) == (known.weights, known.changed)
    assert (found.same_code, found.erased) == (known.same_code, known.erased)
    assert found.update == pytest.approx(known.update, rel=1e-5)
    # The scale that GGUF keeps is the step as float16.
    assert found.over_scale == pytest.approx(
        known.over_scale, rel=1e-3 if name in ("q8_0", "q4_0") else 1e-4
    )
    assert found.restored == pytest.approx(known.restored, rel=1e-5)
    assert found.together == pytest.approx(known.together, rel=1e-5)


@pytest.mark.parametrize("columns", [48, 100, 4096])
def test_odd_rows_long_rows_and_many_pieces(columns: int, tmp_path: Path) -> None:
    target, unlearned = pair(rows=150, columns=columns)
    found = surveyed(
        tmp_path, target, unlearned, ["int4", "nf4", "fp4", "int4-tensor", "int4-g128"]
    )
    assert ("int4-g128" in found) == (columns % 128 == 0)
    for name, sums in found.items():
        known = exact(name, target, unlearned)
        assert sums.weights == known.weights
        assert sums.together == pytest.approx(known.together, rel=2e-3)
        assert sums.same_code == pytest.approx(known.same_code, rel=1e-3)


def test_shards_transposed_weights_and_what_is_left_out(tmp_path: Path) -> None:
    target, unlearned = pair(rows=64, columns=128)
    for name, weight in (("target", target), ("unlearned", unlearned)):
        folder = checkpoint(tmp_path / name, {"h.0.mlp.c_fc.weight": weight.T}, model_type="gpt2")
        others = {n: torch.randn(64, 128) for n in ("wte.weight", "lm_head.weight")} | {
            "h.0.ln_1.weight": torch.randn(128)
        }
        save_file(others, folder / "model-2.safetensors")
    models = [Checkpoint(tmp_path / n) for n in ("target", "unlearned")]
    found = scan(models[0], models[1], [grid("int4")])
    assert list(found) == ["h.0.mlp.c_fc.weight"]
    known = exact("int4", target, unlearned)
    assert found["h.0.mlp.c_fc.weight"]["int4"].together == pytest.approx(known.together, rel=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_is_not_an_update(dtype: torch.dtype, tmp_path: Path) -> None:
    target, _ = pair()
    for name, kept in (("target", torch.float32), ("unlearned", dtype)):
        checkpoint(tmp_path / name, {LAYER: target}, kept)
    models = [Checkpoint(tmp_path / n) for n in ("target", "unlearned")]
    assert (
        scan(models[0], models[1], [grid("int4"), grid("int4-tensor")])[LAYER]["int4"].changed == 0
    )
    assert np.array_equal(
        models[0].read(LAYER, {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]),
        target.to(dtype).float().numpy(),
    )


def test_both_ends(tmp_path: Path) -> None:
    weight = torch.linspace(-1, 1, 64).repeat(4, 1)
    erased = weight.clone()
    erased[:, 30:34] += 1e-3
    whole = survival(surveyed(tmp_path, weight, erased, ["int4"])["int4"])
    assert (whole.gain, whole.in_zero_bin, whole.same_codes) == (0.0, 1.0, 1.0)
    assert survival(surveyed(tmp_path, weight, weight * 2, ["int4"])["int4"]).gain == pytest.approx(
        1.0, abs=0.01
    )
    assert survival(surveyed(tmp_path, weight, weight, ["int4"])["int4"]).gain is None


def spoil_shape(folder: Path) -> None:
    checkpoint(folder, {LAYER: torch.zeros(3, 5)})


def spoil_name(folder: Path) -> None:
    checkpoint(folder, {"model.layers.9.mlp.up_proj.weight": torch.zeros(24, 256)})


def spoil_length(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def spoil_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors at all")


def spoil_dtype(folder: Path) -> None:
    checkpoint(folder, {LAYER: torch.zeros(24, 256, dtype=torch.int8)}, torch.int8)


def spoil_values(folder: Path) -> None:
    checkpoint(folder, {LAYER: torch.full((24, 256), float("nan"))})


def spoil_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {LAYER: "gone.safetensors"}})
    )


def spoil_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_shape, "has shape"),
        (spoil_name, "has no weight"),
        (spoil_length, "cut short"),
        (spoil_header, "damaged"),
        (spoil_dtype, "already quantized"),
        (spoil_values, "not finite"),
        (spoil_shard, "is missing"),
        (spoil_folder, "no \\*.safetensors"),
    ],
)
def test_faults_are_one_sentence_with_a_remedy(spoil: Any, says: str, tmp_path: Path) -> None:
    target, unlearned = pair()
    folders = [
        checkpoint(tmp_path / n, {LAYER: w})
        for n, w in (("target", target), ("unlearned", unlearned))
    ]
    spoil(folders[1])
    with pytest.raises(UserError, match=says):
        scan(Checkpoint(folders[0]), Checkpoint(folders[1]), [grid("int4")])
    run = CliRunner().invoke(main, ["predict", *map(str, folders), "--out", str(tmp_path / "out")])
    assert run.exit_code == 2, run.output
    assert isinstance(run.exception, SystemExit)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("int44", "int4"),
        ("gptq4", "known only when its library"),
        ("awq4", "known only when its library"),
    ],
)
def test_unknown_and_unpredictable_grids_are_refused(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        grid(name)


def test_the_command_writes_a_page_and_needs_no_torch(tmp_path: Path) -> None:
    target, unlearned = pair()
    folders = [
        checkpoint(tmp_path / n, {LAYER: w})
        for n, w in (("target", target), ("unlearned", unlearned))
    ]
    code = (
        "import sys; from click.testing import CliRunner; from remnant.cli import main\n"
        f"r = CliRunner().invoke(main, ['predict', {str(folders[0])!r}, {str(folders[1])!r}, "
        f"'--out', {str(tmp_path / 'out')!r}])\n"
        "assert r.exit_code == 0, r.output; assert 'torch' not in sys.modules; print(r.output)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "int4-tensor" in shown
    record = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert set(record["grids"]) == set(DEFAULT)
    assert record["grids"]["int4"]["gain"] == pytest.approx(
        survival(exact("int4", target, unlearned)).gain, rel=2e-3
    )
    page = (tmp_path / "out" / "prediction.html").read_text()
    assert record["verdict"] in page
    assert "<svg" in page


def surviving(gain: float | None, cosine: float | None) -> Survival:
    return Survival(gain, cosine, None, None, None, None, None)


def test_forecasts_fall_with_the_gain_and_stay_within_their_range() -> None:
    by = calibration()
    assert by.early < 0
    gains = np.linspace(0, 1.2, 13)
    found = [forecast(surviving(float(g), 0.5), by) for g in gains]
    values = [f.recovery for f in found if f]
    assert len(values) == len(gains)
    assert values == sorted(values, reverse=True)
    assert all(0 <= f.low <= f.recovery <= f.high <= 1 for f in found if f)
    assert forecast(surviving(None, None), by) is None


def test_the_verdict_names_every_grid_once() -> None:
    by = Calibration(4.0, -6.0, -2.0, 0.1, 0.1, 10, 2, 1.0, 10, 2, 1.0, 1.0, ("rtn",))
    known = {
        "erased": surviving(0.0, None),
        "survives": surviving(1.0, 1.0),
        "between": surviving(0.67, 0.7),
    }
    told = verdict({(name,): forecast(s, by) for name, s in known.items()}, by)
    assert "come back under erased" in told
    assert "nothing expected to come back under survives" in told
    assert "undecided under between" in told
    assert "nothing was unlearned" in verdict({("a",): None}, by)


def test_a_forecast_says_which_formats_it_was_not_fitted_to() -> None:
    by, erased = calibration(), surviving(0.0, None)
    fitted: dict[tuple[str, ...], Forecast | None] = {
        (name,): forecast(erased, by) for name in ("int4-g64", "nf4", "ct-w4a16")
    }
    assert "fitted to other" not in verdict(fitted, by)
    young = by._replace(formats=tuple(f for f in by.formats if f != "nf4"))
    assert verdict(fitted, young).endswith(
        "The forecast was fitted to other formats than nf4: quantize and audit these."
    )


def test_weights_that_are_kept_keep_their_update(tmp_path: Path) -> None:
    target, unlearned = pair()
    names = (LAYER, LAYER.replace("up", "down"))
    models = []
    for n, w in (("target", target), ("unlearned", unlearned)):
        folder = checkpoint(tmp_path / n, {name: w.clone() for name in names})
        models.append(Checkpoint(folder))
    found = scan(models[0], models[1], [grid("int4")], keep=["down_proj"])
    plain = scan(models[0], models[1], [grid("int4")])
    assert found[LAYER] == plain[LAYER]
    kept = found[names[1]]["int4"]
    assert (kept.update, kept.changed) == (
        plain[LAYER]["int4"].update,
        plain[LAYER]["int4"].changed,
    )
    assert kept.together == kept.restored == kept.update
    assert survival(kept).gain == survival(kept).cosine == 1.0


@pytest.mark.parametrize(
    "name", ["int4-tensor", "int4", "int4-g128", "int3", "int4-half-step", "int4-asym", "fp8"]
)
@pytest.mark.parametrize("largest", [7 / 64, 0.1, 5 / 48])
def test_ties_go_where_division_sends_them(name: str, largest: float, tmp_path: Path) -> None:
    """Weights in bfloat16 on halves of a step, where a quotient that is off by its last bit gives
    another code."""
    generator = torch.Generator().manual_seed(3)
    halves = torch.randint(-14, 15, (40, 4096), generator=generator) / 14 * largest
    halves[:, 0] = largest
    target = halves.bfloat16().float()
    unlearned = (
        (target * (1 + 2.0**-7 * torch.randint(-1, 2, target.shape, generator=generator)))
        .bfloat16()
        .float()
    )
    found, known = (
        surveyed(tmp_path, target, unlearned, [name], torch.bfloat16)[name],
        exact(name, target, unlearned),
    )
    assert (found.same_code, found.erased, found.changed) == (
        known.same_code,
        known.erased,
        known.changed,
    )
    assert found.together == pytest.approx(known.together, rel=1e-5)


def test_a_sample_of_a_large_weight_tells_nearly_the_same(tmp_path: Path) -> None:
    target, unlearned = pair(rows=800, columns=2048, update=4e-3)
    folders = [
        checkpoint(tmp_path / n, {LAYER: w}, torch.bfloat16)
        for n, w in (("target", target), ("unlearned", unlearned))
    ]
    models = [Checkpoint(f) for f in folders]
    grids = [grid(n) for n in ("int8", "int4", "int4-tensor", "nf4")]
    whole, part = (scan(models[0], models[1], grids, sample=n)[LAYER] for n in (0, 1 << 18))
    for name, known in whole.items():
        found = part[name]
        assert found != known
        assert (found.update, found.weights, found.changed) == (
            known.update,
            known.weights,
            known.changed,
        )
        assert survival(found).gain == pytest.approx(survival(known).gain, abs=0.03)
        for share in ("same_codes", "in_zero_bin", "cosine"):
            assert getattr(survival(found), share) == pytest.approx(
                getattr(survival(known), share), abs=0.03
            ), share
        assert survival(found).update_over_scale == pytest.approx(
            survival(known).update_over_scale, rel=0.03
        )


def test_an_update_that_a_sample_would_miss_is_not_sampled(tmp_path: Path) -> None:
    target, _ = pair(rows=800, columns=2048)
    unlearned = target.clone()
    unlearned[3] += 1e-3
    folders = [
        checkpoint(tmp_path / n, {LAYER: w})
        for n, w in (("target", target), ("unlearned", unlearned))
    ]
    models = [Checkpoint(f) for f in folders]
    assert scan(models[0], models[1], [grid("int4")], sample=1 << 18) == scan(
        models[0], models[1], [grid("int4")], sample=0
    )


def test_the_early_blocks_are_counted_apart() -> None:
    erased, survives = Sums(1.0, 0.0, 0.0, 0.0, 10, 5, 10, 5), Sums(1.0, 1.0, 1.0, 0.0, 10, 5, 0, 0)
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(8)]
    found = survival_of_model(
        {name: survives if i < 2 else erased for i, name in enumerate(names)}
        | {"other.weight": erased}
    )
    assert (found.early_gain, found.late_gain) == (1.0, 0.0)
    assert found.gain == pytest.approx(2 / 9)
    assert (
        survival_of_model(
            {"h.0.attn.c_attn.weight": survives, "h.1.attn.c_attn.weight": erased}
        ).early_gain
        == 1.0
    )
    assert survival_of_model({"w": survives}).early_gain is None
    by = calibration()
    early, late = (
        forecast(surviving(0.5, 0.5)._replace(early_gain=e, late_gain=1 - e), by)
        for e in (1.0, 0.0)
    )
    assert early
    assert late
    assert early.recovery < 0.2 < 0.5 < late.recovery


BFLOATS = (torch.arange(1 << 16, dtype=torch.int32) << 16).view(torch.float32)


def assert_exact(
    tmp_path: Path,
    names: list[str],
    target: Tensor,
    unlearned: Tensor,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Codes, zeros and sums as the quantizers have them, weight for weight."""
    found = surveyed(tmp_path, target, unlearned, names, dtype)
    for name in names:
        sums, known = found[name], exact(name, target, unlearned)
        assert (sums.same_code, sums.erased, sums.changed, sums.weights) == (
            known.same_code,
            known.erased,
            known.changed,
            known.weights,
        ), name
        assert sums.restored == pytest.approx(known.restored, rel=1e-5, abs=1e-30), name
        assert sums.together == pytest.approx(known.together, rel=1e-5, abs=1e-30), name


@pytest.mark.parametrize("largest", [1.0, 7 / 64, 0.75, 1.5])
def test_every_value_of_bfloat16_is_rounded_as_the_quantizers_do(
    largest: float, tmp_path: Path
) -> None:
    """All values up to the largest, in blocks whose largest stands on either side or on both, the
    first of which sets q4_0's scale."""
    generator = torch.Generator().manual_seed(0)
    values = BFLOATS[BFLOATS.isfinite() & (BFLOATS.abs() <= largest) & (BFLOATS.abs() >= 1e-30)]
    rows = (
        values[torch.randperm(len(values), generator=generator)][: len(values) // 128 * 128]
        .reshape(-1, 128)
        .clone()
    )
    rows[:, 0], rows[:, 32], rows[:, 96], rows[:, 127], rows[::2, 64] = (
        largest,
        -largest,
        largest,
        -largest,
        -largest,
    )
    target = rows.bfloat16().float()
    unlearned = (
        (target * (1 + 2.0**-7 * torch.randint(-1, 2, target.shape, generator=generator)))
        .bfloat16()
        .float()
    )
    assert_exact(tmp_path, NAMES, target, unlearned, torch.bfloat16)


def test_stacked_experts_have_a_scale_each(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    target = (
        0.02
        * torch.randn(4, 24, 256, generator=generator)
        * torch.tensor([1.0, 3.0, 10.0, 0.1])[:, None, None]
    )
    unlearned = target + 1e-3 * torch.randn(target.shape, generator=generator)
    assert_exact(tmp_path, NAMES, target, unlearned)
    alone = [
        surveyed(tmp_path, t, u, ["int4-tensor"])["int4-tensor"]
        for t, u in zip(target, unlearned, strict=True)
    ]
    together = surveyed(tmp_path, target, unlearned, ["int4-tensor"])["int4-tensor"]
    assert together.together == pytest.approx(sum(s.together for s in alone))
    odd = 0.02 * torch.randn(5, 7, 50, generator=generator)
    assert_exact(
        tmp_path,
        ["int4", "nf4", "fp4", "int4-tensor", "nf4-b128"],
        odd,
        odd + 1e-3 * torch.randn(odd.shape, generator=generator),
    )


@pytest.mark.parametrize("size", [1e-44, 1e-41, 1e-39, 1e-38, 1e-30, 1e-6])
def test_tiny_blocks_and_zeros_are_rounded_as_the_quantizers_do(
    size: float, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(2)
    target = size * torch.randn(16, 256, generator=generator)
    unlearned = target + 0.3 * size * torch.randn(target.shape, generator=generator)
    target[3], unlearned[4], target[6, :64], target[7], unlearned[7] = 0.0, 0.0, 0.0, -0.0, 0.0
    target[5] = 0.02 * torch.randn(256, generator=generator)
    assert_exact(tmp_path, NAMES, target, unlearned)


def test_an_update_that_is_erased_leaves_no_trace_of_rounding(tmp_path: Path) -> None:
    target, _ = pair()
    target[:, 0] = 0.1
    unlearned = target.clone()
    unlearned[:, 5] += 1e-7
    found = surveyed(tmp_path, target, unlearned, ["int4", "int4-tensor", "nf4"])
    for name, sums in found.items():
        known = survival(exact(name, target, unlearned))
        assert (sums.restored == 0) == (known.cosine is None), name
        assert survival(sums).cosine == pytest.approx(known.cosine), name


def spoil_infinity(folder: Path) -> None:
    weight = torch.zeros(24, 256)
    weight[3, 4] = float("-inf")
    checkpoint(folder, {LAYER: weight})


def spoil_norm(folder: Path) -> None:
    checkpoint(folder, {LAYER: pair()[0], "model.norm.weight": torch.full((8,), float("nan"))})


def spoil_surplus(folder: Path) -> None:
    checkpoint(
        folder,
        {
            LAYER: pair()[0],
            "model.norm.weight": torch.ones(8),
            "model.layers.0.extra.weight": torch.ones(8, 8),
        },
    )


def spoil_prefix(folder: Path) -> None:
    checkpoint(folder, {f"module.{LAYER}": pair()[0], "module.model.norm.weight": torch.ones(8)})


@pytest.mark.parametrize("spoiled", [0, 1])
@pytest.mark.parametrize("more", [[], ["--keep", "up_proj"]])
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_values, "not finite"),
        (spoil_infinity, "not finite"),
        (spoil_norm, "model.norm.weight"),
        (spoil_surplus, "model.layers.0.extra.weight"),
        (spoil_prefix, "left there by DataParallel"),
    ],
)
def test_broken_and_foreign_weights_are_refused_on_either_side(
    spoil: Any, says: str, more: list[str], spoiled: int, tmp_path: Path
) -> None:
    whole = (
        {LAYER: pair()[0]}
        if spoil in (spoil_values, spoil_infinity)
        else {LAYER: pair()[0], "model.norm.weight": torch.ones(8)}
    )
    folders = [checkpoint(tmp_path / n, whole) for n in ("target", "unlearned")]
    spoil(folders[spoiled])
    run = CliRunner().invoke(
        main, ["predict", *map(str, folders), *more, "--out", str(tmp_path / "out")]
    )
    assert run.exit_code == 2, run.output
    assert says in run.output
    assert not (tmp_path / "out").exists()


def test_grids_touch_linear_layers_and_experts_only(tmp_path: Path) -> None:
    names = (
        "mixer.A_log",
        "mixer.conv1d.weight",
        "mlp.gate.weight",
        "mlp.router.weight",
        "input_layernorm.weight",
        "self_attn.q_proj.bias",
    )
    weights = {f"model.layers.0.{n}": torch.ones(8, 8) for n in names} | {
        "model.embed_tokens.weight": torch.ones(8, 8)
    }
    experts = {"model.layers.0.mlp.experts.down_proj": torch.ones(2, 8, 8), LAYER: torch.ones(8, 8)}
    assert set(Checkpoint(checkpoint(tmp_path / "m", weights | experts)).matrices()) == set(experts)


@pytest.mark.parametrize("name", ["int4-g0", "nf4-b0", "bnb-nf4-b7", "awq8-g7"])
def test_grids_with_impossible_parameters_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="not"):
        grid(name)
