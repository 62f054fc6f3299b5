"""Write the table of what fits into docs/scale.md, by the same forecast as --estimate; with
--check, only say whether it is up to date.
"""

import re
import sys
from pathlib import Path

from pages import written

from remnant.estimate.fitting import largest_batch, of_one_device
from remnant.estimate.memory import Text, peak
from remnant.estimate.shape import KNOWN, Shape
from remnant.records import UnlearnSpec

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
BEGIN, END = "<!-- what fits -->", "<!-- end of what fits -->"
# Devices and their memory; of each a tenth is left to the driver and to what is not counted.
DEVICES = {"24 GB": (1, 24), "80 GB": (1, 80), "8 x 80 GB": (8, 80)}
USABLE = 0.9
REGIMES = {
    "float32": {},
    "bfloat16, stochastic rounding": {"weights": "bf16-stochastic-rounding"},
    "bfloat16, stochastic rounding, moments of 8 bits": {
        "weights": "bf16-stochastic-rounding",
        "moments": "8bit",
    },
    "bfloat16, plain": {"weights": "bf16"},
    "LoRA of rank 16 on bfloat16": {"weights": "bf16", "train": {"lora": {"rank": 16}}},
    "LoRA of rank 16 on NF4, saved alone": {
        "weights": "bf16",
        "train": {"lora": {"rank": 16, "base": "nf4", "save": "adapter"}},
    },
}
# Two sides, a text of 512 tokens each; the reference keeps the last states of 100 texts.
TEXT = Text(1, 512, 2, 100 * 512, divergence=True)


def row(name: str, shape: Shape, regime: str) -> str:
    """What one model needs in one regime, and the largest batch on each kind of device."""
    own = {"method": "npo_klr", "checkpointing": True, "batch_size": 1} | REGIMES[regime]
    spec = UnlearnSpec.model_validate(own)
    cells = []
    for count, size in DEVICES.values():
        if count > 1 and of_one_device(spec):
            cells.append("")
            continue
        batch = largest_batch(shape, spec, TEXT, int(USABLE * size * 1e9), count)
        cells.append(str(batch) if batch else "-")
    total = peak(shape, spec, TEXT).total
    return f"| {name} | {regime} | {total / 1e9:.0f} GB | {' | '.join(cells)} |"


def table() -> str:
    """All rows."""
    head = f"| model | weights | one device needs, batch 1 | {' | '.join(DEVICES)} |"
    rows = [row(name, shape, regime) for name, shape in KNOWN.items() for regime in REGIMES]
    return "\n".join([head, "|---|---|---|" + "---|" * len(DEVICES), *rows])


def page() -> str:
    """The page with the table as it is now."""
    before = PAGE.read_text(encoding="utf-8")
    found = f"{BEGIN}\n\n{table()}\n\n{END}"
    return re.sub(f"{BEGIN}.*{END}", lambda _: found, before, flags=re.DOTALL)


if __name__ == "__main__":
    sys.exit(written(PAGE, page()))
