"""Make what is missing: one worker process per device or core, sharing a store through locks.

No torch until a piece must be made.
"""

import importlib
import importlib.metadata
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NamedTuple, cast

from remnant.catalog import STAGE_VERSIONS
from remnant.context import Context, ModelCache, Place, Progress
from remnant.errors import Interrupted, UserError
from remnant.flow.copies import (
    Copy,
    by_form,
    check_same,
    enough,
    from_memory,
    let_go,
    node_of,
    readers_of,
    wanted,
)
from remnant.flow.digests import VERIFY, digest_path
from remnant.flow.failures import failed_of, note_failure
from remnant.flow.place import Made, Outside, check_hub
from remnant.flow.plan import Input, Node, plan
from remnant.flow.store import Store, disk_errors, has_weights, write_progress
from remnant.lean import import_leanly
from remnant.lineage import Lineage
from remnant.quiet import hush, unchanged
from remnant.records import Manifest, Record, SweepSpec, TransformResult
from remnant.remotecode import runs_code
from remnant.secrecy import for_workers, redacted, scrubbed, scrubbed_command

PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "numpy", "rouge-score", "llmcompressor",
    "compressed-tensors",
)  # fmt: skip
# A worker's own command line says nothing; this variable hands it the user's.
COMMAND = "REMNANT_COMMAND"
POLL_SECONDS = 0.25
WRITE_SECONDS = 0.5
# Less than what makes a piece look forsaken to who watches.
AGAIN_SECONDS = 10.0


class Order(NamedTuple):
    """What the first of several ranks tells the others to run with it."""

    stage: str
    spec: Record
    inputs: dict[str, Path]
    known: dict[str, Lineage]


def make(
    store: Store,
    node: Node,
    progress: Progress,
    models: ModelCache | None = None,
    *,
    wait: bool = True,
    copy: Copy = Copy.KEPT,
) -> Path | None:
    """Make one artefact unless it is there; its inputs must be.

    Args:
        store: an opened store.
        node: what to make.
        progress: called with (done, total, note).
        models: what is in memory, for pieces that are made one after the other.
        wait: wait for another process that is making the same thing; if False, return None at once
            instead.
        copy: what is wanted of a transformed copy; one that is only known has no weights.

    An artefact that is there, and every input, is compared with its manifest first; what is damaged
    is made again, or refused where it is not part of the plan. A copy whose weights were not kept
    is made anew where they are wanted.

    Raises:
        UserError: from the stage; what it wrote stays in the scratch folder, so that a later call
            can go on.
    """
    copy = copy if node.stage == "transform" else Copy.KEPT
    if _there(store, node.name, copy):
        return store.path(node.name)
    with unchanged(), disk_errors(store.root), store.lock(node.name, wait=wait) as held:
        if not held:
            return None
        if _there(store, node.name, copy):
            return store.path(node.name)
        if store.sound(node.name) and _there(store, node.name, Copy.READ):
            store.keep(node.name)
            return store.path(node.name)
        if store.path(node.name).exists() and not store.sound(node.name):
            store.set_aside(node.name)
        return _made(store, node, progress, models or ModelCache(), copy)


def _there(store: Store, name: str, copy: Copy) -> bool:
    """Whether an artefact is as it was made, and as it is wanted."""
    return store.sound(name) and enough(store.manifest(name), copy)


def _made(store: Store, node: Node, progress: Progress, models: ModelCache, copy: Copy) -> Path:
    """Run the stage of an artefact in its scratch folder, and seal what comes of it."""
    stage = importlib.import_module(f"remnant.stages.{node.stage}")
    hush()
    goes_on_from = getattr(stage, "GOES_ON_FROM", ())
    scratch = _tidied(store.scratch(node.name), goes_on_from)
    before = store.manifest(node.name) if store.has(node.name) else None
    started = time.monotonic()
    result, ran = _run(store, node, scratch, _Given(progress, models, copy > Copy.KNOWN))
    if before:
        check_same(before, result)
    _unchanged(node)
    manifest = _manifest(node, result, time.monotonic() - started, ran)
    kept = manifest.model_copy(update={"kept": copy == Copy.KEPT})
    return store.seal(node.name, kept, stage.LEAVES, goes_on_from)


class _Given(NamedTuple):
    """What a piece is made with: whom to tell, what is in memory, whether a copy is written."""

    progress: Progress
    models: ModelCache
    weights: bool


