"""What a training run keeps on the disk so that it can go on: tensors with a checksum.

Torch finds its archive in front of the checksum.
"""

from pathlib import Path
from typing import Any

import torch

from remnant.durable import kept, write_sealed


def save(state: Any, path: Path) -> None:
    """Write tensors and plain data; the file is whole or not there.

    Raises:
        OSError: as the disk says; what stood there before still stands.
    """
    write_sealed(path, lambda file: torch.save(state, file))


def load(path: Path) -> Any:
    """What ``save`` wrote, as who wrote it knows it; None where there is nothing, or where it was
    damaged.
    """
    return torch.load(path, weights_only=True) if kept(path) else None
