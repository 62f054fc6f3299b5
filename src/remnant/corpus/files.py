"""Which files a user's text is read from, and why others are not.

Nothing is opened that is not a plain file of a known kind.
"""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from remnant.corpus.documents import EXTRACTORS, INSTALL, lacking
from remnant.errors import UserError
from remnant.parsing import lines_of

TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown")
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
PACKED_SUFFIXES = (".gz", ".zst")
_READ = (*TEXT_SUFFIXES, *JSON_SUFFIXES, *TABLE_SUFFIXES, *EXTRACTORS)
EXPECTED = "Expected files ending in .txt, .md, .json, .jsonl, .csv, .tsv or .parquet."
# A file is held in memory several times while it is cut and counted; a folder is read whole for its
# digest.
MOST_BYTES = 1 << 30
MOST_FOLDER_BYTES = 64 << 30
MOST_FILES = 100_000
_HEAD_BYTES = 512

_TABLE = (
    "Convert it to JSON lines with the columns text, or question and answer: "
    "python -c \"import pandas as p; p.read_{}.to_json('{}.jsonl', orient='records', lines=True)\""
)
_READERS = {
    ".arrow": "feather({!r})",
    ".feather": "feather({!r})", ".orc": "orc({!r})", ".xlsx": "excel({!r})", ".xls": "excel({!r})",
    ".ods": "excel({!r})",
}  # fmt: skip
_UNPACK, _PLAIN = "Unpack it first, with {}.", "Convert it to plain text first, with {}."
# Kinds of files by their suffix: what they are, and how their text is made readable.
_KINDS: dict[str, tuple[str, str]] = {
    **{s: (f"a table ({s[1:].upper()})", _TABLE) for s in _READERS},
    **{s: ("a packed file", _UNPACK.format(how)) for s, how in {
        ".tgz": "tar -xf", ".tar": "tar -xf", ".bz2": "bunzip2",
        ".xz": "unxz", ".zip": "unzip",
        ".7z": "7z x", ".rar": "unrar x", ".lz4": "lz4 -d", ".br": "brotli -d",
    }.items()},
    **{s: (f"a document ({s[1:].upper()})", _PLAIN.format(how)) for s, how in {
        ".docx": "pandoc -t plain", ".doc": "pandoc -t plain",
        ".odt": "pandoc -t plain", ".rtf": "pandoc -t plain",
        ".epub": "pandoc -t plain",
        ".xml": "pandoc -t plain", ".tex": "pandoc -t plain", ".rst": "pandoc -t plain",
        ".ipynb": "pandoc -t plain",
        ".pptx": "pandoc -t plain",
    }.items()},
}  # fmt: skip
# What files begin with whose content is something else than their name says.
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "packed by gzip", _UNPACK.format("gunzip")),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", _UNPACK.format("zstd -d")),
    (b"BZh", "packed by bzip2", _UNPACK.format("bunzip2")),
    (b"\xfd7zXZ\x00", "packed by xz", _UNPACK.format("unxz")),
    (b"7z\xbc\xaf\x27\x1c", "packed by 7z", _UNPACK.format("7z x")),
    (b"PK\x03\x04", "packed by zip (as .docx, .xlsx and .epub are)", _UNPACK.format("unzip")),
    (b"PAR1", "a Parquet table", "Convert it to JSON lines."),
    (b"ARROW1", "an Arrow table", "Convert it to JSON lines."),
    (b"%PDF-", "a PDF document", _PLAIN.format("pdftotext")),
    (b"{\\rtf", "an RTF document", _PLAIN.format("pandoc -t plain")),
    (b"SQLite format 3\x00", "a data base", "Write its text out first."),
    (b"\xff\xfe\x00\x00", "UTF-32", "Convert it, for example with iconv -f UTF-32 -t UTF-8."),
    (b"\x00\x00\xfe\xff", "UTF-32", "Convert it, for example with iconv -f UTF-32 -t UTF-8."),
    (b"\xff\xfe", "UTF-16", "Convert it, for example with iconv -f UTF-16 -t UTF-8."),
    (b"\xfe\xff", "UTF-16", "Convert it, for example with iconv -f UTF-16 -t UTF-8."),
)
# What files of these names must begin with, and what they are then not.
_PROMISED = {
    ".gz": (b"\x1f\x8b", "packed by gzip"),
    ".zst": (b"\x28\xb5\x2f\xfd", "packed by zstd"),
    ".parquet": (b"PAR1", "a Parquet table"),
    ".pdf": (b"%PDF-", "a PDF document"),
}


