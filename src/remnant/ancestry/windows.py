"""A window of every matrix of a model on the disk, decoded where it is packed, by ranges: no file
is read whole and no model is built.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from remnant.adapterfiles import CONFIG, is_adapter, scale_of
from remnant.adapterfiles import WEIGHTS as ADAPTER_WEIGHTS
from remnant.ancestry import gguf_windows
from remnant.errors import UserError, first_line
from remnant.functional import unpacking
from remnant.functional.touched import is_quantized_by_default
from remnant.packing import gguf_in, packing_of
from remnant.weightfiles import (
    COPY_AGAIN,
    Entry,
    config_of,
    entries_of,
    header,
    shown,
    wrapper_of,
)

Array = NDArray[np.float32]
# Rows of a window, in runs of eight: AWQ keeps eight rows in a word. As many as tell a merged
# adapter of rank 24 from a training (a quarter, `kinship.LOW_RANK`).
ROWS, RUN = 96, 8
# Columns, from the first one on: a whole group of the usual formats (32, 64, 128).
COLUMNS = 128
DTYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8,
    "U8": torch.uint8, "I32": torch.int32, "I64": torch.int64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
PLAIN = ("F32", "F16", "BF16")
_EMBEDDINGS = re.compile(r"(embed_tokens|wte|embed_in|(word|tok)_embeddings)\.weight$")
# Tokens whose embeddings are compared with each other: 8128 pairs.
TOKENS = 128
_CONV1D = re.compile(r"(c_attn|c_proj|c_fc)\.weight$")


class Sample(NamedTuple):
    """What is read of one model.

    ``kind``: dense, adapter, or the name of its packing. ``shapes``: of its matrices [out, in], by
    name. ``windows``: [rows, columns] of each in float32; of an adapter those of its update.
    """

    path: Path
    kind: str
    shapes: Mapping[str, tuple[int, int]]
    windows: Mapping[str, Array]


def sample(path: Path) -> Sample:
    """The windows of a model folder, an adapter's folder or a GGUF file.

    Raises:
        UserError: it is damaged, or packed in a way that is not read here.
    """
    if is_adapter(path):
        return _of_adapter(path)
    if file := gguf_in(path):
        return _made(path, "GGUF", gguf_windows.windows(file, rows_of, COLUMNS))
    config = config_of(path)
    packing = packing_of(config)
    entries = entries_of(path)
    prefix = wrapper_of(entries) or ""
    entries = {name.removeprefix(prefix): entry for name, entry in entries.items()}
    found: dict[str, tuple[tuple[int, int], Array]] = {}
    if packing:
        found |= _unpacked(path, packing.key, config, entries)
    turned = config.get("model_type") == "gpt2"
    packed = {name.removesuffix("weight") for name in found}
    for name, entry in entries.items():
        if f"{name.rpartition('.')[0]}." in packed:
            continue  # a part of a packed layer
        if entry.dtype not in PLAIN or len(entry.shape) < 2 or not entry.size:
            continue
        if is_quantized_by_default(name, entry.shape):
            found[name] = _plain(entry, turned and bool(_CONV1D.search(name)))
    return _made(path, packing.name if packing else "dense", found)


def embedded(path: Path) -> Array | None:
    """[tokens, width] of some tokens' embeddings, evenly spread; None where none are read here."""
    if is_adapter(path) or gguf_in(path):
        return None
    for name, entry in entries_of(path).items():
        if _EMBEDDINGS.search(name) and entry.dtype in PLAIN and len(entry.shape) == 2:
            count = min(TOKENS, entry.shape[0])
            rows = np.linspace(0, entry.shape[0] - 1, count).astype(np.int64)
            return np.asarray(_part(entry, rows).float().numpy())
    return None


def rows_of(count: int) -> NDArray[np.int64]:
    """Which rows of a matrix are looked at: runs of eight, evenly spread; all where there are few.

    >>> rows_of(96).size, rows_of(10_000).size, rows_of(10_000)[6:10].tolist()
    (96, 96, [6, 7, 904, 905])
    """
    if count <= ROWS:
        return np.arange(count)
    runs = ROWS // RUN
    firsts = np.linspace(0, count - RUN, runs).astype(np.int64) // RUN * RUN
    return np.asarray((firsts[:, None] + np.arange(RUN)).ravel())


def _made(path: Path, kind: str, found: Mapping[str, tuple[tuple[int, int], Array]]) -> Sample:
    if not found:
        raise UserError(f"{path} holds no matrix of a language model.", "Leave it out.")
    for name, (_, window) in found.items():
        if not np.isfinite(window).all():
            raise UserError(f"{shown(name)} in {path} holds a value that is not finite.")
    shapes = {name: shape for name, (shape, _) in found.items()}
    return Sample(path, kind, shapes, {name: window for name, (_, window) in found.items()})


def _stored(entry: Entry) -> NDArray[np.uint8]:
    """[..., bytes of an entry] of a weight, mapped: only what is used of it is read."""
    width = torch.empty(0, dtype=DTYPES[entry.dtype]).element_size()
    raw = np.memmap(entry.file, np.uint8, "r", entry.offset, (entry.size * width,))
    return raw.reshape(*entry.shape, width)


