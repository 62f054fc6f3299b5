"""Write a model in shards to the files that one process would write, each rank its own rows at
their place in them: nothing is gathered, and no rank ever holds the whole.

The rows of a rank are neighbours in a file, so that they need one write each; all ranks see the
folder, as they see those of checkpoints.
"""

import inspect
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from remnant.ranks import first, in_first_replica, in_shards, local, offset, on_all, told
from remnant.weightfiles import INDEX

# The largest file that transformers writes, in its own words.
LARGEST = inspect.signature(PreTrainedModel.save_pretrained).parameters["max_shard_size"].default
PATTERN = "model{suffix}.safetensors"
# What transformers says in a header of the tensors' library. Headers end at multiples of so many
# bytes (safetensors, tensor.rs).
METADATA, ALIGNED = {"format": "pt"}, 8
# Linux writes a little less than 2 GB at a time.
AT_ONCE = 1 << 30


class File(NamedTuple):
    """A file of weights: its name, what stands before them, where the bytes of each begin by its
    name in the model, and how long it is.
    """

    name: str
    head: bytes
    begins: Mapping[str, int]
    size: int


def saved_by_rows(model: PreTrainedModel) -> bool:
    """Whether files hold every weight of a model as the model has it, under another name at most.

    Weights that were put together while they were read (experts of some models) are taken apart
    again before they are written, for which they must be there whole.
    """
    found = getattr(model, "_weight_conversions", None)
    known = get_model_conversion_mapping(model, add_legacy=False) if found is None else found
    return not any(isinstance(conversion, WeightConverter) for conversion in known)


def save_rows(model: PreTrainedModel, out: Path, largest: str = LARGEST) -> None:
    """Write a model whose weights lie in shards, all ranks at once, byte for byte as
    ``save_pretrained`` of the whole model does.

    Args:
        model: of which ``saved_by_rows`` holds.
        out: the first rank's says where.
        largest: of the files, in transformers' words.

    Raises:
        OSError: on all ranks, as the disk says on one.
    """
    folder = Path(told(str(out)))
    kept, files, about = _planned(model, largest)

    def begin() -> None:
        # Without weights transformers writes the configuration, and what else belongs to a model.
        model.save_pretrained(folder, state_dict={})
        for file in files:
            with (folder / file.name).open("wb") as opened:
                opened.write(file.head)
                opened.truncate(file.size)
        if about:
            (folder / INDEX).write_text(about, encoding="utf-8")

    def fill() -> None:
        for file in files:
            _fill(folder / file.name, [(kept[name], at) for name, at in file.begins.items()])

    on_all(begin if first() else _nothing)
    on_all(fill if in_first_replica() else _nothing)


def _nothing() -> None:
    """What ranks do that write nothing."""


def _planned(model: PreTrainedModel, largest: str) -> tuple[dict[str, Tensor], list[File], str]:
    """The weights by their names in the files, the files, and the text of their index, "" where
    there is a single one.
    """
    tensors: dict[str, Tensor] = model.state_dict()
    left_out = model._keys_to_ignore_on_save or ()
    shapes = {
        name: torch.empty(value.shape, dtype=value.dtype, device="meta")
        for name, value in tensors.items()
        if name not in left_out
    }
    names = {id(shape): name for name, shape in shapes.items()}
    single = remove_tied_weights_from_state_dict(shapes, model)
    given = revert_weight_conversion(model, single)
    kept = {name: tensors[names[id(shape)]] for name, shape in given.items()}
    split = split_torch_state_dict_into_shards(
        given, filename_pattern=PATTERN, max_shard_size=largest
    )
    files = [_file(name, given, own) for name, own in split.filename_to_tensors.items()]
    if not split.is_sharded:
        return kept, files, ""
    about = {"total_parameters": model.num_parameters(), **split.metadata}
    index = {"metadata": about, "weight_map": split.tensor_to_filename}
    return kept, files, json.dumps(index, indent=2, sort_keys=True) + "\n"


def _file(name: str, shapes: Mapping[str, Tensor], names: Iterable[str]) -> File:
    """Where everything stands in a file of some weights, whose order is that of the library."""
    begins, at = {}, 0
    entries: dict[str, Any] = {"__metadata__": METADATA}
    for own, entry in _in_order({name: shapes[name] for name in names}):
        shape = shapes[own]
        entries[own] = entry | {"shape": [*shape.shape], "data_offsets": [at, at + shape.nbytes]}
        begins[own] = at
        at += shape.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNED)
    head = len(text).to_bytes(8, "little") + text
    return File(name, head, {n: len(head) + b for n, b in begins.items()}, len(head) + at)


def _in_order(shapes: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and dtypes as the library puts them; it is asked with one number for each weight."""
    said = save({name: torch.zeros(1, dtype=s.dtype) for name, s in shapes.items()})
    head = json.loads(said[8 : 8 + int.from_bytes(said[:8], "little")])
    return ((name, {"dtype": entry["dtype"]}) for name, entry in head.items())


def _fill(file: Path, places: Iterable[tuple[Tensor, int]]) -> None:
    """Write what this rank holds of some weights, each of which begins at a place of the file."""
    # A client of NFS that knows the page of a neighbour's rows may write it again as it knows it,
    # unless every write is to be on the disk before the next.
    opened = os.open(file, os.O_WRONLY | os.O_DSYNC)
    try:
        for weight, begin in places:
            if in_shards([weight]) or first():
                _write(opened, local(weight), begin + offset(weight) * weight.element_size())
    finally:
        os.close(opened)


def _write(opened: int, values: Tensor, place: int) -> None:
    rest = values.detach().cpu().flatten().view(torch.uint8).numpy().data
    while rest:
        written = os.pwrite(opened, rest[:AT_ONCE], place)
        place, rest = place + written, rest[written:]
