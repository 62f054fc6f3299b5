"""Results of sweeps as they are kept in docs/results/: summary.json, packed, without its verdicts.

python scripts/kept.py SUMMARY.json NAME    packs a summary into docs/results/NAME/summary.json.gz

Numbers keep all their digits. Verdicts, evidence and checks are left out: the rule of the verdict
has become stricter since most of the sweeps ran, and what today's rule says only a run can tell.
"""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "docs" / "results"
NUMBERS = ("schema", "name", "cells", "recovery", "survival", "failed")


def read(path: Path) -> dict[str, Any]:
    """A summary, packed or not."""
    raw = path.read_bytes()
    found: dict[str, Any] = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    return found


def keep(path: Path, name: str) -> Path:
    """Pack the numbers of a summary; the same numbers give the same bytes."""
    numbers = {part: found for part, found in read(path).items() if part in NUMBERS}
    out = RESULTS / name / "summary.json.gz"
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(numbers, separators=(",", ":"))
    out.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    return out


if __name__ == "__main__":
    print(keep(Path(sys.argv[1]), sys.argv[2]))
