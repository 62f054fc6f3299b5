"""Code that comes with a model: run only where a user has said so, and only where transformers has
no class of its own. No torch.
"""

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from remnant.errors import UserError
from remnant.weightfiles import object_in

FLAG = "--trust-remote-code"
# How worker processes are told.
_VARIABLE = "REMNANT_TRUST_REMOTE_CODE"


@contextmanager
def trusting_remote_code(yes: bool = True) -> Iterator[None]:
    """Let models bring code that is run, within the block."""
    before = os.environ.get(_VARIABLE, "")
    os.environ[_VARIABLE] = "yes" if yes else ""
    try:
        yield
    finally:
        os.environ[_VARIABLE] = before


def needs_code(config: Mapping[str, Any]) -> bool:
    """Whether a model's configuration names code of its own, and transformers has no class for it.

    >>> needs_code({"model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Model"}})
    True
    >>> needs_code({"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "own.Model"}})
    False
    """
    if not config.get("auto_map"):
        return False
    known = importlib.import_module("transformers.models.auto.modeling_auto")
    return config.get("model_type") not in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def settings_of(source: str) -> dict[str, JsonValue]:
    """The configuration of a folder or of a model of the hub, as it is stored.

    Empty where there is none, which whoever opens it will say.

    Raises:
        UserError: the folder's is no JSON object.
    """
    path = Path(source)
    if path.exists():
        config = path / "config.json"
        return dict(object_in(config)) if config.is_file() else {}
    try:
        found, _ = importlib.import_module("transformers").PreTrainedConfig.get_config_dict(source)
    except Exception:  # whatever the hub and its libraries raise
        return {}
    return dict(found)


def runs_code(source: str) -> bool:
    """Whether opening a model runs code that comes with it, which a user has allowed.

    Raises:
        UserError: it would, and nobody has.
    """
    if not needs_code(settings_of(source)):
        return False
    if not os.environ.get(_VARIABLE):
        raise UserError(
            f"The model {source} brings code of its own, which is not run unasked.",
            f"Read its .py files, then pass {FLAG}; or give a model that transformers knows.",
        )
    return True
