"""An adapter's update as pieces of the weights that it is added to, without merging them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from remnant.adapterfiles import CONFIG, WEIGHTS, adapter_in, scale_of
from remnant.errors import UserError
from remnant.forecast.checkpoint import Checkpoint, Floats, stored_as_float32
from remnant.packing import BEFORE, packing_in
from remnant.weightfiles import COPY_AGAIN, header, shown

_PREFIX = "base_model.model."
_FACTORS = {".lora_A.weight": 0, ".lora_B.weight": 1}


class Update(NamedTuple):
    """A low-rank update as its weight is stored: ``left`` [rows, r] times ``right`` [r, .]."""

    left: Floats
    right: Floats

    def entries(self, first: int, weight: Floats) -> NDArray[np.float32]:
        """What is added to the entries from ``first`` on, in the order of the rows.

        >>> update = Update(np.ones((2, 1), np.float32), np.arange(3, dtype=np.float32)[None])
        >>> update.entries(2, np.zeros(2, np.float32))
        array([2., 0.], dtype=float32)
        """
        size = weight.size
        columns = self.right.shape[1]
        top, bottom = first // columns, -(-(first + size) // columns)
        rows = self.left[top:bottom] @ self.right
        return rows.ravel()[first - top * columns :][:size]


def opened(reference: str) -> Checkpoint:
    """A checkpoint by its folder, or an adapter by its folder or FOLDER@MODEL, as if it were merged
    in float32.

    Raises:
        UserError: as ``Checkpoint``; or the adapter is no plain LoRA, or of another model.
    """
    adapter = adapter_in(reference)
    folder = adapter.base if adapter else reference
    if packing := packing_in(Path(folder)):
        raise UserError(
            f"The model {folder} is packed as {packing.name}, already quantized.",
            f"Decode it first: remnant dequantize {folder}" if packing.decoder else BEFORE,
        )
    if adapter is None:
        return Checkpoint(Path(reference))
    base = Checkpoint(Path(adapter.base))
    return Checkpoint(Path(adapter.base), updates(adapter.folder, base))


def updates(folder: Path, base: Checkpoint) -> dict[str, Update]:
    """The update of every weight that an adapter changes, scaled.

    Raises:
        UserError: a factor is missing, or does not fit its weight.
    """
    scale = scale_of(folder)
    factors: dict[str, dict[int, Floats]] = {}
    for name, entry in header(folder / WEIGHTS).items():
        suffix = next((s for s in _FACTORS if name.endswith(s)), None)
        weight = f"{name.removeprefix(_PREFIX).removesuffix(suffix or '')}.weight"
        if suffix is None or weight not in base.entries or len(entry.shape) != 2:
            raise UserError(
                f"{base.folder} has no weight for {shown(name)} of the adapter {folder}.",
                "Name the model that it is of: FOLDER@MODEL.",
            )
        factors.setdefault(weight, {})[_FACTORS[suffix]] = stored_as_float32(entry)
    return {
        weight: _update(weight, pair, scale, base, folder / CONFIG)
        for weight, pair in factors.items()
    }


def _update(
    weight: str, pair: dict[int, Floats], scale: float, base: Checkpoint, config: Path
) -> Update:
    if len(pair) < 2 or pair[0].shape[0] != pair[1].shape[1]:
        raise UserError(f"{config.parent} holds half an update of {shown(weight)}.", COPY_AGAIN)
    down, up = pair[0], np.float32(scale) * pair[1]
    found = Update(down.T, up.T) if base.turned(weight) else Update(up, down)
    shape = (found.left.shape[0], found.right.shape[1])
    if shape != base.entries[weight].shape:
        raise UserError(
            f"The adapter {config.parent} has the shape {shape} for {shown(weight)}, which is "
            f"{base.entries[weight].shape} in {base.folder}.",
            "Name the model that it is of: FOLDER@MODEL.",
        )
    return found
