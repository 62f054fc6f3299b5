"""The door to checkpoints on disk: headers of safetensors and indexes of shards, checked before
anything in them is used. No torch.

A header is believed only if every weight lies inside its file, after the one before it and as long
as its shape and dtype say, as the safetensors library demands too; an index only if every shard
lies in the folder and holds just the names that it is said to hold.
"""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from pydantic import JsonValue

from remnant.errors import UserError

# Bits of an entry by the dtype of a header. Source: safetensors 0.8, tensor.rs.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8, "F4": 4, "F6_E2M3": 6,
    "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "F64": 64, "I64": 64, "U64": 64, "C64": 64,
}  # fmt: skip
# The largest header that the safetensors library reads, and the largest index or configuration that
# is read here.
MAX_HEADER = 100_000_000
# Dimensions of a weight; the largest known have five.
MAX_DIMENSIONS = 16
INDEX = "model.safetensors.index.json"
COPY_AGAIN = "Copy or download the checkpoint again."
# What training libraries put into the names of weights, and how the model inside is saved.
WRAPPERS = {
    "module.": "DataParallel or DeepSpeed (save model.module)",
    "_orig_mod.": "torch.compile (save model._orig_mod)",
    "_fsdp_wrapped_module.": "FSDP (save its full state dict)",
    "_checkpoint_wrapped_module.": "activation checkpointing (save the model without it)",
    "base_model.model.": "peft (merge_and_unload before saving)",
    "base_layer.": "peft (merge_and_unload before saving)",
    "pretrained_model.": "trl (save model.pretrained_model)",
    "_forward_module.": "Lightning (save the model inside its strategy)",
}
# Sizes that a configuration may state, each with more than any model has: a larger one would be
# built until the memory is gone.
SIZES = {
    "num_hidden_layers": 10_000, "n_layer": 10_000, "num_layers": 10_000, "hidden_size": 1 << 20,
    "n_embd": 1 << 20, "d_model": 1 << 20,
    "intermediate_size": 1 << 22, "n_inner": 1 << 22, "vocab_size": 1 << 26,
    "num_attention_heads": 1 << 16, "n_head": 1 << 16,
    "num_key_value_heads": 1 << 16, "num_experts": 1 << 16, "num_local_experts": 1 << 16,
}  # fmt: skip
# Weights that some versions of transformers save and others do not: heads that are tied, buffers
# that are computed.
_OPTIONAL = re.compile(
    r"(lm_head\.weight|inv_freq|position_ids|masked_bias|attn\.bias|attention\.bias|num_batches_tracked)$"
)


class Entry(NamedTuple):
    """Where one weight lies: file, first byte, dtype of the header (F32, BF16, F16, ...) and
    shape.
    """

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """What they take in the file."""
        return self.size * BITS[self.dtype] // 8


def entries_of(folder: Path) -> dict[str, Entry]:
    """Every weight of a folder of safetensors, one file or sharded, by its name.

    Raises:
        UserError: no folder, no safetensors, a missing or surplus shard, an index or a header that
            is damaged or lies.
    """
    files, told = _files(folder)
    found: dict[str, Entry] = {}
    for file in files:
        own = header(file)
        if twice := next((n for n in own if n in found), None):
            raise UserError(
                (
                    f"{shown(twice)} stands in {found[twice].file.name} and in {file.name} of "
                    f"{folder}."
                ),
                COPY_AGAIN,
            )
        found |= own
    if told is not None:
        _agree(folder, told, found)
    return found


