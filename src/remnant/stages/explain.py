"""explain: target, unlearned model and the quantized copies of both -> what the quantizer left of
the update, weight by weight.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from remnant.context import Context
from remnant.forecast.checkpoint import Checkpoint
from remnant.functional.flips import sums
from remnant.functional.quantized import Quantized
from remnant.functional.survival import Sums, survival, survival_of_model
from remnant.records import ExplainResult, ExplainSpec

LEAVES = ("layers.json",)


def run(spec: ExplainSpec, inputs: Mapping[str, Path], out: Path, work: Context) -> ExplainResult:
    """Write layers.json, one record per quantized weight, and give the survival of the whole.

    Reads one weight at a time from the four models and builds none. Works for every quantizer,
    since it compares dense copies. Matrices that were left as they are (``skip``) count too: their
    update survives. A target that is stored wider than the unlearned model is rounded to its dtype
    first: a cast is not an update. Weights that the files name otherwise than the model in memory
    does (experts of some architectures) are listed as missing.
    """
    models = {
        role: Checkpoint(inputs[role])
        for role in ("target", "unlearned", "q_target", "q_unlearned")
    }
    there = list(dict.fromkeys([*_names(inputs["q_target"]), *models["target"].matrices()]))
    every = set.intersection(*(set(model.entries) for model in models.values()))
    names = [name for name in there if name in every]
    whole: dict[str, Sums] = {}
    layers = []
    for i, name in enumerate(names):
        kept = models["unlearned"].entries[name].dtype
        plain = {
            role: torch.from_numpy(models[role].read(name, kept))
            for role in ("target", "unlearned")
        }
        found = sums(
            plain["target"],
            plain["unlearned"],
            *(_quantized(inputs[r], models[r], name) for r in ("q_target", "q_unlearned")),
        )
        whole[name] = found
        layers.append({"name": name, **survival(found)._asdict()})
        work.progress(i + 1, len(names), name)
    (out / "layers.json").write_text(json.dumps(layers, indent=1) + "\n", encoding="utf-8")
    return ExplainResult(
        survival=survival_of_model(whole)._asdict(), missing=tuple(sorted(set(there) - set(names)))
    )


def _names(folder: Path) -> list[str]:
    with safe_open(folder / "codes.safetensors", "pt") as file:
        return [key.removesuffix(".codes") for key in file.keys() if key.endswith(".codes")]  # noqa: SIM118


def _quantized(folder: Path, model: Checkpoint, name: str) -> Quantized:
    weight = torch.from_numpy(model.read(name))
    with safe_open(folder / "codes.safetensors", "pt") as file:
        if f"{name}.codes" not in file.keys():  # noqa: SIM118
            return Quantized(torch.empty(0), torch.full((1, 1), torch.inf), None, weight)
        return Quantized(
            file.get_tensor(f"{name}.codes"), file.get_tensor(f"{name}.scale"), None, weight
        )
