"""Peak memory of unlearning against the forecast of it: random Llamas, npo_klr, every regime of
weights with and without checkpointing, each case in a process of its own.

    python benchmarks/memory.py [10M 50M 150M 400M 700M 1B] [names of regimes, or parts of them]
    RANKS=2 python benchmarks/memory.py ...
    python benchmarks/memory.py checkpointing ...

A case opens the model, takes two steps (two sides of 2 x 256 tokens, padded; of the two largest 1 x
64, and their files are in bfloat16) and saves the model, on the CPU; measured is the most that the
process held in memory (VmHWM, so Linux only). With RANKS the model is divided among so many
processes, each with a text of its own; told and measured is the one that holds most. The last form
leaves out the cases without checkpointing.

The last line is one JSON object: worst_error (of the forecast, as a share of what was measured,
among models above 100 million weights if there are any), largest_model (weights), and by size the
worst error.
"""

import json
import os
import socket
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
SIZES: Mapping[str, Shape] = {
    "10M": Shape(8192, 320, 1024, 4, 5, 5, 64),
    "50M": Shape(32768, 512, 1408, 8, 8, 4, 64),
    "150M": Shape(49152, 768, 2048, 12, 12, 6, 64),
    "400M": Shape(49152, 1024, 3072, 22, 16, 8, 64),
    "700M": Shape(32768, 1536, 5120, 20, 24, 8, 64, saved=2),
    "1B": Shape(32768, 2048, 5632, 20, 32, 8, 64, saved=2),
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
EXAMPLES, STEPS = 4, 2
LARGE = 100_000_000
# From so many weights on a processor is only patient enough for short texts.
SHORT_FROM = 500_000_000


RANKS = int(os.environ.get("RANKS", "1"))


def text_of(weights: int) -> tuple[int, int]:
    """Texts a side and their tokens."""
    return (1, 64) if weights > SHORT_FROM else (2, 256)


def settings_of(regime: str, checkpointing: bool, batch: int = 2) -> UnlearnSpec:
    """What a case is asked for."""
    own = {"method": "npo_klr", "steps": STEPS, "batch_size": batch, "lr": 1e-5}
    return UnlearnSpec.model_validate(own | {"checkpointing": checkpointing, **REGIMES[regime]})


def forecast(shape: Shape, spec: UnlearnSpec) -> Peak:
    """Of a case; the reference keeps the last states of the retain texts."""
    batch, length = text_of(shape.weights)
    own = -(-batch // RANKS)
    return peak(shape, spec, Text(own, length, 2, EXAMPLES * length, True, own > 1), RANKS)


def high_water() -> int:
    """The most bytes that this process held since the last call."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    found = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return found * 1024


def save_random(shape: Shape, folder: str) -> None:
    """A random Llama."""
    import torch

    from remnant.testing import tiny_model

    made: Any = tiny_model(
        vocab=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head,
        max_position_embeddings=512,
    )
    made.to({2: torch.bfloat16, 4: torch.float32}[shape.saved]).save_pretrained(folder)


def run_case(folder: str, spec: UnlearnSpec) -> dict[str, int]:
    """The peaks of opening, stepping and saving in this process, in bytes."""
    import torch

    from remnant import ranks
    from remnant.context import Context, ModelCache
    from remnant.model.examples import pool_of
    from remnant.model.load import in_dtype
    from remnant.model.shardfiles import save_rows
    from remnant.model.terms import make_loss, make_streams, terms_of
    from remnant.trainable.attach import attach
    from remnant.training.loop import fit
    from remnant.training.stepper import opened, storage_dtype

    if RANKS > 1:
        ranks.join("cpu")
    peaks = {"idle": high_water()}
    model, _ = opened(folder, "cpu", spec)
    peaks["opening"] = high_water()
    generator = torch.Generator().manual_seed(0)
    pools = {}
    batch, length = text_of(model.num_parameters())
    for side in ("forget", "retain"):
        rows = torch.randint(4, 8000, (EXAMPLES, length), generator=generator).tolist()
        # Every second text is shorter, so that there is padding in every batch of more than one.
        pools[side] = pool_of([row[: length - i % 2] for i, row in enumerate(rows)])
    terms = terms_of(spec)
    streams = make_streams(model, terms, pools, 0, spec.seed)
    moving = attach(model, spec)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        work = Context(lambda done, total, note: None, ModelCache())
        fit(moving, spec, make_loss(model, terms, streams, batch, 0), Path(out), work)
        peaks["steps"] = high_water()
        model = moving.settle()
        model = in_dtype(model, storage_dtype(spec.weights))
        save_rows(model, Path(out)) if RANKS > 1 else model.save_pretrained(out)
        peaks["saving"] = high_water()
        # The first rank's folder is everybody's.
        ranks.told(None)
    return peaks | {"weights": sum(p.numel() for p in model.parameters())}


def measured(folder: str, regime: str, checkpointing: bool) -> dict[str, int]:
    """The peaks of a case in processes of its own, those of the one that holds most."""
    command = [sys.executable, __file__, "--case", folder, regime, str(int(checkpointing))]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    started = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | meeting | {"RANK": str(rank), "WORLD_SIZE": str(RANKS)},
        )
        for rank in range(RANKS)
    ]
    said = [process.communicate()[0].splitlines() for process in started]
    assert not any(process.returncode for process in started), command
    every: list[dict[str, int]] = [json.loads(lines[-1]) for lines in said]
    return max(every, key=lambda peaks: peaks["steps"])


def errors(size: str, regimes: list[str], both: bool = True) -> list[float]:
    """The error of the forecast in every case of one size, without checkpointing where ``both``."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        save_random(SIZES[size], folder)
        for regime in regimes:
            for checkpointing in (False, True) if both else (True,):
                peaks = measured(folder, regime, checkpointing)
                assert peaks.pop("weights") == SIZES[size].weights
                # A model that is packed while it is read maps its files, whose pages the system
                # takes back where memory is short.
                batch, _ = text_of(SIZES[size].weights)
                spec = settings_of(regime, checkpointing, batch)
                packed = packs(spec.train)
                most = max(v for n, v in peaks.items() if n != "opening" or not packed)
                told = forecast(SIZES[size], spec).total
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
    both = "checkpointing" not in sys.argv
    asked = [n for n in sys.argv[1:] if n not in (*SIZES, "checkpointing")] or [""]
    parts = [part for part in asked if part not in REGIMES]
    regimes = [name for name in REGIMES if name in asked or any(part in name for part in parts)]
    worst = {size: max(map(abs, errors(size, regimes, both))) for size in sizes}
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
