"""Versions of one model: where one is in memory, another is opened by reading only the weights in
which they differ.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from remnant.context import Context, Opened
from remnant.lineage import Lineage
from remnant.model.load import dtype_of, open_model


def opened(folder: Path, work: Context, dtype: str | None = None, role: str = "model") -> Opened:
    """The model of a folder, on the device of the work, for the caller to use and change.

    Put it into ``work.models`` if it may be used again and is in float32.

    Args:
        folder: of the model.
        work: where the model that is in memory is the same, or another version of the same origin,
            only the weights in which the two differ are read; else the whole model is opened.
        dtype: of its weights, as a measurement's: "bf16", "stored", or None for float32. A copy
            that is only in memory is stored as it is there.
        role: of the model in ``work.known``. One that is not there is its own origin, known by its
            place and by sizes, times and inodes of its files, within this process only. Names of
            folders and what lies beside the weights are never asked.

    Raises:
        UserError: as ``open_model``.
    """
    own = work.known.get(role) or _of_files(folder)
    last = work.models.get(own.origin)
    if last and last.lineage.digest == own.digest and (dtype is None or _is_bare(folder)):
        return _cast(last, dtype)
    if last and not dtype and _read_again(last.model, folder, last.lineage.apart | own.apart):
        return Opened(last.model, own)
    del last
    return Opened(open_model(str(folder), work.place.device, dtype=dtype_of(dtype, folder)), own)


def _is_bare(folder: Path) -> bool:
    """Whether a folder is a copy's whose weights were not written."""
    return folder.is_dir() and not any(folder.glob("*.safetensors"))


def _cast(source: Opened, dtype: str | None) -> Opened:
    """A model of which there are no files, as opening its files would give it; buffers that are
    computed stay.
    """
    if dtype == "bf16":
        for parameter in source.model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.bfloat16()
    return source


def version(source: Opened, out: Path, apart: Iterable[str], work: Context) -> Opened:
    """The model after some of its weights were changed and it was saved in another folder."""
    digest = (work.known.get("self") or _of_files(out)).digest
    return Opened(source.model, Lineage(digest, source.lineage.digest, frozenset(apart)))


def _of_files(folder: Path) -> Lineage:
    """A name for the files that lie in a folder now."""
    found = [
        (p.name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino)
        for p in sorted(folder.glob("*"))
        if (s := p.stat())
    ]
    name = repr((str(folder.resolve()), found))
    return Lineage(name, name)


@torch.no_grad()
def _read_again(model: PreTrainedModel, folder: Path, names: frozenset[str]) -> bool:
    """Whether all these weights could be read from a folder into the model."""
    parameters, left = dict(model.named_parameters()), set(names)
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in left.intersection(file.keys()):
                parameters[name].copy_(file.get_tensor(name))
                left.remove(name)
    return not left