class Found(NamedTuple):
    """Files to be read, in order.

    The names of those in the same folder that are not, with the reason; how many are hidden.
    """

    files: list[Path]
    skipped: dict[str, str]
    hidden: int


def text_files(name: str, role: str) -> Found:
    """The files behind a path that a user gives for a role: the file itself, or the text and JSON
    files below a folder, sorted.

    A file that is named must be readable text. In a folder, other kinds of files, links out of it
    and empty files are skipped with the reason, hidden ones without; no link to a folder is
    followed.

    Raises:
        UserError: missing, no plain file, of another kind, empty, too large, not readable, or a
            folder without text.
    """
    if not name.strip():
        raise UserError(f"A name of a {role} file is empty.", f"Give --{role} a file or a folder.")
    path = Path(name)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = (
            error.strerror.lower()
            if isinstance(error, OSError) and error.strerror
            else "it cannot be a path"
        )
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        said = (
            f"The {role} file {name} does not exist."
            if missing
            else f"The {role} file {name[:200]!r} cannot be opened: {reason}."
        )
        raise UserError(said, "Check the path; it is relative to the current folder.") from error
    if stat.S_ISDIR(mode):
        return _below(path)
    if not stat.S_ISREG(mode):
        raise UserError(
            f"{path} is neither a file nor a folder, but a device, a pipe or a socket.",
            "Save its text in a file.",
        )
    if inner_suffix(path) and not is_text(path):
        what, remedy = kind_of(path)
        raise UserError(f"{path} is {what}, which is not read as text.", remedy)
    if said := lacking(inner_suffix(path)):
        raise UserError(f"{path} {said}.", INSTALL)
    if not path.stat().st_size:
        raise UserError(
            f"The {role} set is empty: {path} holds nothing.",
            f"Give --{role} a file with text in it.",
        )
    check_readable(path)
    return Found([path], {}, 0)


def is_text(path: Path) -> bool:
    """Whether a file is read, by its suffix in any case."""
    return inner_suffix(path) in _READ


def inner_suffix(path: Path) -> str:
    """The suffix of what a file holds, in small letters, that of its packing left out.

    >>> inner_suffix(Path("a.JSONL.gz")), inner_suffix(Path("a.csv")), inner_suffix(Path("a.gz"))
    ('.jsonl', '.csv', '')
    """
    packed = path.suffix.lower() in PACKED_SUFFIXES
    return (Path(path.stem).suffix if packed else path.suffix).lower()


def kind_of(path: Path) -> tuple[str, str]:
    """What a file is by its suffix, and what makes its text readable."""
    suffix = inner_suffix(path)
    what, remedy = _KINDS.get(
        suffix,
        (
            f"of an unknown kind ({suffix or 'no suffix'})",
            "If it is plain text, rename it to end in .txt.",
        ),
    )
    if suffix in _READERS:
        remedy = _TABLE.format(_READERS[suffix].format(path.name), path.stem)
    return what, remedy


def beginning_of(path: Path, head: bytes) -> None:
    """Refuse a file that begins as something else than its name says.

    Raises:
        UserError: packed, a document, a table, UTF-16, UTF-32; or not what its suffix promises.
    """
    if promised := _PROMISED.get(path.suffix.lower()):
        if not head.startswith(promised[0]):
            raise UserError(
                f"{path} is not {promised[1]}, whatever its name says.",
                "Rename it by what it holds, or make it anew.",
            )
        return
    for mark, what, remedy in _BEGINNINGS:
        if head.startswith(mark):
            raise UserError(f"{path} is {what}, whatever its name says.", remedy)


