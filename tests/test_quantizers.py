"""Grids by hand, against slow second implementations, and bit for bit against bitsandbytes."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from remnant import levels
from remnant.functional import quantizers
from remnant.functional.quantized import Quantized

SCHEMES = ["sym", "half-step", "paper", "asym"]
GRANULARITIES = ["tensor", "channel", "group"]


def weights(rows: int = 8, columns: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_symmetric_grid_by_hand() -> None:
    found = quantizers.rtn(torch.tensor([[7.0, -7.0, 3.4, 3.6, 0.5, -0.4]]), bits=4)
    assert found.codes.tolist() == [[7, -7, 3, 4, 0, 0]]
    assert found.scale.tolist() == [[1.0]]
    assert found.weight.tolist() == [[7.0, -7.0, 3.0, 4.0, 0.0, 0.0]]


def test_half_step_grid_by_hand() -> None:
    found = quantizers.rtn(torch.tensor([[7.5, -7.5, 1.2]]), bits=4, scheme="half-step")
    assert found.scale.item() == 1.0
    assert found.codes.tolist() == [[7, -8, 1]]


def test_the_papers_grid_by_hand() -> None:
    # max|w| = 200 and N = 4 gives a step of 25, N = 8 one of 1.5625.
    weight = torch.tensor([[200.0, -200.0, 30.0]])
    four = quantizers.rtn(weight, bits=4, granularity="tensor", scheme="paper")
    assert four.scale.item() == 25.0
    assert four.weight.tolist() == [[175.0, -200.0, 25.0]]
    assert (
        quantizers.rtn(weight, bits=8, granularity="tensor", scheme="paper").scale.item() == 1.5625
    )


def test_asymmetric_grid_by_hand() -> None:
    found = quantizers.rtn(torch.tensor([[0.0, 15.0, 7.2]]), bits=4, scheme="asym")
    assert found.scale.item() == 1.0
    assert found.weight.tolist() == [[0.0, 15.0, 7.0]]
    assert found.codes.tolist() == [[-8, 7, -1]]


def slow_rtn(weight: Tensor, bits: int, granularity: str, group: int, scheme: str) -> Tensor:
    """One value at a time, in float32 scalars."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    out = torch.empty_like(weight)
    for r in range(weight.shape[0]):
        for c in range(weight.shape[1]):
            if granularity == "tensor":
                block = weight
            elif granularity == "channel":
                block = weight[r]
            else:
                block = weight[r, c - c % group : c - c % group + group]
            w = weight[r, c]
            if scheme == "asym":
                smallest, largest = block.min().clamp(max=0), block.max().clamp(min=0)
                step = (largest - smallest) / (high - low)
                zero = (low - torch.round(smallest / step)).clamp(low, high)
                code = (torch.round(w / step) + zero).clamp(low, high)
                out[r, c] = (code - zero) * step
            else:
                divisor = {"sym": high, "half-step": (2**bits - 1) / 2, "paper": -low}[scheme]
                step = block.abs().max() / divisor
                code = torch.round(w / step).clamp(-high if scheme == "sym" else low, high)
                out[r, c] = code * step
    return out


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_rtn_equals_the_slow_reference_bit_for_bit(
    bits: int, granularity: str, scheme: str
) -> None:
    weight = weights(4, 32)
    found = quantizers.rtn(weight, bits=bits, granularity=granularity, group_size=16, scheme=scheme)
    assert torch.equal(found.weight, slow_rtn(weight, bits, granularity, 16, scheme))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_error_is_at_most_half_a_step_inside_the_grid(bits: int, scheme: str) -> None:
    weight = weights()
    found = quantizers.rtn(weight, bits=bits, granularity="group", group_size=32, scheme=scheme)
    steps = found.scale.repeat_interleave(32, 1).view_as(weight)
    clipped = {"sym": 0.0, "asym": 0.5, "half-step": 0.5, "paper": 1.0}[scheme]
    inside = (
        found.codes < 2 ** (bits - 1) - 1 if clipped else torch.ones_like(weight, dtype=torch.bool)
    )
    assert bool(((weight - found.weight).abs() <= 0.5001 * steps)[inside].all())
    assert bool(((weight - found.weight).abs() <= (0.5001 + clipped) * steps).all())
    assert int(found.codes.max()) <= 2 ** (bits - 1) - 1
    assert int(found.codes.min()) >= -(2 ** (bits - 1))


