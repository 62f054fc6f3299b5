"""Before anything is unlearned: how many of the weights that bfloat16 can move at a rate does each
grid round to zero?

    python scripts/zone.py TARGET --lr 6e-5 [-q int4 -q nf4 ...]

TARGET is a model's folder. An AdamW step is about the rate; bfloat16 keeps it where it is at least
half a unit of the weight's last place. Last line: JSON.
"""

import argparse
import json
import math
from pathlib import Path

from remnant.methods import step
from remnant.model.load import matrices, open_model

GRIDS = ("int8", "int4-tensor", "int4", "int4-g128", "int4-g32", "nf4", "fp4", "int3")


def main() -> None:
    """Print one line per grid."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("target", type=Path)
    arguments.add_argument("--lr", type=float, required=True)
    arguments.add_argument("-q", dest="grids", action="append")
    given = arguments.parse_args()
    edge = 2.0 ** (math.floor(math.log2(given.lr) + 8) + 1)
    grids = given.grids or GRIDS
    every, movable, zero = 0, 0, dict.fromkeys(grids, 0)
    for matrix in matrices(open_model(str(given.target))):
        weight = matrix.read()
        zone = weight.abs() < edge
        every, movable = every + weight.numel(), movable + int(zone.sum())
        for name in grids:
            by = step(name)
            zero[name] += int(
                (zone & (by.method.load()(weight, **by.spec.params).weight == 0)).sum()
            )
    shares = {name: round(count / movable, 3) for name, count in zero.items()}
    print(
        f"{movable / every:.1%} of the weights lie below {edge:g} and can move. Of these a "
        "grid rounds to zero:"
    )
    for name, share in shares.items():
        print(f"{name:12} {share:6.1%}")
    print(json.dumps({"movable": round(movable / every, 3)} | shares))


if __name__ == "__main__":
    main()
