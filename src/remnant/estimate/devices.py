"""The devices of this machine and the memory that is free on them. No torch."""

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import psutil

# Where Linux says how much a container may use, and how much it does.
_LIMIT, _USED = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
_ASKED = ("--query-gpu=name,memory.free", "--format=csv,noheader,nounits")


class Device(NamedTuple):
    """A device and its free bytes."""

    name: str
    free: int


def devices() -> list[Device]:
    """The GPUs that the driver knows; without any, the processor."""
    return _gpus() or [Device("CPU", _free())]


def _gpus() -> list[Device]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    ran = subprocess.run([program, *_ASKED], stdout=subprocess.PIPE, text=True)
    return gpus_in(ran.stdout) if not ran.returncode else []


def gpus_in(said: str) -> list[Device]:
    """The devices that nvidia-smi names, one a line with its free mebibytes.

    >>> gpus_in("NVIDIA H100, 80000")[0].free
    83886080000
    """
    rows = [line.rpartition(",") for line in said.splitlines() if line.strip()]
    return [Device(name.strip(), int(free) * 2**20) for name, _, free in rows]


def _free() -> int:
    """Of the machine, or of the container where that is less."""
    free = int(psutil.virtual_memory().available)
    limit = _LIMIT.read_text().strip() if _LIMIT.is_file() else "max"
    return free if limit == "max" else min(free, int(limit) - int(_USED.read_text()))