def header(file: Path) -> dict[str, Entry]:
    """The checked header of one safetensors file.

    Raises:
        UserError: the file is damaged, cut short or no safetensors.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= size - 8:
                raise ValueError("its header is longer than the file")
            if length > MAX_HEADER:
                raise ValueError(f"its header is longer than {MAX_HEADER} bytes")
            data = strict_json(opened.read(length))
        return _entries(file, data, 8 + length, size)
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror or error}).", "Look at its permissions."
        ) from error
    except ValueError as error:
        raise UserError(
            f"{file} is damaged or no safetensors file ({error}).", COPY_AGAIN
        ) from error


def strict_json(raw: bytes) -> JsonValue:
    """JSON without what readers understand differently: keys twice, NaN, infinities, half
    surrogates, endless nesting.

    Raises:
        ValueError: with the reason.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise ValueError(f"{shown(key)} stands there twice")
                seen.add(key)
        return found

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    try:
        text = raw.decode("utf-8")
        data: JsonValue = json.loads(text, object_pairs_hook=once, parse_constant=constant)
        if "\\u" in text:
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeError as error:
        raise ValueError("it is not UTF-8") from error
    return data


def config_of(folder: Path) -> dict[str, JsonValue]:
    """The configuration of a model folder; empty where there is none.

    Raises:
        UserError: it is not a JSON object, or its sizes are no sizes of a model.
    """
    path = folder / "config.json"
    if not path.exists():
        return {}
    found = object_in(path)
    for name, most in SIZES.items():
        given = found.get(name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and (
                type(value) is not int
                or not (0 if "head" in name or "expert" in name else 1) <= value <= most
            ):
                raise UserError(
                    f"{path} says {name} {shown(value)}, which is no size of a model.", COPY_AGAIN
                )
    return found


def shown(name: object) -> str:
    """A name from a file as it may stand in a sentence: on one line, printable and short."""
    text = (
        name
        if isinstance(name, str) and name.isprintable() and name.isascii()
        else repr(name).encode("ascii", "replace").decode()
    )
    return text if len(text) <= 80 else f"{text[:77]}..."


def _entries(file: Path, data: Any, start: int, size: int) -> dict[str, Entry]:
    """The weights of a header that has been read; ValueError with the reason where it lies."""
    if not isinstance(data, dict):
        raise ValueError("its header is no object")
    data = dict(data)
    about = data.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(v, str) for v in about.values()):
        raise ValueError("its metadata are no texts")
    placed = [(name, *_place(name, e)) for name, e in data.items()]
    found, at = {}, 0
    for name, first, last, dtype, shape in sorted(placed, key=lambda p: p[1:3]):
        if first != at:
            raise ValueError(f"{shown(name)} does not begin where the weight before it ends")
        if (last - first) * 8 != math.prod(shape) * BITS[dtype]:
            raise ValueError(
                f"{shown(name)} takes {last - first} bytes, which does not fit its shape and dtype"
            )
        found[name], at = Entry(file, start + first, dtype, shape), last
    if start + at > size:
        raise UserError(f"{file} is cut short.", COPY_AGAIN)
    if start + at < size:
        raise ValueError(f"{size - start - at} bytes behind the last weight belong to none")
    return {name: found[name] for name in data}


def _place(name: str, entry: Any) -> tuple[int, int, str, tuple[int, ...]]:
    if not name:
        raise ValueError("a weight has no name")
    if not isinstance(entry, dict):
        raise ValueError(f"the entry of {shown(name)} is no object")
    dtype, shape, offsets = (entry.get(k) for k in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{shown(name)} has the unknown dtype {shown(dtype)}")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{shown(name)} has the shape {shown(shape)}")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{shown(name)} has the offsets {shown(offsets)}")
    return offsets[0], offsets[1], dtype, tuple(shape)


