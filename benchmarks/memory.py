"""Peak memory of unlearning against the forecast of it: random Llamas, npo_klr, every regime of
weights with and without checkpointing, each case in a process of its own.

    python benchmarks/memory.py [10M 50M 150M 400M] [a part of a regime's name]

A case opens the model, takes two steps (two sides of 2 x 256 tokens, padded) and saves the model,
on the CPU; measured is the most that the process held in memory (VmHWM, so Linux only).

The last line is one JSON object: worst_error (of the forecast, as a share of what was measured,
among models above 100 million weights if there are any), largest_model (weights), and by size the
worst error.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remnant.estimate.memory import Peak, Text, peak
from remnant.estimate.shape import Shape
from remnant.records import UnlearnSpec, packs

# Of so many weights; the larger ones have the vocabulary of a small model that people use.
SIZES = {
    "10M": Shape(8192, 320, 1024, 4, 5, 5, 64),
    "50M": Shape(32768, 512, 1408, 8, 8, 4, 64),
    "150M": Shape(49152, 768, 2048, 12, 12, 6, 64),
    "400M": Shape(49152, 1024, 3072, 22, 16, 8, 64),
}
LORA = {"lora": {"rank": 16}}
REGIMES: Mapping[str, Mapping[str, Any]] = {
    "float32": {},
    "bf16": {"weights": "bf16"},
    "bf16 in float32": {"weights": "bf16", "compute": "fp32"},
    "bf16 stochastic": {"weights": "bf16-stochastic-rounding"},
    "bf16 moments": {"moments": "bf16"},
    "8-bit moments": {"moments": "8bit"},
    "stochastic, 8-bit": {"weights": "bf16-stochastic-rounding", "moments": "8bit"},
    "LoRA": {"train": LORA},
    "LoRA on bf16": {"train": LORA, "weights": "bf16"},
    "LoRA on NF4": {"train": {"lora": {"rank": 16, "base": "nf4"}}},
    "LoRA on NF4, bf16": {"train": {"lora": {"rank": 16, "base": "nf4"}}, "weights": "bf16"},
}
EXAMPLES, LENGTH, BATCH, STEPS = 4, 256, 2, 2
LARGE = 100_000_000


def settings_of(regime: str, checkpointing: bool) -> UnlearnSpec:
    """What a case is asked for."""
    own = {"method": "npo_klr", "steps": STEPS, "batch_size": BATCH, "lr": 1e-5}
    return UnlearnSpec.model_validate(own | {"checkpointing": checkpointing, **REGIMES[regime]})


def forecast(shape: Shape, spec: UnlearnSpec) -> Peak:
    """Of a case; the reference keeps the last states of the retain texts."""
    return peak(shape, spec, Text(BATCH, LENGTH, 2, EXAMPLES * LENGTH, divergence=True))


def high_water() -> int:
    """The most bytes that this process held since the last call."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    found = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return found * 1024


def save_random(shape: Shape, folder: str) -> None:
    """A random Llama."""
    from remnant.testing import tiny_model

    tiny_model(
        vocab=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head,
        max_position_embeddings=2 * LENGTH,
    ).save_pretrained(folder)


def run_case(folder: str, spec: UnlearnSpec) -> dict[str, int]:
    """The peaks of opening, stepping and saving in this process, in bytes."""
    import torch

    from remnant.context import Context, ModelCache
    from remnant.model.examples import pool_of
    from remnant.model.load import in_dtype
    from remnant.model.terms import make_loss, make_streams, terms_of
    from remnant.trainable.attach import attach
    from remnant.training.loop import fit
    from remnant.training.stepper import opened, storage_dtype

    peaks = {"idle": high_water()}
    model, _ = opened(folder, "cpu", spec)
    peaks["opening"] = high_water()
    generator = torch.Generator().manual_seed(0)
    pools = {}
    for side in ("forget", "retain"):
        rows = torch.randint(4, 8000, (EXAMPLES, LENGTH), generator=generator).tolist()
        # Every second text is shorter, so that there is padding in every batch.
        pools[side] = pool_of([row[: LENGTH - i % 2] for i, row in enumerate(rows)])
    terms = terms_of(spec)
    streams = make_streams(model, terms, pools, 0, spec.seed)
    moving = attach(model, spec)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        work = Context(lambda done, total, note: None, ModelCache())
        fit(moving, spec, make_loss(model, terms, streams, BATCH, 0), Path(out), work)
        peaks["steps"] = high_water()
        model = moving.settle()
        in_dtype(model, storage_dtype(spec.weights)).save_pretrained(out)
        peaks["saving"] = high_water()
    return peaks | {"weights": sum(p.numel() for p in model.parameters())}


def measured(folder: str, regime: str, checkpointing: bool) -> dict[str, int]:
    """The peaks of a case in a process of its own."""
    command = [sys.executable, __file__, "--case", folder, regime, str(int(checkpointing))]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(ran.stdout.splitlines()[-1])
    return found


def errors(size: str, regimes: list[str]) -> list[float]:
    """The error of the forecast in every case of one size."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        save_random(SIZES[size], folder)
        for regime in regimes:
            for checkpointing in (False, True):
                peaks = measured(folder, regime, checkpointing)
                assert peaks.pop("weights") == SIZES[size].weights
                # A model that is packed while it is read maps its files, whose pages the system
                # takes back where memory is short.
                packed = packs(settings_of(regime, checkpointing).train)
                most = max(v for n, v in peaks.items() if n != "opening" or not packed)
                told = forecast(SIZES[size], settings_of(regime, checkpointing)).total
                found.append(told / most - 1)
                print(
                    f"{size:5} {regime:17} {'checkpointing' if checkpointing else '':13} "
                    f"forecast {told / 1e6:5.0f} MB, measured {most / 1e6:5.0f} "
                    f"({found[-1]:+.1%}): "
                    + ", ".join(f"{name} {value / 1e6:.0f}" for name, value in peaks.items()),
                    flush=True,
                )
    return found


def main() -> None:
    """Run all cases of the sizes that are named."""
    if sys.argv[1:2] == ["--case"]:
        folder, regime, checkpointing = sys.argv[2:]
        print(json.dumps(run_case(folder, settings_of(regime, checkpointing == "1"))))
        return
    sizes = [name for name in sys.argv[1:] if name in SIZES] or ["10M", "50M", "150M"]
    asked = [name for name in sys.argv[1:] if name not in SIZES] or [""]
    regimes = [regime for regime in REGIMES if any(part in regime for part in asked)]
    worst = {size: max(map(abs, errors(size, regimes))) for size in sizes}
    large = [worst[size] for size in sizes if SIZES[size].weights > LARGE]
    print(
        json.dumps(
            {
                "worst_error": round(max(large or worst.values()), 3),
                "largest_model": max(SIZES[size].weights for size in sizes),
                "by_size": {size: round(error, 3) for size, error in worst.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
