"""Folders of adapters, as peft writes them: told apart from models, with the model that each is of.

No torch.
"""

from pathlib import Path
from typing import Any, NamedTuple

from remnant.errors import UserError
from remnant.weightfiles import COPY_AGAIN, object_in, shown

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Settings of peft's LoRA that would make a merge more than W + scale B A, and their plain values.
# Source: peft 0.21, tuners/lora/config.py.
PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None), "bias": ("none", None), "lora_bias": (False, None),
    "modules_to_save": (None, []), "trainable_token_indices": (None,),
    "target_parameters": (None, []), "layer_replication": (None, []),
    "alpha_pattern": (None, {}), "rank_pattern": (None, {}), "alora_invocation_tokens": (None,),
}  # fmt: skip


class Adapter(NamedTuple):
    """An adapter's folder and its model: a folder, or owner/name of the hub."""

    folder: Path
    base: str


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no weights of a model."""
    whole = (*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin"))
    return (folder / CONFIG).is_file() and not whole


def adapter_in(reference: str) -> Adapter | None:
    """The adapter that a user names, by its folder or by FOLDER@MODEL; None for anything else.

    Without a model behind it, the one that the adapter says it is of.

    Raises:
        UserError: it says none, or one that is not there.
    """
    if is_adapter(Path(reference)):
        return Adapter(Path(reference), _recorded(Path(reference)))
    folder, at, base = reference.partition("@")
    while at:
        if is_adapter(Path(folder)):
            return Adapter(Path(folder), base)
        more, at, base = base.partition("@")
        folder = f"{folder}@{more}"
    return None


def _recorded(folder: Path) -> str:
    """The model that an adapter's settings name: as it stands there, or beside the adapter, where
    both were moved.
    """
    base = object_in(folder / CONFIG).get("base_model_name_or_path")
    remedy = f"Name its model behind it: {folder}@MODEL"
    if not isinstance(base, str) or not base:
        raise UserError(f"The adapter {folder} does not say which model it is of.", remedy)
    beside = folder.resolve().parent / Path(base).name
    if not Path(base).exists() and (beside / "config.json").is_file():
        return str(beside)
    if not Path(base).exists() and (base.count("/") != 1 or base.startswith(("/", "."))):
        raise UserError(f"The adapter {folder} is of {shown(base)}, which is not there.", remedy)
    return base


def scale_of(folder: Path) -> float:
    """How many times a plain LoRA adds B A to a weight: alpha over the rank, or over its root.

    Source: arXiv 2106.09685, section 4.1; the root is rsLoRA's, arXiv 2312.03732.

    Raises:
        UserError: another kind of adapter, or settings that are none.
    """
    settings = object_in(folder / CONFIG)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise UserError(f"The adapter {folder} is of the kind {shown(kind)}, not LORA.")
    for name, plain in PLAIN.items():
        if settings.get(name) not in plain:
            raise UserError(
                f"The adapter {folder} is no plain LoRA: it has {name}.",
                f"Merge it first: remnant merge {folder}",
            )
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        raise UserError(f"The adapter {folder} has no rank and alpha.", COPY_AGAIN)
    return float(alpha / (rank**0.5 if settings.get("use_rslora") else rank))
