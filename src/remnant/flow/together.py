"""One command on several ranks: torchrun's, a launcher's like it, or SLURM's; or started here.

The first rank does what the command does in one process. The others follow: they run the stages
that it runs, on the same inputs, and write nothing that is kept. No torch until there are ranks.
"""

import importlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from remnant.context import Context, ModelCache
from remnant.errors import Interrupted, UserError
from remnant.flow.run import COMMAND, Order, here, threads_of_each
from remnant.quiet import hush
from remnant.secrecy import scrubbed_command

# Set for the ranks that are started here, whose end this process tells.
STARTED = "REMNANT_STARTED"
# As in ranks.py, which needs torch.
REPLICAS = "REMNANT_REPLICAS"
LOST = (
    "Another process of this run has ended.",
    "The same command goes on from the last checkpoint.",
)
# Ports of jobs of SLURM on one machine must differ: the lowest, and how many there are.
PORTS = (20000, 20000)


class World(NamedTuple):
    """Which rank a process is, of how many, and which on its machine."""

    rank: int
    ranks: int
    local: int


def world(environment: Mapping[str, str]) -> World | None:
    """What a launcher says: torchrun and accelerate by their variables, srun by its own.

    >>> world({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"})
    World(rank=1, ranks=2, local=1)
    >>> world({"SLURM_PROCID": "0"})  # of a batch script, not of a step of several tasks
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(name in environment for name in names):
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    values = [environment.get(name, "") for name in names]
    if not all(v.isdecimal() for v in values) or int(values[1]) < 2:
        return None
    return World(*map(int, values))


def slurm_address(environment: Mapping[str, str]) -> dict[str, str]:
    """Where the ranks of a step of SLURM meet: at its first machine, at a port of the job's.

    >>> given = {"SLURM_JOB_ID": "41", "SLURM_STEP_NODELIST": "gpu[07-09,12],login1"}
    >>> slurm_address(given)
    {'MASTER_ADDR': 'gpu07', 'MASTER_PORT': '20041'}
    """
    nodes = environment.get("SLURM_STEP_NODELIST", "127.0.0.1")
    head = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", nodes).split(",")[0]
    lowest, number = PORTS
    port = lowest + int(environment.get("SLURM_JOB_ID", "0")) % number
    return {"MASTER_ADDR": head, "MASTER_PORT": str(port)}


class Spread(NamedTuple):
    """Over how many devices a model is spread, in how many copies."""

    devices: int = 1
    copies: int = 1

    @property
    def sharing(self) -> int:
        """Among how many devices one copy is divided."""
        return self.devices // self.copies


ALONE = Spread()


def across(devices: int, lead: Callable[[], None], replicate: int = 1) -> int | None:
    """Do what a command does on all ranks that there are, or start them.

    Args:
        devices: how many are to be started, where no launcher has done so.
        lead: what the command does in one process.
        replicate: how many copies of the model they hold, each in shards.

    Returns:
        The exit code of ranks that were started here.

    Raises:
        UserError: the copies do not divide the devices, and whatever ``lead`` raises.
    """
    found = world(os.environ)
    if fault := fault_of_copies(replicate, found.ranks if found else devices):
        if found and found.rank:
            return 2
        raise fault
    os.environ[REPLICAS] = str(replicate)
    if found is None and devices > 1:
        return _start(devices)
    if found is None:
        lead()
        return None
    return _as_one_of(_joined(found), lead)


def _as_one_of(ranks: Any, lead: Callable[[], None]) -> int | None:
    """Lead or follow, as one of the ranks that have met; the exit code where it is not 0."""
    try:
        if ranks.first():
            lead()
            ranks.told(None)
        else:
            _follow(ranks)
    except RuntimeError as error:
        if not re.search("gloo|nccl|process group|broken pipe", str(error), re.IGNORECASE):
            raise
        if os.environ.get(STARTED) or not ranks.first():
            return 1
        raise UserError(*LOST) from error
    except UserError:
        if ranks.first():
            raise
        return 2
    return None


def on_devices(options: dict[str, Any], lead: Callable[..., None]) -> int | None:
    """Do what a command does on as many devices, and in as many copies, as its options say.

    An estimate is told by one process, which is given them as ``estimate``.
    """
    asked = Spread(options.pop("devices", 1), options.pop("replicate", 1))
    if not options.get("estimate"):
        return across(asked.devices, lambda: lead(**options), asked.copies)
    if fault := fault_of_copies(asked.copies, asked.devices):
        raise fault
    lead(**options | {"estimate": asked})
    return None


def fault_of_copies(copies: int, ranks: int) -> UserError | None:
    """What is wrong with so many copies of a model on so many ranks.

    >>> fault_of_copies(2, 8)
    >>> fault_of_copies(3, 8).message
    '3 copies of the model do not divide 8 devices.'
    """
    if ranks % copies == 0:
        return None
    devices = "1 device" if ranks == 1 else f"{ranks} devices"
    return UserError(
        f"{copies} copies of the model do not divide {devices}.",
        "Give --replicate a number that divides the devices (--devices, or the launcher's).",
    )


def _joined(found: World) -> Any:
    """The module of ranks, when all have met."""
    for name, value in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), found, strict=True):
        os.environ.setdefault(name, str(value))
    if "MASTER_ADDR" not in os.environ:
        os.environ.update(slurm_address(os.environ))
    ranks = importlib.import_module("remnant.ranks")
    hush()
    ranks.join(here().device)
    return ranks


def _follow(ranks: Any) -> None:
    """Run what the first rank runs, silently, until it asks for nothing more."""
    hush()
    with open(os.devnull, "w") as nowhere:
        spoken, sys.stderr = sys.stderr, nowhere
        try:
            while (order := ranks.told(None)) is not None:
                _run(ranks, order)
        finally:
            sys.stderr = spoken


def _run(ranks: Any, order: Order) -> None:
    """One stage, of which nothing is kept here."""
    stage = importlib.import_module(f"remnant.stages.{order.stage}")
    work = Context(lambda done, total, note: None, ModelCache(), here(), order.known)
    with tempfile.TemporaryDirectory() as folder:
        try:
            stage.run(order.spec, order.inputs, Path(folder), work)
        except ranks.Given:
            return


def check_devices(devices: int) -> None:
    """See that every rank will have a device of its own: an accelerator where there is one, else a
    core.

    Raises:
        UserError: there are fewer.
    """
    cores = len(os.sched_getaffinity(0))
    cards: int = importlib.import_module("torch").cuda.device_count()
    there, kind = (cards, "accelerators") if cards else (cores, "cores")
    if devices > there:
        raise UserError(
            f"--devices {devices} is more than the {there} {kind} of this machine.",
            f"Give at most {there}, or start it on several machines by torchrun or srun.",
        )


def _start(devices: int) -> int:
    """This command on so many ranks of this machine, watched by torchrun.

    Raises:
        UserError: there are fewer devices, or one of the ranks was ended from outside.
        Interrupted: this process was.
    """
    check_devices(devices)
    launcher = importlib.import_module("torch.distributed.run")
    elastic = importlib.import_module("torch.distributed.elastic.multiprocessing")
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ |= {
        STARTED: "1",
        COMMAND: scrubbed_command(["remnant", *sys.argv[1:]]),
        "OMP_NUM_THREADS": str(threads_of_each(devices)),
    }
    process = ["--standalone", f"--nproc-per-node={devices}", "-m", "remnant", *sys.argv[1:]]
    try:
        launcher.run(launcher.parse_args(process))
    except elastic.SignalException as error:
        raise Interrupted("Interrupted.", LOST[1]) from error
    except elastic.errors.ChildFailedError as error:
        codes: list[int] = [failure.exitcode for failure in error.failures.values()]
        told = next((code for code in codes if code in (2, 130)), None)
        if told is None:
            raise UserError(
                f"One of the {devices} processes of this run has ended.", LOST[1]
            ) from None
        return told
    return 0
