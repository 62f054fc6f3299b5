"""A sweep on a cluster of Ray: every piece is a task on whatever machine has room for it.

No torch, and no Ray until it is asked for. The store is a folder that all machines share, and what
becomes of a piece is told by it, as ever: Ray hands pieces out, and hands them out again when a
machine is lost (design/018-cluster.md).
"""

import importlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from remnant.context import ModelCache
from remnant.durable import tell
from remnant.errors import UserError, first_line
from remnant.flow.copies import by_form, let_go, readers_of
from remnant.flow.failures import failed_of, note_failure
from remnant.flow.hands import Hands
from remnant.flow.node import Node
from remnant.flow.place import HUB_SECONDS
from remnant.flow.run import (
    POLL_SECONDS,
    attempt,
    for_a_worker,
    packages,
    rest_of,
    speaking,
    within_limit,
)
from remnant.flow.store import PROGRESS, Store
from remnant.records import SweepSpec
from remnant.secrecy import VARIABLES

INSTALL = "Install it on every machine with: pip install -e '.[cluster]'"
GOES_ON = "The same command goes on."
# A piece is handed out again so often when its machine is lost; on machines that are taken away at
# any time (spot instances) a long piece may need a few, and what always kills its machine must end.
LOST_MACHINES = 5
# Until a machine sees what another has written: NFS believes for up to a minute that a name that it
# did not find is not there (acdirmax).
SEEN_SECONDS = 90.0
# Who makes a piece speaks every ten seconds; a lock whose holder has said nothing for so long is
# that of a machine that died.
SILENT_SECONDS = 120.0
# What a piece may take to save its state when all is stopped.
SAVE_SECONDS = 20.0
# Stages that compute with a model, and so on a GPU where there are any.
ON_GPU = frozenset({"train", "unlearn", "transform", "elicit", "measure", "attack", "deploy"})


class Order(NamedTuple):
    """What a task is told besides its piece.

    ``token``: a file of the store that is locked while the sweep runs. ``folder``: where relative
    paths begin. ``packages``: the versions that the sweep is made with.
    """

    root: str
    token: str
    folder: str
    environment: Mapping[str, str]
    packages: Mapping[str, str]


class Needs(NamedTuple):
    """What one piece has to itself: cores, and GPUs if its stage uses one."""

    cores: int
    gpus: int

    def of(self, node: Node) -> dict[str, int]:
        """The same in Ray's words."""
        return {"num_cpus": self.cores, "num_gpus": self.gpus if node.stage in ON_GPU else 0}


def cluster_hands(
    store: Store, sweep: SweepSpec, nodes: Sequence[Node], address: str, most: int
) -> Hands:
    """Make the pieces of a sweep on a cluster.

    Args:
        store: a folder that all machines see under the same path.
        sweep: what the pieces belong to.
        nodes: the pieces, each behind what it is made from.
        address: "auto" for the cluster that this machine is in, or HOST:PORT of its head.
        most: how many pieces are made side by side; 0 for as many as there is room for.

    Raises:
        UserError: there is no Ray or no such cluster; a machine of it does not see the store, does
            not heed its locks, or has other versions.
    """
    ray = _ray(address)
    with ExitStack() as undo:
        undo.callback(ray.shutdown)
        machines = [n["Resources"] for n in ray.nodes() if n["Alive"]]
        needs = needs_on(machines, alone=bool(sweep.target))
        token = f"cluster-{uuid.uuid4().hex}"
        undo.callback(store.break_lock, token)
        undo.enter_context(store.lock(token, wait=False))
        own = {n: v for n, v in os.environ.items() if n in VARIABLES or n.startswith("REMNANT_")}
        order = Order(
            str(store.root.resolve()),
            token,
            os.getcwd(),
            own | for_a_worker(within_limit(needs.cores)),
            packages(),
        )
        _check_all(ray, order)
        places = room(machines, needs)
        crew = _Crew(ray, store, nodes, _Task(ray, order, needs), most or len(nodes))
        undo.callback(crew.stop)
        ending = undo.pop_all()
    return Hands(min(most, places) if most else places, crew.busy, ending.close, lambda: "")


