"""Model folders changed by hand: weights renamed, lost, broken.

Tokenizers and configurations turned.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

State = dict[str, Tensor]
Change = Callable[[State], State | None]
WEIGHTS = "model.safetensors"


def copied(model: Path, out: Path) -> Path:
    """A copy of a model folder; the folder itself where it is to be changed in place."""
    if model == out:
        return out
    shutil.copytree(model, out, dirs_exist_ok=True)
    return out


def weights(model: Path, out: Path, change: Change) -> Path:
    """A copy with other weights: ``change`` gives the new ones, or changes those that it gets."""
    copied(model, out)
    state = load_file(out / WEIGHTS)
    changed = change(state)
    state = state if changed is None else changed
    save_file(
        {k: v.contiguous() for k, v in state.items()}, out / WEIGHTS, metadata={"format": "pt"}
    )
    return out


def renamed(prefix: str) -> Callable[[State], State]:
    """All names behind a prefix, as wrappers leave them."""
    return lambda state: {prefix + name: value for name, value in state.items()}


def put(name: str, value: float, row: int | None = None) -> Callable[[State], None]:
    """One entry of a weight (the first of a row) becomes a value."""

    def change(state: State) -> None:
        weight = state[name]
        weight.view(-1)[(row or 0) * weight.shape[-1]] = value

    return change


def noisy(state: State, share: float = 1.0) -> None:
    """Noise as large as the weights themselves, times a share, on every matrix."""
    torch.manual_seed(0)
    for weight in state.values():
        if weight.ndim == 2:
            weight += share * weight.std() * torch.randn_like(weight)


def random_weights(state: State) -> None:
    """Every matrix anew, of the same size."""
    torch.manual_seed(0)
    for weight in state.values():
        if weight.ndim == 2:
            weight.copy_(weight.std() * torch.randn_like(weight))


def sharded(model: Path, out: Path, lose: bool) -> Path:
    """The weights in two files with an index; ``lose``: the second file is not there."""
    copied(model, out)
    state = load_file(out / WEIGHTS)
    (out / WEIGHTS).unlink()
    names = sorted(state)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    index = {}
    for i, half in enumerate(halves, 1):
        file = f"model-{i:05}-of-00002.safetensors"
        index |= dict.fromkeys(half, file)
        if not (lose and i == 2):
            save_file(
                {n: state[n].contiguous() for n in half}, out / file, metadata={"format": "pt"}
            )
    size = sum(v.numel() * v.element_size() for v in state.values())
    _write(
        out / "model.safetensors.index.json",
        {"metadata": {"total_size": size}, "weight_map": index},
    )
    return out


def config(model: Path, out: Path, file: str = "config.json", **entries: Any) -> Path:
    """A copy whose configuration (or another JSON file of it) says something else."""
    copied(model, out)
    path = out / file
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    _write(path, held | entries)
    return out


def tokenizer(model: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy whose tokenizer.json is changed in place."""
    copied(model, out)
    held = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
    change(held)
    _write(out / "tokenizer.json", held)
    return out


def template(*parts: str | Mapping[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Special tokens around every text: "<s>", "$" (the text), "</s>"."""

    def change(held: dict[str, Any]) -> None:
        ids = {t["content"]: t["id"] for t in held["added_tokens"]}
        single = [
            {"Sequence": {"id": "A", "type_id": 0}}
            if p == "$"
            else {"SpecialToken": {"id": p, "type_id": 0}}
            for p in parts
        ]
        named = {
            str(p): {"id": str(p), "ids": [ids[str(p)]], "tokens": [str(p)]}
            for p in parts
            if p != "$"
        }
        pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
        held["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": named,
        }

    return change


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")