def _below(folder: Path) -> Found:
    files: list[Path] = []
    skipped: dict[str, str] = {}
    hidden = total = 0
    for seen, (path, reason) in enumerate(_walk(folder), 1):
        if seen > MOST_FILES:
            raise UserError(
                f"The folder {folder} holds more than {MOST_FILES:,} files.",
                "Give the folder of the text alone.",
            )
        total += path.stat().st_size if path.is_file() else 0
        if _is_hidden(path.name):
            hidden += 1
        elif why := reason or _reason(path, folder):
            skipped[path.relative_to(folder).as_posix()] = why
        else:
            files.append(path)
        if total > MOST_FOLDER_BYTES:
            raise UserError(
                f"The folder {folder} holds more than {MOST_FOLDER_BYTES >> 30} GB.",
                "Give the folder of the text alone.",
            )
    if not files:
        others = f" Not read: {said_of(skipped)}." if skipped else ""
        raise UserError(f"The folder {folder} holds no text.{others}", EXPECTED)
    for path in files:
        check_readable(path)
    return Found(files, dict(sorted(skipped.items())), hidden)


def said_of(skipped: Mapping[str, str], most: int = 5) -> str:
    """Names with their reasons in one line, the first few of them."""
    shown = ", ".join(f"{name} ({reason})" for name, reason in list(skipped.items())[:most])
    return shown + (f" and {len(skipped) - most} more" if len(skipped) > most else "")


def not_read(skipped: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What was not read and why, a sentence for each side."""
    return [
        f"Not read for {side}: {len(files)} files: {said_of(files)}."
        for side, files in skipped.items()
    ]


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """All files below a folder in order, and folders that are not entered with the reason."""
    unreadable: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=unreadable.append):
        folders.sort()
        for name in [*folders]:
            path = Path(place, name)
            if _is_hidden(name) or path.is_symlink():
                folders.remove(name)
                yield path, "a link to a folder"
        for name in sorted(names):
            yield Path(place, name), ""
    for error in unreadable:
        yield Path(error.filename), "a folder that cannot be read"


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _reason(path: Path, folder: Path) -> str:
    """Why a file of a folder is not read; empty if it is."""
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        return "a link that leads out of the folder"
    try:
        about = path.stat()
    except OSError:
        return "a link that leads nowhere"
    if not stat.S_ISREG(about.st_mode):
        return "no plain file"
    if not is_text(path):
        return kind_of(path)[0]
    return lacking(inner_suffix(path)).removeprefix("is ") if about.st_size else "empty"


def check_readable(path: Path) -> None:
    """Look at a file's size and first bytes.

    Raises:
        UserError: too large, cannot be opened, or begins as something else than text.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise UserError(
            f"{path} has {size / 1e9:.1f} GB; at most {MOST_BYTES >> 30} GB are read.",
            "Split it, or give a part of it.",
        )
    try:
        with path.open("rb") as file:
            beginning_of(path, file.read(_HEAD_BYTES))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}.", "Check its permissions."
        ) from error


def read_given(name: str, what: str, form: str, *, lines: bool = False) -> JsonValue:
    """What a small file holds that a user gives beside the texts.

    Args:
        name: of the file.
        what: it holds, for messages.
        form: of such a file, in a sentence.
        lines: one that does not end in .json is text, of which the lines that are not empty are
            taken.

    Raises:
        UserError: missing, not readable, not UTF-8, or no JSON.
    """
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"The file of {what} {name} does not exist.",
            "Check the path; it is relative to the current folder.",
        )
    check_readable(path)
    plain = lines and path.suffix != ".json"
    try:
        text = path.read_text(encoding="utf-8-sig")
        if plain:
            return [line for line in lines_of(text) if line.strip()]
        found: JsonValue = json.loads(text)
        return found
    except (ValueError, RecursionError) as error:
        kind = "text" if plain else "JSON"
        raise UserError(f"{name} is no {kind} in UTF-8: {error}.", form) from error
