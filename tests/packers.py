"""Writers of packed models, slow and plain: every number is put into its word by itself."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

State = dict[str, Tensor]
# For a weight [out, in]: the tensors that are kept of it by their last names, and what they stand
# for.
Pack = Callable[[Tensor], tuple[State, Tensor]]
GROUP = 64
# Which column of eight lies in which four bits of a word of AWQ's, the lowest first.
AWQ_PLACES = {0: 0, 1: 4, 2: 1, 3: 5, 4: 2, 5: 6, 6: 3, 7: 7}
LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def integers(weight: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [out, in], scales and zeros [out, groups] of a weight, scales as float16 holds them."""
    blocks = weight.reshape(len(weight), -1, GROUP)
    low, high = blocks.amin(-1), blocks.amax(-1)
    top = 2**bits - 1
    if symmetric:
        scale = (blocks.abs().amax(-1) / (2 ** (bits - 1) - 1)).half().float()
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        scale = ((high - low) / top).half().float()
        zero = (-low / scale).round().clamp(1, top)
    codes = ((blocks / scale[..., None]).round() + zero[..., None]).clamp(0, top)
    return codes.reshape(weight.shape), scale, zero


def decoded(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    blocks = codes.reshape(len(codes), -1, GROUP)
    return ((blocks - zero[..., None]) * scale[..., None]).reshape(codes.shape)


def words(rows: list[list[int]], bits: int, place: Mapping[int, int] | None = None) -> Tensor:
    """Rows of small numbers -> rows of words of 32 bits."""
    each = 32 // bits
    found = []
    for row in rows:
        made = [0] * (len(row) // each)
        for i, number in enumerate(row):
            inside = (place or {}).get(i % each, i % each)
            made[i // each] |= number << (bits * inside)
        found.append([m - 2**32 if m >= 2**31 else m for m in made])
    return torch.tensor(found, dtype=torch.int32)


def gptq(bits: int = 4, symmetric: bool = False, less: int = 1, shuffled: bool = False) -> Pack:
    """``less``: how much less than the zero is kept; ``shuffled``: inputs belong to groups in
    another order."""

    def pack(weight: Tensor) -> tuple[State, Tensor]:
        order = torch.arange(weight.shape[1])
        if shuffled:
            order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(0))
        codes, scale, zero = integers(weight[:, order], bits, symmetric)
        dense = torch.empty_like(weight)
        dense[:, order] = decoded(codes, scale, zero)
        by_input = torch.empty_like(codes)
        by_input[:, order] = codes
        groups = torch.empty(weight.shape[1], dtype=torch.int32)
        groups[order] = (torch.arange(weight.shape[1]) // GROUP).int()
        return {
            "qweight": words(by_input.int().tolist(), bits).T,
            "qzeros": words((zero - less).int().T.tolist(), bits),
            "scales": scale.T.half(),
            "g_idx": groups,
        }, dense

    return pack


def awq(weight: Tensor) -> tuple[State, Tensor]:
    codes, scale, zero = integers(weight, 4, False)
    return {
        "qweight": words(codes.int().T.tolist(), 4, AWQ_PLACES),
        "qzeros": words(zero.int().T.tolist(), 4, AWQ_PLACES),
        "scales": scale.T.half(),
    }, decoded(codes, scale, zero)


def fp8(weight: Tensor) -> tuple[State, Tensor]:
    """Blocks of 64 x 64 with a scale each."""
    rows, columns = weight.shape
    blocks = weight.reshape(rows // 64, 64, columns // 64, 64)
    scale = blocks.abs().amax((1, 3)) / 448
    wide = scale[:, None, :, None]
    kept = (blocks / wide).to(torch.float8_e4m3fn)
    return {
        "weight": kept.reshape(weight.shape),
        "weight_scale_inv": scale,
    }, (kept.float() * wide).reshape(weight.shape)


def write(source: Path, out: Path, pack: Pack, **settings: Any) -> State:
    """A packed copy of a model's folder; what all of its weights stand for."""
    shutil.copytree(source, out)
    kept: State = {}
    dense: State = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            kept[name] = dense[name] = weight
            continue
        parts, dense[name] = pack(weight)
        kept |= {f"{name.removesuffix('weight')}{part}": value for part, value in parts.items()}
    save(out, kept, settings)
    return dense


def save(out: Path, kept: State, settings: Mapping[str, Any]) -> None:
    plain = {name: value.contiguous() for name, value in kept.items()}
    save_file(plain, out / "model.safetensors", {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))


def mxfp4(source: Path, out: Path) -> State:
    """A gpt-oss whose experts are pairs of 4-bit floats with a power of two per 32 inputs."""
    shutil.copytree(source, out)
    levels = torch.tensor(LEVELS)
    kept: State = {}
    dense: State = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            kept[name] = dense[name] = weight
            continue
        blocks = weight.mT.unflatten(-1, (-1, 32))
        power = blocks.abs().amax(-1).log2().floor() - 2
        scale = 2 ** power[..., None]
        codes = (blocks / scale)[..., None].sub(levels).abs().argmin(-1)
        dense[name] = (levels[codes] * scale).flatten(-2).mT.contiguous()
        pairs = codes[..., 0::2] + 16 * codes[..., 1::2]
        kept[f"{name}_blocks"] = pairs.to(torch.uint8)
        kept[f"{name}_scales"] = (power + 127).to(torch.uint8)
    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens"]
    save(out, kept, {"quant_method": "mxfp4", "modules_to_not_convert": [*left, "lm_head"]})
    return dense
