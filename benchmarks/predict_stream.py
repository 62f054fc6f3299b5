"""How fast a prediction reads: survey of two 7B-shaped checkpoints against a plain read of the same
files plus a memory copy.

Makes as many layers of the pair as are asked for in a temporary folder (0.8 GB a layer in
bfloat16), then takes turns in one run. The plain pass reads every byte into a preallocated buffer
and copies it once, with as many threads as the survey has, in pieces that never leave the cache,
which is the strictest measure. The survey is timed as `remnant predict` runs it, with large weights
sampled, and with all of them rounded (exact); the two results are compared. Peak memory is that of
a fresh process that only surveys. Last line: JSON.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from remnant.forecast.checkpoint import Checkpoint
from remnant.forecast.grids import DEFAULT, grid
from remnant.forecast.stream import SAMPLE, survey
from remnant.functional.survival import Sums, survival, survival_of_model

Found = dict[str, dict[str, Sums]]
HIDDEN, INTERMEDIATE = 4096, 11008
SHAPES = {
    **{f"self_attn.{p}_proj": (HIDDEN, HIDDEN) for p in "qkvo"},
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
BLOCK = 1 << 20


def make_pair(folder: Path, layers: int) -> tuple[Path, Path]:
    """Two checkpoints in bfloat16, one file a layer; the second differs by a small update."""
    generator = np.random.default_rng(0)
    paths = folder / "target", folder / "unlearned"
    for path in paths:
        path.mkdir()
    for layer in range(layers):
        header, offset = {}, 0
        for name, shape in SHAPES.items():
            size = 2 * shape[0] * shape[1]
            header[f"model.layers.{layer}.{name}.weight"] = {
                "dtype": "BF16",
                "shape": shape,
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = json.dumps(header).encode()
        weights = generator.normal(0, 0.02, offset // 2).astype(np.float32)
        for path, shift in zip(paths, (0.0, 1e-4), strict=True):
            bits = (weights + np.float32(shift)).view(np.uint32) >> 16
            with (path / f"model-{layer:05d}.safetensors").open("wb") as file:
                file.write(
                    len(text).to_bytes(8, "little") + text + bits.astype(np.uint16).tobytes()
                )
    return paths


def plain(files: list[Path], threads: int) -> float:
    """Seconds to read all files once and copy what was read.

    Every thread has its own two buffers.
    """
    own = threading.local()

    def one(task: tuple[Path, int]) -> None:
        path, start = task
        if not hasattr(own, "buffers"):
            own.buffers = np.ones((2, BLOCK), np.uint8)
        source, copy = own.buffers
        with path.open("rb", buffering=0) as file:
            read = os.preadv(file.fileno(), [source.data], start)
        copy[:read] = source[:read]

    tasks = [(f, start) for f in files for start in range(0, f.stat().st_size, BLOCK)]
    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, tasks))
    return time.perf_counter() - begin


def surveyed(pair: tuple[Path, Path], names: tuple[str, ...], sample: int = SAMPLE) -> Found:
    """One survey."""
    models = [Checkpoint(p) for p in pair]
    return survey(models[0], models[1], [grid(n) for n in names], sample=sample)


def timed(pair: tuple[Path, Path], names: tuple[str, ...], sample: int = SAMPLE) -> float:
    """Seconds of one survey."""
    begin = time.perf_counter()
    surveyed(pair, names, sample)
    return time.perf_counter() - begin


def apart(one: Found, other: Found) -> tuple[float, float]:
    """Largest difference of the gain of a weight, and of a whole model, under any grid."""
    weights = max(
        abs((survival(s).gain or 0) - (survival(other[w][g]).gain or 0))
        for w, grids in one.items()
        for g, s in grids.items()
    )
    whole = [
        {g: survival_of_model({w: f[w][g] for w in f}).gain or 0 for g in DEFAULT}
        for f in (one, other)
    ]
    return weights, max(abs(whole[0][g] - whole[1][g]) for g in DEFAULT)


def main() -> None:
    """Take turns, print the ratios of the medians."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--layers", type=int, default=3)
    arguments.add_argument("--turns", type=int, default=3)
    arguments.add_argument("--peak-of", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    threads = len(os.sched_getaffinity(0))
    if given.peak_of:
        timed(tuple(given.peak_of), DEFAULT)
        # Not ru_maxrss, which a child inherits from its parent.
        print(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        pair = make_pair(Path(folder), given.layers)
        files = [f for p in pair for f in sorted(p.glob("*.safetensors"))]
        size = sum(f.stat().st_size for f in files)
        print(f"{given.layers} layers of a 7B, {size / 1e9:.2f} GB in all, {threads} threads")
        tasks = {
            "plain": lambda: plain(files, threads),
            "one grid (int4)": lambda: timed(pair, ("int4",)),
            f"default set ({len(DEFAULT)} grids)": lambda: timed(pair, DEFAULT),
            "default set, exact": lambda: timed(pair, DEFAULT, sample=0),
        }
        times: dict[str, list[float]] = {name: [] for name in tasks}
        for turn in range(given.turns + 1):
            for name, task in tasks.items():
                seconds = task()
                if turn:  # the first turn compiles and fills the page cache
                    times[name].append(seconds)
        medians = {name: float(np.median(found)) for name, found in times.items()}
        for name, seconds in medians.items():
            print(f"{name:26} {seconds:6.2f} s  {size / seconds / 1e9:5.2f} GB/s")
        one, whole, exact = (medians[name] for name in list(tasks)[1:])
        weight, model = apart(surveyed(pair, DEFAULT), surveyed(pair, DEFAULT, sample=0))
        print(
            f"The gain of a weight differs by at most {weight:.4f} from the exact one, that "
            f"of all weights together by {model:.4f}"
        )
        peak = subprocess.run(
            [sys.executable, __file__, "--peak-of", *map(str, pair)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    result = {
        "ratio_one_grid": round(one / medians["plain"], 3),
        "ratio_default_set": round(whole / medians["plain"], 3),
        "peak_rss_gb": round(int(peak) / 1e6, 3),
        "ratio_default_set_exact": round(exact / medians["plain"], 3),
        "gain_off_by": round(weight, 4),
        "gbps": round(size / whole / 1e9, 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
