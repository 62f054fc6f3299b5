"""Files that are whole or not there, and that tell when they were changed. No torch.

A power cut may lose what was written but not yet synchronised, and may keep a rename without the
content that was renamed; so content goes to the disk first, then the name. A *sealed* file carries
the sha256 of its content as its last 64 bytes, so that any damage is noticed.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import JsonValue

SEAL = 64
PIECE = 1 << 20
SCRATCH = ".tmp"


def tell(message: str) -> None:
    """One line to whoever watches, beside the results."""
    print(f"remnant: {message}", file=sys.stderr, flush=True)


def digest_of(data: Any) -> str:
    """sha256 of the canonical JSON form of some data, in hex."""
    return hashlib.sha256(
        json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    ).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of a file's content, in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, to the disk."""
    place = os.open(path, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def sync_tree(folder: Path) -> None:
    """Bring all files and folders below a folder to the disk, and itself last."""
    for path in sorted(folder.rglob("*"), key=lambda p: len(p.parts), reverse=True):
        if path.is_file() or path.is_dir():
            sync(path)
    sync(folder)


def rename(source: Path, target: Path) -> None:
    """Give something that is on the disk its final name, for good."""
    os.replace(source, target)
    sync(target.parent)


def write(path: Path, fill: Callable[[BinaryIO], None]) -> None:
    """Let ``fill`` write a file that appears under its name only when it is whole and on the disk.

    Raises:
        OSError: as the disk says; nothing is left behind, and what stood there before still stands.
    """
    scratch = path.with_name(f"{path.name}.{os.getpid()}{SCRATCH}")
    try:
        with scratch.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        rename(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """``write`` for a text in UTF-8."""
    write(path, lambda file: _put(file, text.encode()))


def _put(file: BinaryIO, data: bytes) -> None:
    file.write(data)


class _Counted:
    """A file that computes the digest of what goes through it, and remembers why the disk refused
    it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.fault: OSError | None = None

    def write(self, data: Any) -> int:
        """As a file's."""
        try:
            self.hash.update(data)
            return self._file.write(data)
        except OSError as error:
            self.fault = error
            raise

    def flush(self) -> None:
        """As a file's."""
        self._file.flush()


def write_sealed(path: Path, fill: Callable[[Any], None]) -> None:
    """``write`` with the digest behind the content; ``fill`` may only append.

    Raises:
        OSError: as ``write``, also where ``fill`` made another error of the disk's.
    """

    def sealed(file: BinaryIO) -> None:
        counted = _Counted(file)
        try:
            fill(counted)
        except Exception as error:
            if counted.fault is not None:
                raise counted.fault from error
            raise
        file.write(counted.hash.hexdigest().encode())

    write(path, sealed)


def is_whole(path: Path) -> bool:
    """Whether a sealed file is there and as it was written."""
    try:
        left = path.stat().st_size - SEAL
        found = hashlib.sha256()
        with path.open("rb") as file:
            while left > 0 and (piece := file.read(min(PIECE, left))):
                found.update(piece)
                left -= len(piece)
            return left == 0 and file.read() == found.hexdigest().encode()
    except OSError:
        return False


def write_json(path: Path, data: Any) -> None:
    """Plain data as a sealed file."""
    write_sealed(path, lambda file: file.write(json.dumps(data).encode()))


def kept(path: Path) -> bool:
    """Whether a sealed file is there to be read; one that was damaged is removed, which is said."""
    if not path.exists():
        return False
    if not is_whole(path):
        tell(f"{path} is damaged and was thrown away; what it held is done again.")
        path.unlink()
        return False
    return True


def read_json(path: Path) -> JsonValue:
    """The data of ``write_json``; None where there is none or it was damaged."""
    return json.loads(path.read_bytes()[:-SEAL]) if kept(path) else None
