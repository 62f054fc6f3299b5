"""Digests of files and folders, read no more often than needed. No torch.

Within a process a file is read again only if it changes. A large one from outside is read once for
all: its digest is kept in the user's cache folder, and believed while size, times and inode of the
file are the same; ``--verify-models`` reads it again.
"""

import functools
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import JsonValue

from remnant.durable import digest_file, digest_of, read_json, tell, write_json

Signature = tuple[int, int, int, int]
# Smaller files are read in a millisecond.
LARGE = 1 << 20
# A file that was changed so many seconds ago might be changed again within one tick of a clock,
# which in FAT takes two seconds, and look the same; its digest is not kept.
SETTLED = 3.0
# How the commands of a process are told; workers rely on what the process before them has read.
VERIFY = "REMNANT_VERIFY_MODELS"


def signature(path: Path) -> Signature:
    """What changes whenever a file does: size, times of content and inode, inode."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def digest_once(path: Path) -> str:
    """``digest_file``, read once per process unless the file changes."""
    return _digest_of(path, signature(path))


@functools.lru_cache(maxsize=1 << 16)
def _digest_of(path: Path, now: Signature) -> str:
    """The digest of a file as it is now."""
    return digest_file(path)


def digest_path(path: Path) -> str:
    """sha256 over the names and contents of a file or of all files below a folder from outside."""
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return digest_of_files({p.relative_to(path).as_posix(): digest_outside(p) for p in files})


def digest_of_files(files: Mapping[str, str]) -> str:
    """The digest of a folder whose files' digests are known, by their names below it."""
    names = sorted(files, key=lambda name: Path(name).parts)
    return digest_of([[name, files[name]] for name in names])


@contextmanager
def verifying_models(yes: bool = True) -> Iterator[None]:
    """Read files from outside again, within the block, whatever is known of them."""
    before = os.environ.get(VERIFY, "")
    os.environ[VERIFY] = "yes" if yes else ""
    try:
        yield
    finally:
        os.environ[VERIFY] = before


def digest_outside(path: Path) -> str:
    """sha256 of one file from outside, as ``digest_path`` reads it."""
    now, again = signature(path), bool(os.environ.get(VERIFY))
    return digest_once(path) if now[0] < LARGE else _kept(path.resolve(), now, again)


@functools.lru_cache(maxsize=1 << 16)
def _kept(path: Path, now: Signature, again: bool) -> str:
    """The digest of a large file as it is now: what is kept, or what is then kept.

    ``again``: whatever is kept.
    """
    place = _cache() / f"{digest_of(str(path))}.json"
    about: dict[str, JsonValue] = {"path": str(path), "signature": list(now)}
    known = _read(place)
    as_now = {k: v for k, v in known.items() if k != "sha256"} == about
    if as_now and not again:
        return str(known["sha256"])
    found = digest_file(path) if again else _digest_of(path, now)
    if as_now and found != known["sha256"]:
        tell(f"{path} is not what it was, though its size and times are; it was read again.")
    if time.time() - max(now[1:3]) / 1e9 > SETTLED and signature(path) == now:
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, {**about, "sha256": found})
    return found


def _cache() -> Path:
    """The folder of the digests that are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    own = os.environ.get("REMNANT_CACHE") or os.path.join(home, "remnant")
    return Path(own).expanduser() / "digests"


def _read(place: Path) -> dict[str, JsonValue]:
    with suppress(OSError):
        found = read_json(place)
        return found if isinstance(found, dict) and "sha256" in found else {}
    return {}