def _counts(values: Any) -> TypeGuard[list[int]]:
    """Whether it is a list of whole numbers from 0 to 2^63."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)


def object_in(path: Path) -> dict[str, JsonValue]:
    """The object that a small file of JSON holds.

    Raises:
        UserError: it cannot be read, is damaged, or holds something else.
    """
    try:
        if path.stat().st_size > MAX_HEADER:
            raise ValueError(f"it is longer than {MAX_HEADER} bytes")
        data = strict_json(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}).",
            "Give a folder written by save_pretrained.",
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}.", COPY_AGAIN) from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is no JSON object.", COPY_AGAIN)
    return data


def _files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files to read, and what an index says of them: shards by the names of their weights."""
    if not folder.is_dir():
        raise UserError(
            f"The checkpoint {folder} is not a folder.", "Give a folder with *.safetensors in it."
        )
    all_files = sorted(folder.glob("*.safetensors"))
    usual = [f for f in all_files if f.name.startswith("model")]
    if (folder / INDEX).exists():
        told = _told(folder)
        files = sorted({folder / name for name in told.values()})
        spare = [f for f in usual if f not in files]
    else:
        told, spare = None, []
        files = usual or [
            f for f in all_files if f.name not in ("codes.safetensors", "adapter_model.safetensors")
        ]
    if not files:
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                f"{folder} holds an adapter, not a model.",
                f"Merge it into its model first: remnant merge {folder}",
            )
        raise UserError(
            f"The folder {folder} has no *.safetensors.",
            "Save the model again with save_pretrained.",
        )
    for file in files:
        if not file.is_file():
            raise UserError(f"The shard {file.name} of {folder} is missing.", COPY_AGAIN)
    if spare:
        raise UserError(
            f"{folder} holds {spare[0].name} too, which its index does not name.",
            "Take it out of the folder, or the index if that is old.",
        )
    return files, told


def _told(folder: Path) -> dict[str, str]:
    """The weight map of an index, each shard inside the folder (or, in a hub's cache, among its
    blobs).
    """
    path = folder / INDEX
    told = object_in(path).get("weight_map")
    if not isinstance(told, dict) or not told:
        raise UserError(f"{path} has no weight_map.", COPY_AGAIN)
    home = folder.resolve()
    homes = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    shards = {weight: file for weight, file in told.items() if isinstance(file, str)}
    unnamed = UserError(f"{path} does not name files of safetensors.", COPY_AGAIN)
    if len(shards) < len(told):
        raise unnamed
    for name in dict.fromkeys(shards.values()):
        if not name.endswith(".safetensors") or not name.isprintable() or len(name) > 200:
            raise unnamed
        place = (folder / name).resolve()
        if (
            Path(name).is_absolute()
            or ".." in Path(name).parts
            or not any(place.is_relative_to(h) for h in homes)
        ):
            raise UserError(
                f"{path} names {shown(name)}, which lies outside the folder.",
                "Put the shards into the folder itself.",
            )
    return shards


def _agree(folder: Path, told: dict[str, str], found: dict[str, Entry]) -> None:
    for name, shard in told.items():
        if name not in found or found[name].file != folder / shard:
            raise UserError(
                f"The index of {folder} puts {shown(name)} into {shard}, which does not hold it.",
                COPY_AGAIN,
            )
    if surplus := next((n for n in found if n not in told), None):
        raise UserError(
            f"{shown(surplus)} in {found[surplus].file} does not stand in the index.", COPY_AGAIN
        )


def compare_names(one: Path, own: Iterable[str], other: Path, others: Iterable[str]) -> None:
    """Whether two checkpoints hold the same weights, but for what is saved by some versions of
    transformers only.

    Raises:
        UserError: a name of one is missing in the other; where all names of one stand behind a
            wrapper's prefix, the remedy says so.
    """
    mine, theirs = set(own), set(others)
    for folder, names, rest in ((one, mine, theirs), (other, theirs, mine)):
        prefix = wrapper_of(names)
        if prefix and not wrapper_of(rest):
            raise UserError(
                (
                    f"Names of weights in {folder} begin with '{prefix}', left there by "
                    f"{WRAPPERS[prefix]}."
                ),
                "Take the wrapper off the model and save it again.",
            )
    for folder, missing in ((other, mine - theirs), (one, theirs - mine)):
        if lost := sorted(n for n in missing if not _OPTIONAL.search(n)):
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise UserError(
                f"{folder} has no weight {shown(lost[0])}{more}, which the other checkpoint has.",
                "Give two checkpoints of one model; merge adapters first.",
            )


def wrapper_of(names: Iterable[str]) -> str | None:
    """The prefix of a known wrapper that most names begin with; None where there is none."""
    listed = list(names)
    for prefix in WRAPPERS:
        if 2 * sum(name.startswith(prefix) for name in listed) > len(listed):
            return prefix
    return None
