"""What the tests by text and probabilities cost beside the four metrics of before, on the lab's
model: one measurement of each, opening the model included, in turns.

Both ask in the form that the target is asked in. Last line: one JSON object, the ratio of the best
turns.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from planted.models import laboratory
from remnant.context import Context, ModelCache
from remnant.corpus import METRIC_GROUPS
from remnant.flow.run import here
from remnant.records import MeasureSpec
from remnant.stages import measure

FOUR = ("verbmem", "knowmem_forget", "knowmem_retain", "privleak")


def seconds(model: Path, corpus: Path, metrics: tuple[str, ...]) -> float:
    """Processor seconds of one measurement, in one thread."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Context(lambda *_: None, ModelCache(), here())
        spec = MeasureSpec(metrics=metrics, form="published")
        begin = time.process_time()
        measure.run(spec, {"model": model, "corpus": corpus}, Path(scratch), work)
        return time.process_time() - begin


def main() -> None:
    """Time both in turns."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--work", type=Path, default=Path("runs/verdict"), help="keeps the lab")
    arguments.add_argument("--turns", type=int, default=3)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    lab = laboratory(given.work.resolve(), "news")
    model = lab.model("target")
    battery = tuple(dict.fromkeys((*METRIC_GROUPS["muse"], *METRIC_GROUPS["tests"])))
    seconds(model, lab.corpus, FOUR)  # imports, and files that are not yet in memory
    turns = [
        (seconds(model, lab.corpus, FOUR), seconds(model, lab.corpus, battery))
        for _ in range(given.turns)
    ]
    for four, all_ in turns:
        print(f"{len(FOUR)} metrics {four:.2f} s, {len(battery)} metrics {all_:.2f} s")
    four, all_ = (min(side) for side in zip(*turns, strict=True))
    print(json.dumps({"ratio": round(all_ / four, 2), "four": round(four, 2)}))


if __name__ == "__main__":
    main()
