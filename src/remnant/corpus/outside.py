"""Files from outside: text in UTF-8, JSON and JSON lines, checked on the way in."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from remnant.corpus.files import check_readable
from remnant.errors import UserError
from remnant.parsing import lines_of

FIELDS = ("text", "question", "answer")
_SHAPES = 'Each entry must be a string, {"question", "answer"} or {"text"}, all of them strings.'
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
    r"""The text of a file with line ends as "\n" and without a byte-order mark.

    Raises:
        UserError: not readable, too large, of another kind by its first bytes, not UTF-8, or no
            text.
    """
    try:
        check_readable(path)
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start}).",
            "Convert it, for example with iconv -t UTF-8.",
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
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


def read_records(path: Path) -> list[Any]:
    """A JSON list, or JSON lines (also under the name .json, as TOFU has them), of strings or
    records.

    Raises:
        UserError: not JSON, or an entry that is neither a string, nor {question, answer}, nor
            {text}, or no text in it. Other fields are as they are.
    """
    content = read_utf8(path)
    records = _parsed(path, content)
    if isinstance(records, dict):
        records = [records]
    if not isinstance(records, list):
        raise UserError(f"{path} holds neither a list nor JSON lines.", _SHAPES)
    for i, record in enumerate(records, 1):
        if fault := _fault(record):
            raise UserError(f"Entry {i} of {path} {fault}.", _SHAPES)
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
        raise UserError(f"{where} is nested too deeply to be read.", _SHAPES) from error
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}.", _SHAPES) from error
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    times = Counter(key for key, _ in pairs)
    if twice := [key for key, n in times.items() if n > 1]:
        raise ValueError(f"a record has the field '{twice[0]}' twice")
    return dict(pairs)


def _fault(record: Any) -> str:
    """What is wrong with an entry, behind its name; empty if it can be read."""
    if isinstance(record, str):
        return no_text("", record)
    if not isinstance(record, dict):
        return f"is {_name(record)}"
    if not any(field in record for field in FIELDS):
        return (
            "has none of the fields text, question and "
            f"answer{', but ' + ', '.join(map(repr, record)) if record else ''}"
        )[:300]
    for field in FIELDS:
        if field in record and (fault := no_text(field, record[field])):
            return fault
    for one, other in (("question", "answer"), ("answer", "question")):
        if one in record and other not in record:
            return f"has the field {one}, but not {other}"
        if one in record and not record[one].strip():
            return f"has a blank {one}"
    return ""


def no_text(field: str, value: Any) -> str:
    """Why a value is no text; empty if it is."""
    about = f"the field {field}" if field else "text"
    if not isinstance(value, str):
        return f"has {_name(value)} in {about}"
    if any("\ud800" <= c <= "\udfff" for c in value):
        return f"has half a character (a lone surrogate) in {about}"
    return f"has a NUL character in {about}" if "\0" in value else ""


def _name(value: Any) -> str:
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
