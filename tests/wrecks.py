"""A tiny sweep whose store can be damaged and whose run can be killed, and what both must come
to."""

import functools
import os
import random
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from remnant import verbs
from remnant.cli import main
from remnant.errors import Interrupted
from remnant.flow import run as running
from remnant.flow.failures import forget_failures
from remnant.flow.plan import Node, plan
from remnant.flow.store import Store, write_progress
from remnant.flow.sweepfile import read_sweep
from remnant.report import page
from remnant.training import checkpoints
from tests.conftest import unheard

SWEEP = """
name = "tiny"
quantizers = ["int4"]
[[corpus]]
lab = "news"
forget_docs = 4
retain_docs = 4
holdout_docs = 4
prompt_tokens = 16
answer_tokens = 8
text_tokens = 48
vocab_size = 320
max_items = 6
[train]
steps = 6
warmup = 2
hidden = 32
heads = 2
kv_heads = 2
intermediate = 32
layers = 1
block_tokens = 64
context = 2048
[[unlearn]]
method = "ga_gdr"
steps = 6
lr = 1e-3
probe_every = 2
max_tokens = 64
[rule]
resamples = 20
"""
DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flipped": lambda data, rng: _flipped(data, rng),
    "cut": lambda data, rng: data[: rng.randrange(len(data))],
    "emptied": lambda data, rng: b"",
    "zeroed": lambda data, rng: bytes(len(data)),
}


def _flipped(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def sweep_file(folder: Path) -> Path:
    """The sweep on the disk."""
    path = folder / "tiny.toml"
    path.write_text(SWEEP)
    return path


@functools.cache
def nodes_of(sweep: Path) -> list[Node]:
    """Its pieces; planned once, as it reads the sources of all methods."""
    return plan(read_sweep(sweep))


def content(root: Path) -> dict[str, dict[str, str]]:
    """What was made, by artefact and file."""
    found: dict[str, dict[str, str]] = {}
    for name, made in Store(root).manifests().items():
        found[name] = {file: record.sha256 for file, record in made.files.items()}
    return found


@contextmanager
def in_this_process(sweep: Path) -> Iterator[None]:
    """`remnant run` of a sweep without processes, charts, and planning anew.

    Everything else as it is.
    """

    def work(store: Store, nodes: list[Node], hands: Any, screen: Any) -> None:
        running.work(store, nodes, lambda node: unheard)
        running.clean_up(store)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verbs, "local_hands", lambda *given: None)
        patch.setattr(verbs, "_work", work)
        patch.setattr("remnant.verbs.planning.plan", lambda given: nodes_of(sweep))
        patch.setattr(page, "rendered", lambda *a: "")
        yield


def call(*args: object) -> Result:
    """A command; a fault that is not a sentence fails the test."""
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), (
        args,
        result.exception,
    )
    assert "Traceback" not in result.output, result.output
    return result


def leave_unfinished(root: Path, sweep: Path) -> None:
    """Interrupt training, unlearning and measuring of a finished store in the middle, so that their
    scratch is there."""
    store, nodes = Store(root).open(), nodes_of(sweep)
    last = {node.stage: node for node in nodes}
    for node, at in ((last["measure"], 1), (last["unlearn"], 5), (last["train"], 4)):
        forget(root, node, nodes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoints, "apart", lambda size, model: 0.0)
            patch.setattr(checkpoints, "SHARE", float("inf"))
            with pytest.raises((KeyboardInterrupt, Interrupted)):
                running.make(store, node, _stop_at(store, node, at))
    shutil.rmtree(store.path(next(n for n in nodes if n.stage == "audit").name), ignore_errors=True)


def _stop_at(store: Store, node: Node, at: int) -> Callable[[int, int, str], None]:
    def report(done: int, total: int, note: str) -> None:
        write_progress(store.scratch(node.name), done, total, note)
        if done >= at:
            raise KeyboardInterrupt

    return report


def forget(root: Path, node: Node, nodes: list[Node]) -> None:
    """Remove an artefact and what was read from it directly by one measurement and the audit, so
    that it is read again."""
    shutil.rmtree(Store(root).path(node.name), ignore_errors=True)


def readers(name: str, nodes: list[Node]) -> list[Node]:
    """One piece that reads an artefact, and the audit."""
    found = [n for n in nodes for s in n.inputs.values() if isinstance(s, Node) and s.name == name]
    return found[-1:] + [n for n in nodes if n.stage == "audit"]