def _run(store: Store, node: Node, scratch: Path, by: _Given) -> tuple[Record, tuple[str, ...]]:
    """Run a stage in a folder, with all its inputs at hand; its result, and the inputs whose own
    code was run.
    """
    stage = importlib.import_module(f"remnant.stages.{node.stage}")
    with ExitStack() as held:
        known = _at_hand(store, node, by, held)
        inputs = {
            role: Path(s.source) if isinstance(s, Outside) else store.path(s.name)
            for role, s in node.inputs.items()
        }
        own = {"self": Lineage(node.digest, node.digest)}
        work = Context(by.progress, by.models, here(), known | own, by.weights)
        by.progress(0, 0, "starting")
        if ranks := sys.modules.get("remnant.ranks"):
            ranks.told(Order(node.stage, node.spec, inputs, dict(work.known)))
        result = stage.run(node.spec, inputs, scratch, work)
    return result, tuple(role for role, path in inputs.items() if runs_code(str(path)))


def _at_hand(store: Store, node: Node, by: _Given, held: ExitStack) -> dict[str, Lineage]:
    """What all inputs of a piece are, made where they are missing; copies whose files it reads stay
    as long as ``held``, and one that it takes from memory is there.
    """
    read = {r: Copy.KNOWN if from_memory(node, r) else Copy.READ for r in node.inputs}
    while True:
        known = {r: _lineage(store, s, by, read[r]) for r, s in node.inputs.items()}
        copies = {
            s.name: read[r]
            for r, s in node.inputs.items()
            if not isinstance(s, Outside) and s.name.startswith("transform-")
        }
        with ExitStack() as taken:
            for name in copies:
                taken.enter_context(store.reading(name))
            # Another process may have let one go before it was held.
            if all(enough(store.manifest(name), copy) for name, copy in copies.items()):
                held.enter_context(taken.pop_all())
                break
    source = node.inputs.get("model")
    if isinstance(source, Node | Made) and copies.get(source.name) == Copy.KNOWN:
        _recall(store, source, known["model"], by)
    return known


def _recall(store: Store, source: Node | Made, lineage: Lineage, by: _Given) -> None:
    """Have a copy without weights in memory: the one that is there, or one that is made again.

    Nothing where the weights are on the disk.

    Raises:
        UserError: it cannot be made, or comes out otherwise.
    """
    if has_weights(store.manifest(source.name)):
        return
    last = by.models.get(lineage.origin)
    if last:
        by.models.put(last)
    if last and last.lineage.digest == lineage.digest:
        return
    del last
    node = source if isinstance(source, Node) else node_of(store, source.name)

    def quietly(done: int, total: int, note: str) -> None:
        by.progress(0, 0, "making the copy again")

    with tempfile.TemporaryDirectory() as folder:
        again = by._replace(progress=quietly, weights=False)
        result, _ = _run(store, node, Path(folder), again)
    check_same(store.manifest(source.name), result)


def _tidied(scratch: Path, goes_on_from: Sequence[str]) -> Path:
    """The scratch folder with nothing in it but what the stage can go on from."""
    scratch.mkdir(parents=True, exist_ok=True)
    for path in scratch.iterdir():
        if not any(fnmatchcase(path.name, pattern) for pattern in goes_on_from):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return scratch


def _lineage(store: Store, source: Input, by: _Given, copy: Copy) -> Lineage:
    """What an input is, after it was seen to be as it was made.

    One that is damaged is made again where the plan says how, and a copy without weights where they
    are to be read.

    Raises:
        UserError: it is damaged and not part of the plan.
    """
    if isinstance(source, Outside):
        check_hub(source.source)
        if owner := store.owner(Path(source.source)):
            store.checked(owner)
        return Lineage(source.digest, source.digest)
    if isinstance(source, Node):
        make(store, source, by.progress, by.models, copy=copy)
    elif not enough(store.checked(source.name), copy):
        whole(store, source.name, by.progress)
    manifest = store.checked(source.name)
    origin = manifest.sources.get("model")
    if manifest.stage == "transform" and origin:
        return Lineage(manifest.digest, origin, frozenset(manifest.of(TransformResult).changed))
    return Lineage(manifest.digest, manifest.digest)


def whole(store: Store, name: str, progress: Progress, copy: Copy = Copy.READ) -> Manifest:
    """The manifest of a model with its weights; those of a copy that was not kept are made anew.

    Raises:
        UserError: they cannot be.
    """
    if not enough(store.checked(name), copy):
        make(store, node_of(store, name), progress, copy=copy)
    return store.checked(name)


def _unchanged(node: Node) -> None:
    """See that nothing from outside was changed while it was used: it would stand under a key that
    is not its own.
    """
    for source in node.inputs.values():
        if (
            isinstance(source, Outside)
            and (path := Path(source.source)).exists()
            and digest_path(path) != source.digest
        ):
            raise UserError(
                f"{path} was changed while it was being used.",
                "Run the same command again when it is left alone.",
            )


