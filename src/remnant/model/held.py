"""The model that was opened last, kept so that its versions are opened by reading only the weights in which they differ from it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from remnant.model.load import device, open_model

MANIFEST = "manifest.json"


class Held(NamedTuple):
    """A model in memory.

    ``place``: the folder whose weights it has. ``origin``: the model that it is a version of, itself where it is none. ``apart``: the
    weights in which it differs from its origin.
    """

    model: PreTrainedModel
    place: str
    origin: str
    apart: frozenset[str]


_held: list[Held] = []


def take(folder: Path) -> Held:
    """The model of a folder, on its device, for the caller to use and change; hand it to ``keep`` if it may be used again.

    Where the model that was kept last is the same, or another version of the same origin, only the weights in which the two differ are
    read; else it is let go and the whole model is opened.

    Raises:
        UserError: as ``open_model``.
    """
    place = _place(folder)
    origin, apart = _lineage(folder, place)
    last = _held.pop() if _held else None
    if last and last.place == place:
        return last
    if last and last.origin == origin and _read_again(last.model, folder, last.apart | apart):
        return Held(last.model, place, origin, apart)
    del last
    return Held(open_model(str(folder)).to(device()), place, origin, apart)  # type: ignore[arg-type]


def keep(held: Held) -> None:
    """Hold a model for the next ``take``, in the place of any other."""
    _held[:] = [held]


def let_go() -> None:
    """Hold no model, before work that needs the memory."""
    _held.clear()


def version(held: Held, out: Path, apart: Iterable[str]) -> Held:
    """The model after some of its weights were changed and it was saved in another folder."""
    return Held(held.model, _place(out), held.place, frozenset(apart))


def _place(folder: Path) -> str:
    """A name that stands for the weights in a folder: the key of an artefact, else where it lies."""
    stage, _, key = folder.name.rpartition("-")
    return folder.name if stage and len(key) == 16 else str(folder.resolve())


def _lineage(folder: Path, place: str) -> tuple[str, frozenset[str]]:
    """Origin and differing weights of what was made here earlier; anything else is its own origin."""
    path = folder / MANIFEST
    made = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "changed" not in made.get("summary", {}):
        return place, frozenset()
    return made["inputs"]["model"], frozenset(made["summary"]["changed"])


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
