"""How long the commands take that make nothing: `--help`, the plan of the largest sweep, `ls` of
2,000 artefacts, and a measurement that is done; each in a process of its own.

Against a bare Python and importing torch, in turns. The last line is one JSON object; times are the
best of the rounds, in seconds.
"""

import argparse
import json
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
    store = Store(root / "many").open()
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
    parser = argparse.ArgumentParser()
    parser.add_argument("--artefacts", type=Path, help="The store of `ls`; kept if it is there.")
    kept = parser.parse_args().artefacts
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        finished = measured(root)
        made = list(Store(root / "store").manifests().values())[-1]
        many = kept if kept and kept.is_dir() else filled(kept.parent if kept else root, made)
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


def report(commands: dict[str, list[str]]) -> None:
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(time.perf_counter() - started)
    best = {name: min(found) for name, found in times.items()}
    for name, seconds in best.items():
        print(f"{name:15} {seconds:.3f} s")
    line = {f"{name}_seconds": round(best[name], 3) for name in ("plan", "ls", "finished", "help")}
    print(json.dumps({**line, "torch_over_help": round(best["import torch"] / best["help"], 1)}))


if __name__ == "__main__":
    main()