def _manifest(node: Node, result: Record, seconds: float, ran: tuple[str, ...]) -> Manifest:
    commit, dirty = _revision()
    return Manifest(
        key=node.digest[:16],
        digest=node.digest,
        stage=node.stage,
        stage_version=STAGE_VERSIONS[node.stage],
        spec=redacted(node.spec.model_dump(mode="json")),
        inputs={
            r: f"{s.source} ({s.digest[:16]})" if isinstance(s, Outside) else s.name
            for r, s in node.inputs.items()
        },
        sources={role: source.digest for role, source in node.inputs.items()},
        methods=dict(node.methods),
        remote_code=ran,
        files={},
        summary=redacted(result.model_dump(mode="json")),
        seconds=round(seconds, 3),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=os.environ.get(COMMAND, _command()),
        packages=packages(),
        commit=commit,
        dirty=dirty,
        device=_device(),
        peak_memory_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    )


def _command() -> str:
    return scrubbed_command(["remnant", *sys.argv[1:]])


def packages() -> dict[str, str]:
    """The versions of what decides the last bits of a result, Remnant's own among them."""
    found = {"python": platform.python_version(), "remnant": importlib.metadata.version("remnant")}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def here() -> Place:
    """The accelerator, where a stage has brought torch and there is one; else the CPU.

    Of a launcher's ranks each has its own.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return Place()
    return Place(f"cuda:{own}" if (own := os.environ.get("LOCAL_RANK")) else "cuda")


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{platform.processor() or platform.machine()} CPU, {len(os.sched_getaffinity(0))} cores"


def _revision() -> tuple[str | None, bool | None]:
    """Commit of the source tree that runs, and whether it has uncommitted changes.

    None outside a checkout.
    """
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        status = subprocess.run(
            ["git", "status", "--porcelain", "-uno"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, bool(status)


def missing(store: Store, nodes: Sequence[Node]) -> list[Node]:
    """What is not in the store yet, in order."""
    return [node for node in nodes if not store.has(node.name)]


class Rest(NamedTuple):
    """What a sweep still lacks.

    ``open``: to be made; ``ready``: what of it can be made now; ``lost``: the names of what failed
    or hangs on what failed.
    """

    open: list[Node]
    ready: list[Node]
    lost: frozenset[str]


def rest_of(store: Store, nodes: Sequence[Node], failed: Collection[str]) -> Rest:
    """What is left of some pieces, each behind what it is made from, where some have failed."""
    todo, lost = missing(store, nodes), set(failed)
    for node in todo:
        if _needs_any(node, lost):
            lost.add(node.name)
    left = [n for n in todo if n.name not in lost]
    names = {n.name for n in left}
    return Rest(left, [n for n in left if not _needs_any(n, names)], frozenset(lost))


def work(
    store: Store, nodes: Sequence[Node], progress_of: Callable[[Node], Progress]
) -> list[Node]:
    """Make all pieces that can be made, skipping those in other hands.

    Returns the ones that failed or hang on a failed one.
    """
    failed, models = failed_of(store, nodes), ModelCache()
    todo, copies, readers = by_form(nodes), wanted(nodes), readers_of(nodes)

    def tried(node: Node) -> bool:
        copy = copies.get(node.name, Copy.KEPT)
        return attempt(store, node, progress_of(node), models, failed, copy)

    while True:
        # What is complete stays complete, so only the rest is looked at again.
        todo, ready, lost = rest_of(store, todo, failed)
        failed |= lost
        if not todo:
            return [n for n in nodes if n.name in failed]
        if any(map(tried, ready)):
            let_go(store, readers)
        else:
            time.sleep(POLL_SECONDS)
            failed |= failed_of(store, todo)


def _needs_any(node: Node, names: Collection[str]) -> bool:
    """Whether a piece is made from one of some others."""
    return any(isinstance(s, Node) and s.name in names for s in node.inputs.values())


def attempt(
    store: Store,
    node: Node,
    progress: Progress,
    models: ModelCache,
    failed: set[str],
    copy: Copy = Copy.READ,
) -> bool:
    """Whether something was done: the piece was made or failed here; then its failure is noted, and
    its name is in ``failed``. ``copy``: what is wanted of it, if it is a transformed copy.
    """
    try:
        return make(store, node, progress, models, wait=False, copy=copy) is not None
    except Interrupted:
        raise
    except UserError as error:
        note_failure(store, node, str(error))
    # a bug in one piece must not lose the others; the traceback is kept and shown at the end
    except Exception as error:
        note_failure(store, node, f"{type(error).__name__}: {error}", traceback.format_exc())
    failed.add(node.name)
    return True


def repair(store: Store, nodes: Sequence[Node], stages: Sequence[str]) -> None:
    """Set damaged artefacts of some stages aside, so that they count as missing."""
    for node in nodes:
        if node.stage in stages and store.path(node.name).exists() and not store.sound(node.name):
            with disk_errors(store.root):
                store.set_aside(node.name)


def threads_of_each(count: int) -> int:
    """How many threads each of some workers may use: its share of the cores, or fewer where the
    user has set a limit.

    More busy threads than cores wait for each other: two processes with two threads each on two
    cores are five times slower.
    """
    return within_limit(max(1, len(os.sched_getaffinity(0)) // count))


def within_limit(threads: int) -> int:
    """So many threads, or fewer where the user has set a limit."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(threads, max(1, int(limit))) if limit.isdigit() else threads


