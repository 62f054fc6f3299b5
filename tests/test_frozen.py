"""What was measured before a redesign is measured after it, to the last bit.

Bits hold for one kind of processor and one version of torch; elsewhere a training run may part from
another within some steps, so there the numbers say nothing and the test is skipped.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from remnant.flow.plan import plan
from remnant.flow.run import work
from remnant.flow.store import Store
from remnant.flow.sweepfile import read_sweep
from remnant.verbs import run
from tests.conftest import unheard

HERE = Path(__file__).parent / "frozen"
SWEEPS = Path(__file__).parent.parent / "sweeps"
# What is no longer what it was, and why: (part of a key, reason).
CORRECTED: dict[str, tuple[tuple[str, str], ...]] = {"small": (), "demo": (), "sure-ablation": ()}


def machine() -> dict[str, str]:
    """What bits depend on."""
    return {"torch": torch.__version__, "kernels": torch.backends.cpu.get_cpu_capability()}


def numbers(summary: dict[str, Any]) -> dict[str, Any]:
    """All cells, recoveries, verdicts and survivals of a run, each under a name of its own."""
    about = ("corpus", "model", "form", "metric", "seed")
    found = {}
    for kind in ("cells", "recovery", "verdicts", "survival"):
        for row in summary[kind]:
            name = "/".join([kind, *(str(row[key]) for key in about if key in row)])
            found[name] = {k: v for k, v in row.items() if k not in about}
    return found


def ran(name: str, sweep: str, out: Path, settings: tuple[str, ...] = ()) -> None:
    """Run a sweep and compare all of its numbers with those that were kept."""
    with gzip.open(HERE / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        kept = json.load(file)
    if kept["machine"] != machine():
        pytest.skip(f"the numbers were kept on {kept['machine']}")
    run(Store(out / "store").open(), sweep, settings, 2, out / "report", False)
    now = numbers(json.loads((out / "report" / "summary.json").read_text()))
    corrected = tuple(part for part, _ in CORRECTED[name])
    before = kept["numbers"]
    assert set(before) - set(now) == set()
    # A number may say in more fields than it did whose it is.
    changed = [n for n, was in before.items() if now[n] | was != now[n]]
    for part in corrected:
        changed = [n for n in changed if part not in n]
    assert {n: (before[n], now[n]) for n in changed} == {}


def test_a_small_sweep_gives_the_numbers_it_always_gave(tmp_path: Path) -> None:
    small = HERE / "small.toml"
    # Made in this process, where everything is imported already; the run then only reports.
    work(Store(tmp_path / "store").open(), plan(read_sweep(small)), lambda _: unheard)
    ran("small", str(small), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_gives_the_numbers_it_always_gave(tmp_path: Path) -> None:
    ran("demo", "demo", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sures_ablation_gives_the_numbers_it_always_gave(tmp_path: Path) -> None:
    ran("sure-ablation", str(SWEEPS / "sure-ablation.toml"), tmp_path, ("seeds=[0]",))
