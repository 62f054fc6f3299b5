"""Remnant: make a language model forget, and prove that it stays forgotten after quantization.

Importing this is light: nothing but this file is read until something is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from remnant.api import (
        audit,
        deploy,
        measure,
        predict,
        prepare,
        repeats,
        train,
        transform,
        unlearn,
    )
    from remnant.errors import UserError
    from remnant.flow.digests import verifying_models
    from remnant.handles import Audit, Corpus, Model, Scores
    from remnant.remotecode import trusting_remote_code
    from remnant.tuning.python import Tuned, tune

_HOMES = {
    "remnant.api": (
        "audit", "deploy", "measure", "predict", "prepare", "repeats", "train", "transform",
        "unlearn",
    ),
    "remnant.handles": ("Audit", "Corpus", "Model", "Scores"),
    "remnant.tuning.python": ("Tuned", "tune"),
    "remnant.errors": ("UserError",),
    "remnant.remotecode": ("trusting_remote_code",),
    "remnant.flow.digests": ("verifying_models",),
}  # fmt: skip
__all__ = [
    "Audit", "Corpus", "Model", "Scores", "Tuned", "UserError", "audit", "deploy", "measure",
    "predict", "prepare", "repeats", "train", "transform", "trusting_remote_code", "tune",
    "unlearn", "verifying_models",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'remnant' has no attribute '{name}'")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