def _part(entry: Entry, *index: NDArray[np.int64] | slice) -> Tensor:
    """The part of a weight that the indices of its dimensions name, in its own dtype."""
    if entry.dtype not in DTYPES:
        raise UserError(f"{entry.file} holds weights in {entry.dtype}, which is not read here.")
    bytes_ = _stored(entry)
    for axis, one in enumerate(index):
        bytes_ = bytes_[(slice(None),) * axis + (one,)]
    return torch.from_numpy(np.array(bytes_)).view(DTYPES[entry.dtype])[..., 0]


def _plain(entry: Entry, turned: bool) -> tuple[tuple[int, int], Array]:
    """Shape and window of a plain weight; of stacked experts as one matrix of all their rows."""
    flat = entry._replace(shape=(entry.size // entry.shape[-1], entry.shape[-1]))
    if turned:
        window = _part(flat, slice(0, COLUMNS), rows_of(flat.shape[1])).T
        shape = (flat.shape[1], flat.shape[0])
    else:
        window = _part(flat, rows_of(flat.shape[0]), slice(0, COLUMNS))
        shape = (flat.shape[0], flat.shape[1])
    return shape, np.ascontiguousarray(window.float().numpy())


class Layer(NamedTuple):
    """A packed layer: where its parts lie, by their last names, and its packing's settings."""

    name: str
    parts: Mapping[str, Entry]
    settings: Mapping[str, object]

    def part(self, name: str, *index: NDArray[np.int64] | slice) -> Tensor:
        """A part, or what the indices name of it.

        Raises:
            UserError: the layer has no such part.
        """
        if name not in self.parts:
            raise UserError(f"The packed layer {shown(self.name)} has no {name}.", COPY_AGAIN)
        return _part(self.parts[name], *index)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a part, as it is stored."""
        return self.parts[name].shape


def _unpacked(
    path: Path, key: str, config: Mapping[str, object], entries: Mapping[str, Entry]
) -> dict[str, tuple[tuple[int, int], Array]]:
    """Shapes and windows of the packed layers of a folder.

    Raises:
        UserError: the packing is not read here.
    """
    given = config.get("quantization_config") or config.get("compression_config")
    settings = given if isinstance(given, dict) else {}
    first, decode = _decoder(path, key, settings)
    found = {}
    for name in entries:
        if not name.endswith(f".{first}"):
            continue
        layer = name.removesuffix(first)
        parts = {n.removeprefix(layer): e for n, e in entries.items() if n.startswith(layer)}
        if first == "weight" and len(parts) < 2:
            continue  # left as it was
        try:
            shape, window = decode(Layer(layer, parts, settings))
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"The parts of {shown(layer)} in {path} do not fit each other "
                f"({first_line(error)}).",
                COPY_AGAIN,
            ) from error
        found[f"{layer}weight"] = shape, np.ascontiguousarray(window.float().numpy())
    if not found:
        raise UserError(f"{path} says that it is packed, and holds no packed layer.", COPY_AGAIN)
    return found


Decode = Callable[[Layer], tuple[tuple[int, int], Tensor]]


def _decoder(path: Path, key: str, settings: Mapping[str, object]) -> tuple[str, Decode]:
    """The part by which a packed layer is known, and what decodes it."""
    scheme = settings.get("format") if key == "compressed-tensors" else key
    known: dict[object, tuple[str, Decode]] = {
        "gptq": ("qweight", _gptq),
        "awq": ("qweight", _awq),
        "fp8": ("weight", _fp8),
        "pack-quantized": ("weight_packed", _words),
        "nvfp4-pack-quantized": ("weight_packed", _nvfp4),
        "mxfp4-pack-quantized": ("weight_packed", _mxfp4),
        "int-quantized": ("weight", _scaled),
        "float-quantized": ("weight", _scaled),
        "naive-quantized": ("weight", _scaled),
    }
    if scheme not in known:
        raise UserError(
            f"The weights of {path} are packed as {shown(str(scheme))}, whose codes are not read "
            "here.",
            f"Decode it first: remnant dequantize {path}",
        )
    return known[scheme]


def _gptq(layer: Layer) -> tuple[tuple[int, int], Tensor]:
    bits = layer.settings.get("bits", 4)
    if bits not in (2, 4, 8):
        raise UserError(f"GPTQ's files of {bits} bits are not read here.")
    words, out = layer.shape("qweight")
    each = unpacking.WORD // int(str(bits))
    rows, columns = rows_of(out), min(COLUMNS, words * each)
    scales = layer.part("scales", slice(None), rows)
    groups = torch.arange(columns) // -(-words * each // len(scales))
    if "g_idx" in layer.parts:
        groups = layer.part("g_idx", slice(0, columns)).long()
    zeros = unpacking.unpack_columns(layer.part("qzeros"), int(str(bits)))[:, rows]
    # One less is kept than is meant, but by the second layout.
    zeros = zeros + (layer.settings.get("checkpoint_format", "gptq") == "gptq")
    if layer.settings.get("sym", True):
        zeros = torch.full_like(zeros, 1 << (int(str(bits)) - 1))
    qweight = layer.part("qweight", slice(0, -(-columns // each)), rows)
    dense = unpacking.gptq(qweight, scales, zeros, groups, bits=int(str(bits)))
    return (out, words * each), dense[:, :columns]


def _awq(layer: Layer) -> tuple[tuple[int, int], Tensor]:
    inputs, words = layer.shape("qweight")
    columns = min(COLUMNS, inputs)
    groups = slice(0, max(1, columns * layer.shape("scales")[0] // inputs))
    parts = layer.part("scales", groups), layer.part("qzeros", groups)
    dense = unpacking.awq(layer.part("qweight", slice(0, columns)), *parts)
    return (8 * words, inputs), dense[rows_of(8 * words)]


def _fp8(layer: Layer) -> tuple[tuple[int, int], Tensor]:
    rows, columns, window = _codes(layer)
    scales = layer.part("weight_scale_inv").float()
    down, across = (-(-n // s) for n, s in zip((rows, columns), scales.shape, strict=True))
    chosen = scales[rows_of(rows) // down][:, torch.arange(window.shape[1]) // across]
    return (rows, columns), window * chosen


def _scaled(layer: Layer) -> tuple[tuple[int, int], Tensor]:
    """Plain codes with scales per tensor, row or group, no zero."""
    rows, columns, window = _codes(layer)
    return (rows, columns), window * _scales(layer, rows, columns)


def _codes(layer: Layer) -> tuple[int, int, Tensor]:
    rows, columns = layer.shape("weight")
    return rows, columns, layer.part("weight", rows_of(rows), slice(0, COLUMNS)).float()


def _words(layer: Layer) -> tuple[tuple[int, int], Tensor]:
    """Codes in words of 32 bits, row by row, half of their range above zero."""
    if "weight_zero_point" in layer.parts:
        raise UserError(f"{shown(layer.name)} has zero points, which are not read here.")
    rows, columns = (int(n) for n in layer.part("weight_shape").tolist())
    words = layer.shape("weight_packed")[1]
    each = -(-columns // words)
    bits = unpacking.WORD // each
    packed = layer.part("weight_packed", rows_of(rows), slice(0, -(-COLUMNS // each)))
    codes = unpacking.unpack_columns(packed, bits)[:, : min(COLUMNS, columns)]
    dense = (codes - (1 << (bits - 1))).float() * _scales(layer, rows, columns)
    return (rows, columns), dense


def _scales(layer: Layer, rows: int, columns: int) -> Tensor:
    """[rows or 1, columns or 1] of a window."""
    scales = layer.part("weight_scale").float().reshape(-1, 1)
    if scales.numel() in (1, rows):
        return scales if scales.numel() == 1 else scales[rows_of(rows)]
    each = columns * rows // scales.numel()
    wide = scales.reshape(rows, -1)[rows_of(rows)]
    return wide[:, torch.arange(min(COLUMNS, columns)) // each]


def _nvfp4(layer: Layer) -> tuple[tuple[int, int], Tensor]:
    out, half = layer.shape("weight_packed")
    rows = rows_of(out)
    packed = layer.part("weight_packed", rows, slice(0, COLUMNS // 2))
    scales = layer.part("weight_scale", rows, slice(0, packed.shape[1] // 8))
    shared = layer.part("weight_global_scale")
    return (out, 2 * half), unpacking.nvfp4(packed, scales, shared)


def _mxfp4(layer: Layer) -> tuple[tuple[int, int], Tensor]:
    """As NVFP4, with a power of two for 32 columns in the place of its scales."""
    out, half = layer.shape("weight_packed")
    rows = rows_of(out)
    packed = layer.part("weight_packed", rows, slice(0, COLUMNS // 2))
    power = layer.part("weight_scale", rows, slice(0, packed.shape[1] // 16)).float() - 127
    return (out, 2 * half), unpacking.nvfp4(packed, torch.exp2(power), torch.ones(1))


def _of_adapter(path: Path) -> Sample:
    """The windows of what a plain LoRA adds."""
    scale = scale_of(path)
    factors: dict[str, dict[str, Entry]] = {}
    for name, entry in header(path / ADAPTER_WEIGHTS).items():
        weight, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
        if factor not in ("A.weight", "B.weight") or len(entry.shape) != 2:
            raise UserError(f"{shown(name)} of the adapter {path} is not read here.")
        factors.setdefault(f"{weight}.weight", {})[factor[0]] = entry
    found = {}
    for weight, pair in factors.items():
        if len(pair) < 2 or pair["A"].shape[0] != pair["B"].shape[1]:
            raise UserError(f"{path / CONFIG} and half of {shown(weight)}.", COPY_AGAIN)
        shape = (pair["B"].shape[0], pair["A"].shape[1])
        down = _part(pair["A"], slice(None), slice(0, COLUMNS)).float()
        up = _part(pair["B"], rows_of(shape[0])).float()
        found[weight] = shape, (scale * up @ down).numpy()
    return _made(path, "adapter", found)
