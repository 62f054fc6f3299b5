"""The table of planted failures: models that know, models that are destroyed and rows made by hand.

None may read as forgotten.

Each row is done as a user would do it, by commands of the source tree that is tried (`--source`,
this checkout's by default). A row passes if it ends with a refusal in a sentence, a verdict other
than "gone", right numbers or none; an honest set-up passes if no word calls it failed.
Beside each end stands what main at eb665c6 did (benchmarks/instrument_before.json). The lab is
trained once, into --work.
"""

import argparse
import hashlib
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from instrument import doors, honest, row_plants, served, verdicts, words
from instrument.bench import Bench, Outcome, Plant
from instrument.lab import Lab

HERE = Path(__file__).parent
BEFORE = HERE / "instrument_before.json"
PLANTS: tuple[Plant, ...] = (
    *doors.PLANTS,
    *verdicts.PLANTS,
    *row_plants.PLANTS,
    *served.PLANTS,
    *words.PLANTS,
    *honest.PLANTS,
)


def tried(
    bench: Bench, plants: Sequence[Plant], before: dict[str, dict[str, object]]
) -> dict[str, dict[str, object]]:
    """Do the rows, print each, and give what happened by name."""
    found: dict[str, dict[str, object]] = {}
    for plant in plants:
        begin = time.monotonic()
        outcome = acted(bench, plant)
        found[key(plant)] = told(outcome)
        print(
            f"{'passed' if outcome.passed else 'FAILED'}  {plant.kind:15} {plant.name}: "
            f"{plant.how} ({time.monotonic() - begin:.0f} s)"
        )
        if was := before.get(key(plant)):
            print(f"          before  {_loud(was['forgotten'])}{was['said']}")
        print(
            f"          {'after ' if before else 'found '}  "
            f"{_loud(outcome.forgotten)}{outcome.said}{_fault(outcome)}"
        )
        sys.stdout.flush()
    return found


def acted(bench: Bench, plant: Plant) -> Outcome:
    """What happened; a plant that cannot be made is a failed row, not the end of the table."""
    try:
        return plant.act(bench)
    except Exception as error:
        return Outcome(
            f"the plant itself broke: {type(error).__name__}: {error}", False, "broken plant"
        )


def key(plant: Plant) -> str:
    """A row's name in the record."""
    return f"{plant.kind} {plant.name}"


def told(outcome: Outcome) -> dict[str, object]:
    """An end as it is kept; paths are left out, which differ from run to run."""
    return {
        "said": re.sub(r"/\S*/", ".../", outcome.said),
        "forgotten": outcome.forgotten,
        "passed": outcome.passed,
    }


def _loud(forgotten: object) -> str:
    return "READS AS FORGOTTEN  " if forgotten else ""


def _fault(outcome: Outcome) -> str:
    return f"  [{outcome.fault}]" if outcome.fault and outcome.fault not in outcome.said else ""


def main() -> int:
    """Do the table; 0 if every row passed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--source", type=Path, default=HERE.parent / "src", help="the src folder that is tried"
    )
    arguments.add_argument(
        "--work",
        type=Path,
        default=Path("runs/instrument"),
        help="keeps the lab from one run to the next",
    )
    arguments.add_argument(
        "--only", default="", help="rows whose kind and name match this expression"
    )
    arguments.add_argument(
        "--json",
        type=Path,
        help="lay what happened over the record in this file, as that of before is made",
    )
    given = arguments.parse_args()
    begin = time.monotonic()
    work, source = given.work.resolve(), given.source.resolve()
    bench = Bench(
        Lab(work), source, work / f"tries-{hashlib.sha256(str(source).encode()).hexdigest()[:6]}"
    )
    before = {} if given.json else json.loads(BEFORE.read_text(encoding="utf-8"))
    try:
        found = tried(bench, [p for p in PLANTS if re.search(given.only, key(p))], before)
    finally:
        bench.close()
    if given.json:
        held = json.loads(given.json.read_text(encoding="utf-8")) if given.json.is_file() else {}
        kept = {
            name: what for name, what in (held | found).items() if name in {key(p) for p in PLANTS}
        }
        given.json.write_text(
            json.dumps(kept, indent=0, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return summed(found, before, time.monotonic() - begin)


def summed(
    found: dict[str, dict[str, object]], before: dict[str, dict[str, object]], seconds: float
) -> int:
    """Print the sums, the last line "N passed, M failed"; 0 if none failed."""
    fair = [f for name, f in found.items() if name.startswith("honest")]
    words_of = [str(f["said"]).partition(" (")[0] for f in fair]
    planted = len(found) - len(fair)
    print(
        f"\n{planted} planted failures, {sum(bool(f['forgotten']) for f in found.values())} "
        f"read as forgotten; {seconds / 60:.1f} minutes."
    )
    if before:
        both = [before[name] for name in found if name in before]
        read, failed = (sum(bool(b[word]) for b in both) for word in ("forgotten", "passed"))
        print(f"Before: {read} of {len(both)} read as forgotten, {len(both) - failed} failed.")
    stayed = sum(w == "gone" for w in words_of)
    print(
        f"{len(fair)} honest set-ups, {stayed} judged 'gone': {', '.join(sorted(set(words_of)))}."
    )
    failed = [name for name, f in found.items() if not f["passed"]]
    for name in failed:
        print(f"failed: {name}: {found[name]['said']}")
    print(f"{len(found) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
