"""Files from outside: text in UTF-8, JSON and JSON lines, checked on the way in."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from remnant.corpus.packed import read_bytes
from remnant.errors import UserError
from remnant.parsing import lines_of

SHAPES_SAID = (
    'An entry is a string, {"text"}, {"question", "answer"}, a chat or another shape of '
    "docs/own-text.md, and what is read of it are strings."
)
# Control characters that stand in no text; files of other kinds are full of them.
_CONTROLS = "".join(map(chr, {*range(32)} - {*b"\t\n\v\f\r\x1b"}))
_MOST_CONTROLS = 0.01


def is_json(text: str) -> bool:
    """Whether a text is one JSON value."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def read_utf8(path: Path) -> str:
    """The text of a file.

    Raises:
        UserError: as ``read_bytes`` and ``as_utf8``.
    """
    return as_utf8(path, read_bytes(path))


def as_utf8(path: Path, raw: bytes) -> str:
    r"""The text of a file's bytes with line ends as "\n" and without a byte-order mark.

    Raises:
        UserError: not UTF-8, or no text.
    """
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start}).",
            "Convert it, for example with iconv -t UTF-8.",
        ) from error
    if "\0" in text:
        raise UserError(
            f"{path} holds NUL bytes, so it is no text in UTF-8.",
            "If it is UTF-16, convert it with iconv -f UTF-16 -t UTF-8.",
        )
    if sum(map(text.count, _CONTROLS)) > _MOST_CONTROLS * len(text):
        raise UserError(
            f"{path} is no text: it is full of control characters.", "Give a file of plain text."
        )
    return text


def read_records(path: Path) -> list[JsonValue]:
    """A JSON list, or JSON lines (also under the name .json, as TOFU has them); one record is a
    list of it.

    Raises:
        UserError: as ``read_utf8``, or not JSON, or neither.
    """
    return json_records(path, read_utf8(path))


def json_records(path: Path, content: str) -> list[JsonValue]:
    """The entries of a file of JSON; raises UserError as ``read_records``."""
    records: JsonValue = _parsed(path, content)
    if isinstance(records, dict):
        records = [records]
    if not isinstance(records, list):
        raise UserError(f"{path} holds neither a list nor JSON lines.", SHAPES_SAID)
    return records


def _parsed(path: Path, content: str) -> Any:
    """One JSON value, or a list of those of all lines."""
    try:
        return load_json(path.as_posix(), content)
    except UserError:
        lines = [(i, line) for i, line in enumerate(lines_of(content), 1) if line.strip()]
        if not lines:
            return []
        if len(lines) == 1 or not is_json(lines[0][1]):  # one value, over several lines or not
            raise
    return [load_json(f"Line {i} of {path}", line) for i, line in lines]


def load_json(where: str, content: str) -> JsonValue:
    """A JSON value.

    Raises:
        UserError: not JSON, a key twice in one record, or too deep.
    """
    try:
        found: JsonValue = json.loads(content, object_pairs_hook=_once)
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply to be read.", SHAPES_SAID) from error
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}.", SHAPES_SAID) from error
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    times = Counter(key for key, _ in pairs)
    if twice := [key for key, n in times.items() if n > 1]:
        raise ValueError(f"a record has the field '{twice[0]}' twice")
    return dict(pairs)


def no_text(field: str, value: Any) -> str:
    """Why a value is no text; empty if it is."""
    about = f"the field {field}" if field else "text"
    if not isinstance(value, str):
        return f"has {name_of(value)} in {about}"
    if any("\ud800" <= c <= "\udfff" for c in value):
        return f"has half a character (a lone surrogate) in {about}"
    return f"has a NUL character in {about}" if "\0" in value else ""


def name_of(value: Any) -> str:
    """What a value is, in words."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "a record",
        type(None): "null",
        str: "a string",
    }
    return names.get(type(value), f"a value of type {type(value).__name__}")


def has(record: Any, *keys: str) -> bool:
    """Whether a value is a record whose fields of these names are texts."""
    return isinstance(record, dict) and not any(no_text(key, record.get(key)) for key in keys)


def checked(where: str, rows: object, keys: tuple[str, ...]) -> list[JsonValue]:
    """Rows that have all these keys, or are strings where there are none.

    Raises:
        UserError: not a list of them.
    """
    if not isinstance(rows, list):
        raise UserError(f"{where} holds no list.", "MUSE's files are lists.")
    for i, row in enumerate(rows, 1):
        if not (has(row, *keys) if keys else isinstance(row, str) and not no_text("", row)):
            wanted = f"a record with {' and '.join(keys)}" if keys else "a string"
            raise UserError(
                f"Entry {i} of {where} is not {wanted}.",
                "See the table of files in the documentation.",
            )
    return rows