def files_of(root: Path) -> list[Path]:
    """Every file of a store that a run might read, relative to it."""
    found = (p for p in sorted(root.rglob("*")) if p.is_file() and p.stat().st_size)
    return [
        p.relative_to(root)
        for p in found
        if p.relative_to(root).parts[0] in ("objects", "partial", "names")
    ]


def kind_of(place: Path) -> str:
    """Files of one kind: folder, stage and name."""
    folder, *inside = place.parts
    stage = inside[0].split("-")[0]
    return f"{folder}/{stage}/{place.name}" if folder != "names" else "names"


def spread(places: list[Path], count: int, rng: random.Random) -> list[tuple[Path, str]]:
    """So many damages over all kinds of files: every kind once before any twice."""
    kinds: dict[str, list[Path]] = {}
    for place in places:
        kinds.setdefault(kind_of(place), []).append(place)
    order: list[tuple[Path, str]] = []
    ways = list(DAMAGES)
    while len(order) < count:
        for i, same in enumerate(kinds.values()):
            order.append((rng.choice(same), ways[(i + len(order) // len(kinds)) % len(ways)]))
    return order[:count]


def survives(
    whole: Path,
    expected: dict[str, Any],
    sweep: Path,
    damage: tuple[Path, str],
    folder: Path,
    rng: random.Random,
) -> str:
    """Damage one file of a copy of a store, look at it, and give the same command again.

    Returns:
        "made again", or "refused" where the command named the folder to delete, and went on after
            that was deleted.
    """
    root, (place, how) = folder / "store", damage
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(whole, root)
    nodes = nodes_of(sweep)
    data = (root / place).read_bytes()
    damaged = DAMAGES[how](data, rng)
    (root / place).write_bytes(damaged)
    if place.parts[0] == "objects":
        for node in readers(place.parts[1], nodes):
            if node.name != place.parts[1]:
                shutil.rmtree(Store(root).path(node.name), ignore_errors=True)
    with in_this_process(sweep):
        call("ls", "--store", root)
        looked = call("report", "tiny", "--store", root, "--out", folder / "report")
        if place.parts[0] == "names":
            assert looked.exit_code == 2, looked.output
        if place.parts[0] == "objects":
            shown = call("show", place.parts[1], "--store", root)
            assert shown.exit_code in (1, 2) or damaged == data, shown.output
            assert "Delete the folder" in shown.output, shown.output
        result = call("run", sweep, "--store", root)
        outcome = "made again"
        if result.exit_code == 2:
            assert "Delete the folder" in result.output, result.output
            shutil.rmtree(root / Path(*place.parts[:2]))
            result, outcome = call("run", sweep, "--store", root), "refused"
    assert result.exit_code == 0, result.output
    assert content(root) == expected["content"]
    assert (root / "reports/tiny/summary.json").read_bytes() == expected["summary"]
    assert all(Store(root).sound(n.name) for n in nodes)
    return outcome


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Callable[[str], int]]:
    """A real file system of that size; what is given back mounts it anew with other options.

    Skips where mounting needs more rights.
    """
    place.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a file system needs root")
    try:
        yield lambda options: subprocess.check_call(["mount", "-o", f"remount,{options}", place])
    finally:
        subprocess.run(["umount", "-l", place], check=True)  # weights that are still mapped hold it


def child(body: Callable[[], None]) -> int:
    """A process of its own that does something; returns its id."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            body()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return pid


def work_in(root: Path, sweep: Path) -> None:
    """Make all pieces, saving after every step."""
    checkpoints.apart, checkpoints.SHARE = (lambda size, model: 0.0), float("inf")
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    store, nodes = Store(root).open(), nodes_of(sweep)
    forget_failures(store, nodes)
    failed = running.work(store, nodes, lambda node: unheard)
    running.clean_up(store)
    if failed or running.missing(store, nodes):
        raise AssertionError([n.name for n in failed])


def ended(pid: int) -> int:
    """Wait for a child; its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(seconds: float, root: Path, sweep: Path) -> bool:
    """Kill a run after so long with no chance to say anything; whether it was still at work."""
    pid = child(lambda: work_in(root, sweep))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.kill(pid, 9)
    return ended(pid) == -9
