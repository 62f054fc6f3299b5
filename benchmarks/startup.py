"""How long the commands take that make nothing: `--help`, the plan of the largest sweep, `ls` of
2,000 artefacts, and a measurement that is done; each in a process of its own.

Against a bare Python and importing torch, in turns. The last line is one JSON object; times are the
best of the rounds, in seconds.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from remnant.durable import digest_of
from remnant.flow.store import Store
from remnant.records import Manifest

ROUNDS = 5
# What the store of a long study holds.
ARTEFACTS = 2000
# Bytes that lie beside the weights of the measured model and are part of its digest.
BESIDE = 500_000_000
REMNANT = [sys.executable, "-m", "remnant.cli"]
# The sweep with the most pieces of work: 4,706.
LARGEST = Path(__file__).parent.parent / "sweeps" / "catastrophic-failure.toml"


def called(*given: str) -> None:
    """Run a command to its end."""
    subprocess.run([*REMNANT, *given], check=True, capture_output=True)


def measured(root: Path) -> list[str]:
    """The command that measures a small model in a large folder from outside, after it was done."""
    store = ("--store", str(root / "store"))
    lengths = ("--prompt-tokens", "24", "--answer-tokens", "16", "--max-items", "12")
    called("prepare", "--lab", "news", *lengths, *store)
    corpus = next(root.glob("store/objects/prepare-*"))
    small = ("--set", "steps=2", "--set", "layers=1", "--set", "hidden=32")
    called("train", str(corpus), *small, *store)
    model = next(root.glob("store/objects/train-*")).rename(root / "model")
    with (model / "optimizer.bin").open("wb") as file:
        file.truncate(BESIDE)
    metric = ("-m", "verbmem", "--form", "published")
    command = ["measure", str(model), "--data", str(corpus), *metric, *store]
    called(*command)
    return command


def filled(root: Path, made: Manifest) -> Path:
    """A store of many artefacts, every one with the manifest of a real one but for its name."""
    store = Store(root).open()
    for i in range(ARTEFACTS):
        digest = digest_of([made.digest, i])
        manifest = made.model_copy(update={"digest": digest, "key": digest[:16]})
        name = f"{manifest.stage}-{manifest.key}"
        for file in made.files:
            place = store.scratch(name) / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"")
        store.seal(name, manifest)
    return store.root


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        os.environ["REMNANT_CACHE"] = str(root / "cache")
        finished = measured(root)
        made = list(Store(root / "store").manifests().values())[-1]
        many = filled(root / "many", made)
        report(
            {
                "python": [sys.executable, "-c", "pass"],
                "import torch": [sys.executable, "-c", "import torch"],
                "help": [*REMNANT, "--help"],
                "plan": [*REMNANT, "plan", str(LARGEST), "--store", str(root / "store")],
                "ls": [*REMNANT, "ls", "--store", str(many)],
                "finished": [*REMNANT, *finished],
            }
        )


def spent(command: list[str]) -> tuple[float, float]:
    """Seconds on the clock and of the processor that a command takes."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, busy


def report(commands: dict[str, list[str]]) -> None:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            times[name].append(spent(command))
    best = {name: min(found)[0] for name, found in times.items()}
    for name, seconds in best.items():
        busy = min(processor for _, processor in times[name])
        print(f"{name:15} {seconds:.3f} s, {busy:.3f} s of the processor")
    line = {f"{name}_seconds": round(best[name], 3) for name in ("plan", "ls", "finished", "help")}
    print(json.dumps({**line, "torch_over_help": round(best["import torch"] / best["help"], 1)}))


if __name__ == "__main__":
    main()
