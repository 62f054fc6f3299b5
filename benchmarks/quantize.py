"""How fast each format quantizes one 4096 x 4096 layer, against copies of the same memory in the
same run. Last line: JSON.

A quantizer returns new memory, so it is set against a copy to new memory; a copy over old memory,
which touches no new page, is shown too. Times include decoding to the dense copy that is judged.
GB/s counts the float32 weights that are read. Formats whose library is missing say so. GPTQ, AWQ
and whole GGUF files work on models, not on one layer; a sweep's manifests hold their times.
"""

import argparse
import json
import time

import torch

from remnant.errors import UserError
from remnant.methods import step

SIDE = 4096
NAMES = (
    "int4",
    "int4-g128",
    "int8",
    "nf4",
    "fp4",
    "q8_0",
    "q4_0",
    "bnb-nf4",
    "bnb-fp4",
    "bnb-int8",
    "ao-int4-g128-asym",
    "hqq4",
)


def seconds(task: object, turns: int) -> float:
    """The fastest of some turns, after one that is not counted."""
    assert callable(task)
    found = []
    for _ in range(turns + 1):
        begin = time.perf_counter()
        task()
        found.append(time.perf_counter() - begin)
    return min(found[1:])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--turns", type=int, default=3)
    turns = arguments.parse_args().turns
    weight = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.02
    size = weight.numel() * 4
    other = torch.empty_like(weight)
    over_old = seconds(lambda: other.copy_(weight), 5 * turns)
    copy = seconds(weight.clone, 5 * turns)
    print(f"{'copy to new memory':20} {1000 * copy:9.1f} ms {size / copy / 1e9:8.2f} GB/s")
    print(
        f"{'copy over old memory':20} {1000 * over_old:9.1f} ms {size / over_old / 1e9:8.2f} GB/s"
    )
    over: dict[str, float | None] = {}
    for name in NAMES:
        method = step(name).method
        function = method.load()
        try:
            took = seconds(
                lambda function=function, params=method.params: function(weight, **params),
                1 if name == "hqq4" else turns,
            )
        except UserError as error:
            print(f"{name:20} not run: {error}")
            over[name] = None
            continue
        over[name] = round(took / copy, 1)
        print(
            f"{name:20} {1000 * took:9.1f} ms {size / took / 1e9:8.2f} GB/s "
            f"{took / copy:8.1f} x copy"
        )
    result = {
        "copy_gbps": round(size / copy / 1e9, 2),
        "old_copy_gbps": round(size / over_old / 1e9, 2),
        "rtn_over_copy": over["int4"],
    }
    print(json.dumps(result | {"over_copy": over}))


if __name__ == "__main__":
    main()
