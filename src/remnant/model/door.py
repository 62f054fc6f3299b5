"""What must be true of a model folder before it is opened: one whole set of weights that can be
opened, of one configuration.
"""

import copy
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from remnant.errors import UserError, first_line, some
from remnant.packing import Packing, packing_in, packing_of, refusal
from remnant.remotecode import settings_of

WHOLE = "Give a folder written by save_pretrained."
AGAIN = "Copy or download the model again."
_COUNTS = re.compile(
    r"^(num|n|decoder|encoder|moe_num)_(hidden_|local_|routed_|decoder_|encoder_)?(layers?|experts)$|^(decoder|encoder)_layers$"
)
# More layers than this are built only where the files hold as many weights.
MOST_LAYERS = 1024
_INTEGERS = re.compile(r"(u?int\d+|bool|[IU]\d+|BOOL)$")
_PLAIN = re.compile("(B?F|b?float)(16|32|64)")


class Stored(NamedTuple):
    """What the files of a folder hold: for every name the shape and the dtype (as the file names
    it).
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    @property
    def size(self) -> int:
        """Numbers in all weights together."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())


def read_json(path: Path) -> dict[str, JsonValue]:
    """An object from a JSON file of a model folder.

    Raises:
        UserError: not UTF-8, not JSON, or no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} is not JSON in UTF-8: {first_line(error)}.", AGAIN) from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object.", AGAIN)
    return found


def packing_at(source: str) -> Packing | None:
    """What the weights of a folder, a file or a model of the hub are packed by; None for plain
    ones.
    """
    path = Path(source)
    return packing_of(settings_of(source)) if not path.exists() else packing_in(path)


def check_plain(source: str, fault: str) -> None:
    """Refuse packed weights where the numbers themselves are wanted.

    Args:
        source: folder, file or hub id.
        fault: what would happen: "quantizing it again would round twice".

    Raises:
        UserError: the weights are packed.
    """
    if packing := packing_at(source):
        raise refusal(packing, source, fault)


def check_folder(folder: Path) -> Stored:
    """Look at a model folder without opening the model.

    Raises:
        UserError: it is an adapter, has no configuration or no weights,
            damaged or missing shards, two sets of weights, one name in two files, or integers in
            the place of weights.
    """
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"The folder {folder} is an adapter, not a model.",
            f"Merge it into its model: remnant merge {folder}",
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"The model folder {folder} has no config.json.", WHOLE)
    files = weight_files(folder)
    stored = _stored(files)
    if packing_in(folder) is None:
        whole = [
            n
            for n, d in stored.dtypes.items()
            if _INTEGERS.search(d) and n.endswith("weight") and len(stored.shapes[n]) > 1
        ]
        if whole:
            raise UserError(
                (
                    f"{len(whole)} weights of {folder} are stored as integers without a "
                    f"quantization_config, {some(whole)}."
                ),
                (
                    "Copy the config.json that was written with them, or give the model before "
                    "quantization."
                ),
            )
    return stored


def check_codes(stored: Stored, packing: Packing, source: str) -> None:
    """Refuse plain weights whose configuration says that they are packed, as one is left by a
    training on packed weights: libraries would round them while they open them.

    Raises:
        UserError: no weight in the files is packed.
    """
    if all(map(_PLAIN.fullmatch, stored.dtypes.values())):
        raise UserError(
            f"The weights of {source} are plain, but its config.json says that they are packed as "
            f"{packing.name}: they would be rounded while they are opened.",
            "Take quantization_config out of config.json.",
        )


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights, as transformers would choose them.

    Raises:
        UserError: none, some missing, or more than one set.
    """
    plain, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    old, old_index = folder / "pytorch_model.bin", folder / "pytorch_model.bin.index.json"
    chosen = [plain] if plain.is_file() else _indexed(index) if index.is_file() else []
    other = [old] if old.is_file() else _indexed(old_index) if old_index.is_file() else []
    if not (chosen or other):
        shards = sorted(p.name for p in folder.glob("*-of-*.safetensors")) + sorted(
            p.name for p in folder.glob("*-of-*.bin")
        )
        if shards:
            raise UserError(
                f"The model folder {folder} has shards ({some(shards)}) without their index.", AGAIN
            )
        raise UserError(
            f"The model folder {folder} has no weights.",
            "Expected *.safetensors or pytorch_model*.bin in it.",
        )
    beside = sorted({*folder.glob("model*.safetensors")} - {*chosen}) + sorted(
        folder.glob("adapter_model.*")
    )
    if chosen and beside:
        raise UserError(
            (
                f"The model folder {folder} holds other weights "
                f"({some([p.name for p in beside])}) beside {chosen[0].name}."
            ),
            "Keep one set of weights in a folder.",
        )
    if chosen and other and not _are_same(chosen, other):
        raise UserError(
            (
                f"The model folder {folder} holds two different sets of weights, {chosen[0].name} "
                f"and {other[0].name}."
            ),
            "Delete the one that is not meant.",
        )
    return chosen or other


