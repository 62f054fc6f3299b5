"""What the files behind a name hold, as lists of entries, by the suffix of their names.

To add a kind of file, write its reader and name its suffixes in ``_READERS`` (and in files.py).
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from remnant.corpus.documents import EXTRACTORS, document
from remnant.corpus.files import JSON_SUFFIXES, Found, inner_suffix, text_files
from remnant.corpus.hub import PREFIX, hub_rows, reference, saved_in, saved_rows
from remnant.corpus.outside import as_utf8, is_json, json_records
from remnant.corpus.packed import read_bytes
from remnant.corpus.tables import cells, parquet, separated
from remnant.errors import UserError


def look(name: str, role: str) -> Found:
    """What is to be read behind a name that a user gives for a role: files, the folder of a saved
    data set, or a data set of the hub. Nothing is read yet.

    Raises:
        UserError: as ``text_files``, ``saved_in`` and ``reference``.
    """
    if name.startswith(PREFIX):
        reference(name)
        return Found([Path(name)], {}, 0)
    saved = saved_in(Path(name)) if os.path.isdir(name) else None
    return Found([saved], {}, 0) if saved else text_files(name, role)


def entries(path: Path) -> list[object]:
    """The entries of a file or a data set that ``look`` found; a file of text is one.

    Raises:
        UserError: it cannot be read, is damaged, or holds something else than its name says.
    """
    if str(path).startswith(PREFIX):
        return list(hub_rows(str(path)))
    if path.is_dir():
        return list(saved_rows(path))
    return _READERS.get(inner_suffix(path), _text)(path, read_bytes(path))


def _text(path: Path, raw: bytes) -> list[object]:
    """A file that is one text.

    Refused where its content is JSON or a page of the web in spite of its name.
    """
    text = as_utf8(path, raw)
    start = text.lstrip()[:16].lower()
    if start.startswith(("<!doctype html", "<html")):
        raise UserError(
            f"{path} is a web page (HTML), whatever its name says.",
            "Rename it to end in .html, or convert it with pandoc -t plain.",
        )
    if start.startswith(("[", "{")) and (is_json(text) or is_json(text.lstrip().split("\n")[0])):
        raise UserError(
            f"{path} holds JSON, but its name says plain text.",
            "Rename it to end in .json or .jsonl.",
        )
    return [text.strip()]


def _json(path: Path, raw: bytes) -> list[object]:
    return list(json_records(path, as_utf8(path, raw)))


def _csv(path: Path, raw: bytes) -> list[object]:
    return list(separated(path.as_posix(), as_utf8(path, raw)))


def _tsv(path: Path, raw: bytes) -> list[object]:
    return list(separated(path.as_posix(), as_utf8(path, raw), "\t"))


def _parquet(path: Path, raw: bytes) -> list[object]:
    return list(cells(parquet(path.as_posix(), raw)))


def _document(path: Path, raw: bytes) -> list[object]:
    return [document(path.as_posix(), raw, inner_suffix(path)).strip()]


_READERS: Mapping[str, Callable[[Path, bytes], list[object]]] = {
    **dict.fromkeys(JSON_SUFFIXES, _json),
    **dict.fromkeys(EXTRACTORS, _document),
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
