"""What lies in a store and nothing needs any more. No torch.

Needed is what a kept run names, what was made by a command for one piece of work, and what these
were made from. A run whose settings changed is named anew, and leaves behind what only its old
settings made.
"""

import json
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from remnant.durable import rename
from remnant.errors import UserError, some
from remnant.flow.store import Store, disk_errors
from remnant.records import Manifest

# The commands that give what they make a name; what others make is kept for whoever called them.
SWEEPS = ("run", "study", "demo")
# Unfinished work that nobody touched for so many seconds, a day, is not gone on with.
FORSAKEN = 86_400.0
# Also within the path of an artefact that was named as a folder.
_NAME = re.compile(r"[a-z]+-[0-9a-f]{16}")


class Unneeded(NamedTuple):
    """One folder: an artefact, unfinished work or what was set aside; or the log of workers that
    were killed, which clear it away themselves. And why it can go.
    """

    path: Path
    bytes: int
    why: str


def unneeded(store: Store, *, by_hand: bool = False) -> list[Unneeded]:
    """All of a store that can go, artefacts oldest first.

    Args:
        store: an opened store.
        by_hand: what single commands made can go too, where no run needs it.

    Raises:
        UserError: the name of a run is damaged, so that nobody knows what it needs.
    """
    made, named = store.manifests(), _named(store)
    roots = named if by_hand else named | {n for n, m in made.items() if not _of_sweep(m)}
    needed = _with_sources(roots, made)
    unnamed = [store.path(name) for name in made if name not in needed]
    forsaken = [p for p in _folders(store, "partial") if _forsaken(p, named)]
    logs = [p for p in (store.root / "partial").glob("*.log") if _age(p) > FORSAKEN]
    return [
        *(Unneeded(p, _size(p), "no run names it") for p in unnamed),
        *(Unneeded(p, _size(p), "unfinished, and left for a day") for p in forsaken),
        *(Unneeded(p, p.stat().st_size, "what a run said that ended a day ago") for p in logs),
        *(Unneeded(p, _size(p), "was damaged") for p in _folders(store, "damaged")),
    ]


def remove(store: Store, found: Iterable[Unneeded]) -> None:
    """Delete some things of a store; what a kill leaves over is found as damaged the next time.

    Raises:
        UserError: somebody is making something in this store.
    """
    if busy := store.locked():
        raise UserError(
            f"Work is going on in {store.root} ({some(busy)}), and may read what would be deleted.",
            "Run the same command again when it is done.",
        )
    with disk_errors(store.root):
        for path in [one.path for one in found]:
            if path.is_file():
                path.unlink()
                continue
            place = store.root / "damaged" / path.name
            if path != place:
                place.parent.mkdir(exist_ok=True)
                shutil.rmtree(place, ignore_errors=True)
                rename(path, place)
            # What was set aside under the name of another folder of the list went with that.
            if place.exists():
                shutil.rmtree(place)


def _named(store: Store) -> set[str]:
    """The pieces of work of all runs that have a name, and what their settings mention."""
    return set(_NAME.findall(json.dumps([store.labelled(label) for label in store.labels()])))


def _of_sweep(manifest: Manifest) -> bool:
    return manifest.command.split()[1:2] in [[name] for name in SWEEPS]


def _with_sources(roots: Iterable[str], made: Mapping[str, Manifest]) -> set[str]:
    """Some artefacts and all that they were made from."""
    found: set[str] = set()
    todo = list(roots)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += _NAME.findall(" ".join(made[name].inputs.values())) if name in made else []
    return found


def _folders(store: Store, where: str) -> list[Path]:
    return sorted(p for p in (store.root / where).glob("*") if p.is_dir())


def _forsaken(scratch: Path, named: set[str]) -> bool:
    """Whether nobody goes on with unfinished work: no run names it, and it is old."""
    age = min(map(_age, (scratch, *scratch.rglob("*"))))
    return scratch.name.rstrip("~") not in named and age > FORSAKEN


def _age(path: Path) -> float:
    """Seconds since it was last written."""
    return time.time() - path.stat().st_mtime


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
