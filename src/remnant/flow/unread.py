"""Weights that lie beside a model and that nobody opens who opens the model: what is found of the
model says nothing of them, and another runtime may take them for it. No torch.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from remnant.packing import gguf_in
from remnant.weightfiles import INDEX

# Ends of the files that runtimes read weights from (transformers, vLLM, llama.cpp, PyTorch, ONNX,
# Keras, Flax, MLX).
WEIGHTS = (
    ".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".msgpack", ".npz",
)  # fmt: skip
# What trainers leave beside a model, and no runtime opens.
_OF_TRAINING = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state\w*)\.(bin|pt|pth)")
PLAIN, OLD = "model.safetensors", "pytorch_model.bin"


def unread(folder: Path, names: Iterable[str]) -> list[str]:
    """The names that stand for weights which are not the model's own, as transformers or llama.cpp
    opens it.

    Args:
        folder: of the model.
        names: of files below it, with the folders on the way.
    """
    found = gguf_in(folder)
    own = {found.name} if found else _of_transformers(folder)
    return [
        name
        for name in names
        if name not in own
        and name.lower().endswith(WEIGHTS)
        and not _OF_TRAINING.fullmatch(Path(name).name)
    ]


def _of_transformers(folder: Path) -> set[str]:
    """The weights that transformers reads; both kinds of files are compared when it opens them."""
    pairs = ((PLAIN, INDEX), (OLD, f"{OLD}.index.json"))
    return set().union(*(_one_of(folder / plain, folder / index) for plain, index in pairs))


def _one_of(plain: Path, index: Path) -> set[str]:
    if plain.is_file():
        return {plain.name}
    try:
        told = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name) for name in told.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()  # whoever opens the model says what is wrong