def encode(decoded: Tensor, found: Quantized, block: int) -> Tensor:
    """Codes of decoded values under the same scale and zero."""
    zero = found.zero if found.zero is not None else torch.zeros_like(found.scale)
    return (
        ((decoded.view(-1, block) / found.scale).round() + zero).view(decoded.shape).to(torch.int8)
    )


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_decoded_weight_encodes_to_the_same_codes(bits: int, scheme: str) -> None:
    found = quantizers.rtn(weights(), bits=bits, granularity="group", group_size=32, scheme=scheme)
    assert torch.equal(encode(found.weight, found, 32), found.codes)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_more_bits_mean_less_error(scheme: str) -> None:
    weight = weights()
    errors = [
        float((quantizers.rtn(weight, bits=b, scheme=scheme).weight - weight).square().mean())
        for b in range(2, 9)
    ]
    assert errors == sorted(errors, reverse=True)


def test_a_block_of_zeros_stays_zero() -> None:
    weight = weights()
    weight[0] = 0.0
    for found in (
        quantizers.rtn(weight),
        quantizers.rtn(weight, scheme="asym"),
        quantizers.nf4(weight),
        quantizers.fp4(weight),
    ):
        assert not bool(found.weight[0].any())
        assert bool(found.weight.isfinite().all())


@pytest.mark.parametrize(
    ("params", "message"),
    [({"bits": 9}, "bits"), ({"granularity": "g"}, "granularity"), ({"scheme": "x"}, "scheme")],
)
def test_wrong_parameters_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantizers.rtn(weights(), **params)


def test_a_group_must_divide_the_row() -> None:
    with pytest.raises(ValueError, match="does not divide"):
        quantizers.rtn(weights(2, 48), granularity="group", group_size=32)


@pytest.mark.parametrize("name", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(8, 64), (16, 256), (96, 128)])
def test_float_grids_equal_bitsandbytes_bit_for_bit(name: str, shape: tuple[int, int]) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = weights(*shape, seed=shape[0])
    weight[1] = 0.0
    packed, state = functional.quantize_4bit(
        weight, blocksize=64, quant_type=name, compress_statistics=False
    )
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], -1).view(shape)
    found = getattr(quantizers, name)(weight)
    assert torch.equal(found.codes, codes.to(torch.int8))
    assert torch.equal(found.weight, functional.dequantize_4bit(packed, state))


@pytest.mark.parametrize(
    ("name", "known"), [("nf4", levels.NF4_LEVELS), ("fp4", levels.FP4_LEVELS)]
)
def test_float_grids_take_the_nearest_level(name: str, known: tuple[float, ...]) -> None:
    weight = weights(2, 64)
    found = getattr(quantizers, name)(weight)
    for w, d in zip(weight.flatten().tolist(), found.weight.flatten().tolist(), strict=True):
        amax = float(weight[0 if w in weight[0].tolist() else 1].abs().max())
        assert abs(w - d) <= min(abs(w - level * amax) for level in known) + 1e-6
    assert math.isclose(float(found.weight.abs().max()), float(weight.abs().max()))


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_a_float_grid_weight_is_a_fixed_point(name: str) -> None:
    quantize = getattr(quantizers, name)
    once = quantize(weights())
    assert torch.equal(quantize(once.weight).weight, once.weight)


def test_experts_are_rows() -> None:
    weight = weights(6, 64).view(2, 3, 64)
    flat = quantizers.rtn(weight.view(6, 64))
    assert torch.equal(quantizers.rtn(weight).weight, flat.weight.view(2, 3, 64))
    apart = torch.stack([quantizers.rtn(w, granularity="tensor").weight for w in weight])
    assert torch.equal(quantizers.rtn(weight, granularity="tensor").weight, apart)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_gguf_blocks_equal_those_of_the_gguf_library(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    weight = weights(5, 96)
    weight[2] = 0.0
    kind = getattr(gguf.GGMLQuantizationType, name)
    known = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)
    assert torch.equal(getattr(quantizers, name.lower())(weight).weight, torch.from_numpy(known))


def test_e4m3_keeps_four_significant_bits() -> None:
    weight = weights(3, 64)
    found = quantizers.fp8(weight)
    scaled = weight / found.scale
    normal = scaled.abs() >= 1 / 64
    error = (found.weight / found.scale - scaled).abs()
    assert bool((error[normal] <= scaled.abs()[normal] / 16).all())
    assert bool((error[~normal] <= 1 / 1024 + 1e-7).all())
    assert torch.allclose(found.weight.abs().amax(-1), weight.abs().amax(-1))
