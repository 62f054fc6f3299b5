"""The model that was opened last, kept so that its versions are opened by reading only the weights
in which they differ from it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from remnant.lineage import Lineage
from remnant.model.load import on_device, open_model


class Held(NamedTuple):
    """A model in memory, and what its weights are."""

    model: PreTrainedModel
    lineage: Lineage


_held: list[Held] = []


def take(folder: Path, lineage: Lineage | None = None) -> Held:
    """The model of a folder, on its device, for the caller to use and change.

    Hand it to ``keep`` if it may be used again.

    Where the model that was kept last is the same, or another version of the same origin, only the
    weights in which the two differ are read; else it is let go and the whole model is opened.
    Without a ``lineage`` a model is its own origin, known by its place and by sizes, times and
    inodes of its files, within this process only. Names of folders and what lies beside the weights
    are never asked.

    Raises:
        UserError: as ``open_model``.
    """
    own = lineage or _of_files(folder)
    last = _held.pop() if _held else None
    if last and last.lineage.digest == own.digest:
        return last
    if (
        last
        and last.lineage.origin == own.origin
        and _read_again(last.model, folder, last.lineage.apart | own.apart)
    ):
        return Held(last.model, own)
    del last
    return Held(on_device(open_model(str(folder))), own)


def keep(held: Held) -> None:
    """Hold a model for the next ``take``, in the place of any other."""
    _held[:] = [held]


def let_go() -> None:
    """Hold no model, before work that needs the memory."""
    _held.clear()


def version(held: Held, out: Path, apart: Iterable[str], lineage: Lineage | None = None) -> Held:
    """The model after some of its weights were changed and it was saved in another folder (or as
    what it is known by).
    """
    digest = (lineage or _of_files(out)).digest
    return Held(held.model, Lineage(digest, held.lineage.digest, frozenset(apart)))


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