def _indexed(index: Path) -> list[Path]:
    """The shards that an index names, all of them there and in its own folder."""
    named = read_json(index).get("weight_map")
    told = list(named.values()) if isinstance(named, dict) else []
    shards = {name for name in told if isinstance(name, str)}
    if not told or not all(isinstance(name, str) for name in told):
        raise UserError(f"{index} names no shards.", AGAIN)
    files = []
    for name in sorted(shards):
        if Path(name).name != name or name in (".", ".."):
            raise UserError(
                f"{index} points outside its folder, to {name!r}.",
                "Give a folder whose index names files beside it.",
            )
        if not (index.parent / name).is_file():
            raise UserError(f"The shard {name} of {index.parent} is missing.", AGAIN)
        files.append(index.parent / name)
    return files


def _stored(files: Iterable[Path]) -> Stored:
    """Names, shapes and dtypes from the headers of some files."""
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    for file in files:
        for name, shape, dtype in _entries(file):
            if name in shapes:
                raise UserError(f"The weight {name} stands in two files of {file.parent}.", AGAIN)
            shapes[name], dtypes[name] = shape, dtype
    return Stored(shapes, dtypes)


def _entries(file: Path) -> list[tuple[str, tuple[int, ...], str]]:
    if file.suffix == ".bin":
        return [
            (name, tuple(value.shape), str(value.dtype).removeprefix("torch."))
            for name, value in _unpickled(file).items()
        ]
    try:
        with safe_open(file, "pt") as opened:
            pieces = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return [
                (name, tuple(piece.get_shape()), str(piece.get_dtype()))
                for name, piece in pieces.items()
            ]
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"The weights in {file} are damaged or cut short ({error}).", AGAIN
        ) from error


def _unpickled(file: Path) -> dict[str, Tensor]:
    """The tensors of a .bin file, left on the disk; no code in it is run."""
    try:
        found = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception:  # an older form, which cannot be mapped
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged pickle raises
            raise UserError(
                f"The weights in {file} are damaged or cut short ({first_line(error)}).", AGAIN
            ) from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise UserError(
            f"{file} holds other things than named weights.", "Save the model with save_pretrained."
        )
    return found


def _are_same(chosen: list[Path], other: list[Path]) -> bool:
    """Whether .bin files hold what safetensors hold.

    A tied weight may stand in the former under both of its names.
    """
    old = {name: value for file in other for name, value in _unpickled(file).items()}
    seen = set()
    for file in chosen:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                if name not in old or not torch.equal(opened.get_tensor(name), old[name]):
                    return False
                seen.add(name)
    known = {old[name].data_ptr() for name in seen}
    return all(old[name].data_ptr() in known for name in set(old) - seen)


def check_size(
    config: Any, stored: Stored, source: str, own_code: bool = False, width: float = 4
) -> None:
    """Compare a configuration with what the files hold before anything of its size is built.

    Args:
        config: of the model.
        stored: what the files hold.
        source: the folder or hub id.
        own_code: whether the model's own code builds it.
        width: bytes that each of its numbers takes on this machine.

    Raises:
        UserError: it asks for far more layers or numbers than are stored, for more memory than
            there is, or for what cannot be built.
    """
    text = config.get_text_config()
    most = max(
        [
            MOST_LAYERS,
            len(stored.shapes),
            *(size for shape in stored.shapes.values() for size in shape),
        ]
    )
    for name, count in vars(text).items():
        limit = most if "expert" in name else max(MOST_LAYERS, len(stored.shapes))
        if _COUNTS.match(name) and isinstance(count, int) and count > limit:
            raise UserError(
                (
                    f"The configuration of {source} has {name} {count}, but the files hold "
                    f"{len(stored.shapes)} weights."
                ),
                "config.json and the weights are not of one model.",
            )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=own_code)
    size = sum(p.numel() for p in model.parameters())
    # Tied weights and small odd ones may be stored once or twice; twice as many numbers in all are
    # another model.
    if size > 2 * stored.size + 1_000_000:
        raise UserError(
            (
                f"The configuration of {source} describes {size:,} numbers, but the files hold "
                f"{stored.size:,}."
            ),
            "config.json and the weights are not of one model.",
        )
    wanted = width * (size + sum(b.numel() for b in model.buffers()))
    there = psutil.virtual_memory().total
    if wanted > there:
        raise UserError(
            (
                f"The model {source} needs {wanted / 1e9:.0f} GB as it is opened; this machine has "
                f"{there / 1e9:.0f} GB."
            ),
            "Use a larger machine, or divide it among several.",
        )
