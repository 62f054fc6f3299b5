"""Packed models made dense: a model in float32 whose weights are exactly what its codes stand
for.
"""

import copy
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from remnant.errors import UserError
from remnant.functional import unpacking
from remnant.model.door import read_json, weight_files
from remnant.model.load import faults_of, open_model
from remnant.model.whole import check_finite, check_whole
from remnant.packing import BEFORE, gguf_in

BITS = (2, 4, 8)
# The parts of a packed layer.
WORDS = ("qweight", "qzeros", "scales")
NVFP4 = ("weight_packed", "weight_scale", "weight_global_scale")


class Decoded(NamedTuple):
    """A dense model in float32, and the packed one that a runtime opened; None where none did."""

    model: PreTrainedModel
    packed: PreTrainedModel | None


def opened(source: str) -> Decoded:
    """A model whose weights transformers decodes while it opens it.

    Raises:
        UserError: it cannot be opened.
    """
    packed = open_model(source)
    return Decoded(plain(packed, {}), packed)


@torch.no_grad()
def plain(packed: PreTrainedModel, decoded: Mapping[str, Tensor]) -> PreTrainedModel:
    """A model of the same class on plain layers, with all weights of an opened one.

    Args:
        packed: before its first forward pass: libraries repack weights there.
        decoded: weights that stand for packed ones, by their names.

    Raises:
        UserError: a weight of the plain model is in neither, or has another shape.
    """
    config = copy.deepcopy(packed.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    dense: PreTrainedModel = type(packed)(config).eval()
    held = packed.state_dict() | dict(decoded)
    for name, value in dense.state_dict().items():
        found = held.get(name)
        if found is None or found.shape != value.shape or not found.is_floating_point():
            raise UserError(f"The weight {name} cannot be decoded.", BEFORE)
        value.copy_(found.to(value.device, torch.float32))
    dense.generation_config = packed.generation_config
    return dense


def gptq(source: str) -> Decoded:
    """A model in GPTQ's files, without its libraries.

    Of symmetric files the zero is in the middle, whatever the file says: some writers keep it as
    it is where others keep one less, under one name.

    Raises:
        UserError: bits or a layout that are not known here, or a zero that is neither.
    """
    settings = _settings(source)
    bits, layout = settings.get("bits"), str(settings.get("checkpoint_format") or "gptq")
    if bits not in BITS or layout not in ("gptq", "gptq_v2"):
        raise UserError(f"GPTQ's files of {bits} bits in the layout {layout} are not read.", BEFORE)

    def weight(parts: Mapping[str, Tensor], name: str) -> Tensor:
        zeros = unpacking.unpack_columns(parts["qzeros"], bits) + (layout == "gptq")
        if settings.get("sym", True):
            middle = 2 ** (bits - 1)
            if not bool(((zeros - middle).abs() <= 1).all()):
                raise UserError(f"{name} is symmetric, but its zero is not in the middle.", BEFORE)
            zeros = torch.full_like(zeros, middle)
        inputs = parts["qweight"].shape[0] * unpacking.WORD // bits
        even = torch.arange(inputs) // -(-inputs // len(zeros))
        groups = parts.get("g_idx", even).long()
        return unpacking.gptq(parts["qweight"], parts["scales"], zeros, groups, bits=bits)

    return Decoded(_from_files(source, weight), None)


def awq(source: str) -> Decoded:
    """A model in AWQ's files, without its libraries.

    Raises:
        UserError: other bits than 4, or another version than "gemm".
    """
    settings = _settings(source)
    bits, version = settings.get("bits"), str(settings.get("version") or "gemm").lower()
    if bits != 4 or version != "gemm" or not settings.get("zero_point", True):
        raise UserError(f"AWQ's files of {bits} bits, version {version}, are not read.", BEFORE)

    def weight(parts: Mapping[str, Tensor], name: str) -> Tensor:
        return unpacking.awq(parts["qweight"], parts["scales"], parts["qzeros"])

    return Decoded(_from_files(source, weight), None)


def compressed(source: str) -> Decoded:
    """A model in the files of compressed-tensors, which unpacks them while it opens them.

    It rounds NVFP4 to bfloat16 on the way; that is decoded without it.

    Raises:
        UserError: it cannot be opened.
    """
    packed = open_model(source)
    if _settings(source).get("format") != "nvfp4-pack-quantized":
        return Decoded(plain(packed, {}), packed)

    def weight(parts: Mapping[str, Tensor], name: str) -> Tensor:
        return unpacking.nvfp4(*(parts[part] for part in NVFP4))

    return Decoded(_from_files(source, weight, NVFP4, ("input_global_scale",)), packed)


def gguf(source: str) -> Decoded:
    """The weights of a GGUF file, by transformers and the package gguf.

    Raises:
        UserError: the package is missing, or transformers does not know the architecture or a type
            of block.
    """
    file = gguf_in(Path(source))
    assert file is not None
    with faults_of(source, "The model"):
        found: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
        )
    model, info = found
    check_whole(info, source)
    check_finite(model, source)
    return Decoded(plain(model, {}), None)


def _settings(source: str) -> dict[str, Any]:
    found = read_json(Path(source) / "config.json").get("quantization_config")
    return found if isinstance(found, dict) else {}


def _from_files(
    source: str,
    weight: Callable[[Mapping[str, Tensor], str], Tensor],
    needed: Sequence[str] = WORDS,
    more: Sequence[str] = ("g_idx",),
) -> PreTrainedModel:
    """A model whose packed layers were decoded one by one.

    Args:
        source: the folder.
        weight: of a layer's parts and its name.
        needed: the last names of a layer's parts; the first one shows that it is packed.
        more: of those that may be there too.
    """
    held: dict[str, Tensor] = {}
    for file in weight_files(Path(source)):
        held |= load_file(file)
    layers = [n.removesuffix(f".{needed[0]}") for n in held if n.endswith(f".{needed[0]}")]
    if not layers:
        raise UserError(f"The model {source} holds no packed layer.", BEFORE)
    for layer in layers:
        names = {part: f"{layer}.{part}" for part in (*needed, *more)}
        parts = {part: held.pop(name) for part, name in names.items() if name in held}
        if missing := set(needed) - set(parts):
            raise UserError(f"The layer {layer} of {source} lacks {min(missing)}.", BEFORE)
        held[f"{layer}.weight"] = weight(parts, layer)
    with tempfile.TemporaryDirectory() as folder:
        save_file(held, Path(folder) / "model.safetensors", {"format": "pt"})
        config = read_json(Path(source) / "config.json")
        kept = {name: value for name, value in config.items() if name != "quantization_config"}
        (Path(folder) / "config.json").write_text(json.dumps(kept), encoding="utf-8")
        return open_model(folder)