def for_a_worker(threads: int) -> dict[str, str]:
    """The variables that a worker needs beside its own environment."""
    return {
        COMMAND: _command(),
        **for_workers(),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        VERIFY: "",
    }


def start_workers(store: Store, sweep: SweepSpec, count: int) -> list[subprocess.Popen[bytes]]:
    """Worker processes for a sweep, each with its share of the cores, ending by themselves when
    nothing is left to do.
    """
    environment = os.environ | for_a_worker(threads_of_each(count))
    command = [sys.executable, "-P", "-m", "remnant.flow.run", str(store.root)]
    log = log_of(store).open("ab")
    return [
        subprocess.Popen(command, env=environment, stdin=_order(sweep), stdout=log, stderr=log)
        for _ in range(count)
    ]


def log_of(store: Store) -> Path:
    """Where the worker processes of this one say what nobody expected."""
    return store.root / "partial" / f"workers-{os.getpid()}.log"


def _order(sweep: SweepSpec) -> BinaryIO:
    """The sweep for one worker to read, in a file without a name: settings may hold secrets, which
    must not outlive a kill.
    """
    order = tempfile.TemporaryFile()  # noqa: SIM115 (the worker reads it; it is gone when both have closed it)
    order.write(sweep.model_dump_json().encode())
    order.seek(0)
    return cast(BinaryIO, order)


def stop_workers(workers: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Ask all workers to save and stop; after a grace time make them."""
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(signal.SIGINT)
    deadline = time.monotonic() + 20
    for worker in workers:
        try:
            worker.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()


def clean_up(store: Store) -> None:
    """Remove this process's log of workers."""
    for path in (store.root / "partial").glob(f"*-{os.getpid()}.*"):
        path.unlink(missing_ok=True)
    for path in (store.root / "partial").iterdir():
        if path.is_dir() and store.has(path.name.rstrip("~")):
            shutil.rmtree(path, ignore_errors=True)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def speaking(
    store: Store, alive: Callable[[], bool] = lambda: True
) -> Iterator[Callable[[Node], Progress]]:
    """Progress of pieces, said in the store for whoever watches it.

    What was said last is repeated, so that a piece that reports nothing for a while does not look
    forsaken. ``alive``: whether anybody still wants the work; if not, it is interrupted.
    """
    said: list[tuple[Path, int, int, str]] = []
    ended = threading.Event()

    def say_again() -> None:
        while not ended.wait(AGAIN_SECONDS):
            for state in list(said):
                write_progress(*state)

    def progress_of(node: Node) -> Progress:
        last = 0.0

        def progress(done: int, total: int, note: str) -> None:
            nonlocal last
            if not alive():
                raise KeyboardInterrupt
            said[:] = [(store.scratch(node.name), done, total, note)]
            if time.monotonic() - last > WRITE_SECONDS or done == total:
                write_progress(*said[0])
                last = time.monotonic()

        return progress

    threading.Thread(target=say_again, daemon=True).start()
    try:
        yield progress_of
    finally:
        ended.set()


def _worker(root: str) -> None:
    """The body of a worker process."""
    import_leanly()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    parent = os.getppid()
    store = Store(Path(root)).open()
    sweep = SweepSpec.model_validate_json(sys.stdin.buffer.read())
    try:
        with speaking(store, lambda: os.getppid() == parent) as progress_of:
            work(store, plan(sweep), progress_of)
    except (KeyboardInterrupt, Interrupted):
        sys.exit(130)
    except Exception:
        sys.stderr.write(scrubbed(traceback.format_exc()))
        sys.exit(1)


if __name__ == "__main__":
    _worker(sys.argv[1])
