"""Who makes the pieces of a sweep: worker processes of this machine, where nobody says otherwise.

No torch.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from remnant.flow.run import log_of, start_workers, stop_workers
from remnant.flow.store import Store, disk_errors
from remnant.records import SweepSpec
from remnant.secrecy import scrubbed

# Characters of the end of a log.
MOST_OF_A_LOG = 2000


class Hands(NamedTuple):
    """What whoever watches a sweep needs of those who make it.

    ``places``: how many pieces are made side by side. ``busy``: whether anything is being made; to
    be asked again and again, since pieces may be handed out by it. ``stop``: save what is half done
    and end all; nothing where all has ended. ``said``: what no piece tells of an end that nobody
    expected, "" where there was none. What has become of each piece stands in the store.
    """

    places: int
    busy: Callable[[], bool]
    stop: Callable[[], None]
    said: Callable[[], str]


def default_workers(sweep: SweepSpec) -> int:
    """One worker per core for models made here.

    One in all for models from outside or beside a GPU, which may be large.
    """
    if sweep.target or Path("/dev/nvidia0").exists():
        return 1
    return min(4, len(os.sched_getaffinity(0)))


def local_hands(store: Store, sweep: SweepSpec, count: int) -> Hands:
    """Start so many worker processes."""
    with disk_errors(store.root):
        workers = start_workers(store, sweep, count)
    log = log_of(store)

    def said() -> str:
        if all(w.returncode in (0, 130) for w in workers) or not log.is_file():
            return ""
        return scrubbed(log.read_text(encoding="utf-8", errors="replace"))[-MOST_OF_A_LOG:]

    return Hands(
        count,
        lambda: any(w.poll() is None for w in workers),
        lambda: stop_workers(workers),
        said,
    )