def needs_on(machines: Sequence[Mapping[str, float]], *, alone: bool) -> Needs:
    """What a piece gets of some machines.

    Models of the lab use one core, or one GPU; ``alone``: models from outside may be large, and get
    a whole machine, or the share of it that belongs to a GPU.

    Raises:
        UserError: no machine has a core to give.
    """
    able = [m for m in machines if m.get("CPU", 0) >= 1]
    if not able:
        raise UserError("The cluster has no machine with a free core.", "Add one with: ray start")
    gpus = int(any(m.get("GPU", 0) >= 1 for m in able))
    shares = [int(m["CPU"] // max(1, m.get("GPU", 0))) for m in able]
    return Needs(max(1, min(shares)) if alone else 1, gpus)


def room(machines: Sequence[Mapping[str, float]], needs: Needs) -> int:
    """How many pieces there is room for side by side, at least one."""
    cores = sum(int(m.get("CPU", 0) // needs.cores) for m in machines)
    gpus = sum(int(m.get("GPU", 0)) for m in machines)
    return max(1, min(cores, gpus) if needs.gpus else cores)


def _ray(address: str) -> Any:
    """Ray, as part of a cluster.

    Raises:
        UserError: it is not installed, or there is no such cluster.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise UserError("A cluster needs Ray, which is not installed.", INSTALL) from error
    start = "Start one with ray start --head, or leave out --cluster."
    if address != "auto":
        _check_address(address, start)
    if ray.is_initialized():
        raise UserError("This process is part of a cluster already.", "Start a new one.")
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            configure_logging=False,
            logging_level=logging.ERROR,
        )
    except ConnectionError as error:
        raise UserError(f"There is no cluster of Ray at {address}.", start) from error
    except RuntimeError as error:  # other versions of Ray or Python there, mostly
        raise UserError(f"Ray at {address} is not used: {first_line(error)}", INSTALL) from error
    return ray


def _check_address(address: str, start: str) -> None:
    """Refuse what answers to nobody; Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or int(port) >= 1 << 16:
        raise UserError(f"'{address}' is no address of a cluster.", "Write auto or HOST:PORT.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=HUB_SECONDS).close()
    except OSError as error:
        raise UserError(f"There is no cluster of Ray at {address}.", start) from error


def _check_all(ray: Any, order: Order) -> None:
    """See that every machine can make pieces of this sweep; all are asked at once.

    Raises:
        UserError: one cannot.
    """
    by = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
    look = ray.remote(check_machine)
    asked = [
        look.options(num_cpus=0, scheduling_strategy=by(n["NodeID"], soft=False)).remote(order)
        for n in ray.nodes()
        if n["Alive"]
    ]
    try:
        ray.get(asked)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, UserError):
            raise UserError(cause.message, cause.remedy) from None
        said = first_line(cause)
        raise UserError(f"A machine of the cluster can make nothing: {said}", INSTALL) from error


def check_machine(order: Order) -> None:
    """See, on a machine of the cluster, that it can make pieces of a sweep.

    Raises:
        UserError: it does not see the store, can take a lock that is held elsewhere, or has other
            versions of what decides the last bits.
    """
    machine, store = socket.gethostname(), Store(Path(order.root))
    if not (store.root / "locks" / order.token).is_file():
        raise UserError(
            f"{machine} does not see the store {order.root}.",
            "Choose a folder that all machines share under the same path, with --store.",
        )
    with store.lock(order.token, wait=False) as held:
        if held:
            raise UserError(
                f"{machine} does not heed locks that another machine holds in {order.root}.",
                "Mount it with locks that reach all machines (NFS 4 without local_lock, Lustre "
                "with flock), or choose another folder with --store.",
            )
    own = packages()
    for name in sorted({*own, *order.packages} - {"python"}):
        here, there = own.get(name, "none"), order.packages.get(name, "none")
        if here != there:
            raise UserError(
                f"{machine} has {name} {here}, and the sweep was started with {there}.",
                "Install the same versions on all machines: pip install -c constraints.txt",
            )


def make_piece(order: Order, node: Node) -> None:
    """Make a piece on a machine of the cluster; that it failed is noted in the store.

    Raises:
        UserError: this machine can make none, or does not see what the piece is made from.
        Interrupted: all is stopped, and its state is saved.
    """
    os.environ.update(order.environment)
    check_machine(order)
    if Path(order.folder).is_dir():
        os.chdir(order.folder)
    store, failed = Store(Path(order.root)).open(), set[str]()
    sources = [s.name for s in node.inputs.values() if isinstance(s, Node)]
    if not comes(lambda: all(map(store.has, sources)), store):
        machine = socket.gethostname()
        raise UserError(f"{machine} does not see all that {node.name} is made from.", GOES_ON)
    silence = Silence(store.scratch(node.name) / PROGRESS)
    with speaking(store) as progress_of:
        while not store.sound(node.name):
            if attempt(store, node, progress_of(node), ModelCache(), failed):
                return
            if silence.seconds() > SILENT_SECONDS:
                tell(f"whoever made {node.name} is gone; its lock is broken.")
                store.break_lock(node.name)
            time.sleep(POLL_SECONDS)


class Silence:
    """How long nothing new has been said of a piece by whoever makes it.

    By the clock of this machine alone, since others may be wrong. Where nothing was said at all
    (a piece that is made by a command of its own) there is no silence.

    Args:
        path: where it would be said.
        clock: seconds, as time.monotonic.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._last, self._since = b"", clock()

    def seconds(self) -> float:
        """Since the first look that found what stands there now."""
        try:
            said = self._path.read_bytes()
        except OSError:
            said = b""
        if said != self._last or not said:
            self._last, self._since = said, self._clock()
        return self._clock() - self._since


def comes(there: Callable[[], bool], store: Store, most: float = SEEN_SECONDS) -> bool:
    """Whether something that another machine has written is seen, waiting for it a while.

    A shared folder is listed each time, which makes its client ask the server anew.
    """
    deadline = time.monotonic() + most
    while True:
        for name in ("objects", "partial"):
            os.listdir(store.root / name)
        if there():
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)


class _Task:
    """A piece as a task of Ray."""

    def __init__(self, ray: Any, order: Order, needs: Needs) -> None:
        self._make, self._order, self._needs = ray.remote(make_piece), order, needs

    def __call__(self, node: Node) -> Any:
        options = self._needs.of(node) | {"name": node.name, "max_retries": LOST_MACHINES}
        return self._make.options(**options).remote(self._order, node)


class _Crew:
    """The pieces of a sweep that are handed out, at most so many at a time."""

    def __init__(
        self, ray: Any, store: Store, nodes: Sequence[Node], task: _Task, most: int
    ) -> None:
        self._ray, self._store, self._task, self._most = ray, store, task, most
        self._open, self._readers = by_form(nodes), readers_of(nodes)
        self._failed = failed_of(store, nodes)
        self._out: dict[Any, Node] = {}

    def busy(self) -> bool:
        """Take in what has ended, hand out what has become ready; whether anything is out."""
        out = list(self._out)
        ended = self._ray.wait(out, num_returns=len(out), timeout=0)[0] if out else []
        for task in ended:
            self._end(task, self._out.pop(task))
            let_go(self._store, self._readers)
        self._open, ready, lost = rest_of(self._store, self._open, self._failed)
        self._failed |= lost
        names = {n.name for n in self._out.values()}
        new = [n for n in ready if n.name not in names]
        for node in new[: self._most - len(names)]:
            self._out[self._task(node)] = node
        return bool(self._out)

    def _end(self, task: Any, node: Node) -> None:
        """See what became of a piece."""
        try:
            self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            note_failure(self._store, node, _in_words(error.cause or error))
        except self._ray.exceptions.RayError as error:
            times = LOST_MACHINES + 1
            note_failure(
                self._store,
                node,
                f"its process or machine was lost {times} times, last as: {first_line(error)}",
            )
        if not comes(lambda: self._known(node), self._store):
            note_failure(self._store, node, f"it was made, but is not seen here. {GOES_ON}")
        self._failed |= failed_of(self._store, [node])

    def _known(self, node: Node) -> bool:
        return self._store.has(node.name) or bool(failed_of(self._store, [node]))

    def stop(self) -> None:
        """Let all tasks save their state, then end them."""
        tasks = list(self._out)
        for task in tasks:
            self._ray.cancel(task)
        if tasks:
            _, late = self._ray.wait(tasks, num_returns=len(tasks), timeout=SAVE_SECONDS)
            for task in late:
                self._ray.cancel(task, force=True)
        self._out.clear()


def _in_words(error: BaseException) -> str:
    """What a failed piece says; what is wrong in the input says it in full."""
    return str(error) if isinstance(error, UserError) else first_line(error)
