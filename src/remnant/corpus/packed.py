"""The bytes of a file, unpacked where its name says that it is packed."""

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from remnant.corpus.files import MOST_BYTES, beginning_of, check_readable
from remnant.errors import UserError, first_line


def read_bytes(path: Path) -> bytes:
    """What a file holds; ``.gz`` and ``.zst`` are unpacked, to no more than a file may have.

    Raises:
        UserError: as ``check_readable``; cut or damaged; or too large when unpacked.
    """
    check_readable(path)
    unpack = _UNPACKERS.get(path.suffix.lower())
    try:
        if unpack is None:
            return path.read_bytes()
        with path.open("rb") as file:
            found = unpack(file, MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        if unpack is None:
            raise UserError(f"{path} cannot be read: {first_line(error)}.") from error
        raise UserError(
            f"{path} cannot be unpacked: {first_line(error).rstrip('.')}.",
            "It is cut or damaged: pack or download it again.",
        ) from error
    if len(found) > MOST_BYTES:
        raise UserError(
            f"{path} has more than {MOST_BYTES >> 30} GB when unpacked.",
            "Split it, or give a part of it.",
        )
    beginning_of(path.with_suffix(""), found)
    return found


def _gunzip(file: BinaryIO, most: int) -> bytes:
    with gzip.GzipFile(fileobj=file) as unpacked:
        return unpacked.read(most)


def _unzstd(file: BinaryIO, most: int) -> bytes:
    import pyarrow  # heavy, and only for this kind of file

    with pyarrow.CompressedInputStream(file, "zstd") as unpacked:
        return bytes(unpacked.read(most))


_UNPACKERS: dict[str, Callable[[BinaryIO, int], bytes]] = {".gz": _gunzip, ".zst": _unzstd}
