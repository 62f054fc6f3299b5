"""Where a corpus comes from: the user's files, a MUSE folder, a hub data set.

Everything is checked on the way in.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from remnant.errors import UserError, first_line
from remnant.flow.texts import JSON_SUFFIXES, check_readable, text_files
from remnant.parsing import lines_of

FIELDS = ("text", "question", "answer")
_SHAPES = 'Each entry must be a string, {"question", "answer"} or {"text"}, all of them strings.'
# Control characters that stand in no text; files of other kinds are full of them.
_CONTROLS = "".join(map(chr, {*range(32)} - {*b"\t\n\v\f\r\x1b"}))
_MOST_CONTROLS = 0.01
MUSE_FILES = {
    "knowmem/forget_qa": ("question", "answer"),
    "knowmem/retain_qa": ("question", "answer"),
    "knowmem/forget_qa_icl": ("question", "answer"),
    "knowmem/retain_qa_icl": ("question", "answer"),
    "verbmem/forget": ("prompt", "gt"),
    "privleak/forget": (),
    "privleak/retain": (),
    "privleak/holdout": (),
    "raw/forget": (),
    "raw/retain1": (),
    "raw/retain2": (),
    "raw/holdout": (),
}


class Source(NamedTuple):
    """What a list of files holds: texts, and question/answer pairs.

    ``skipped``: files of the folders that were not read, with the reason. ``notes``: what else was
    left out, a sentence each.
    """

    texts: list[str]
    qa: list[tuple[str, str]]
    skipped: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()


def read_sources(paths: Sequence[str], role: str) -> Source:
    """All texts and questions of some files and folders, in sorted order.

    Raises:
        UserError: as ``text_files``, ``read_utf8`` and ``read_records``, or nothing in it.
    """
    texts: list[str] = []
    qa: list[tuple[str, str]] = []
    skipped: dict[str, str] = {}
    ignored: Counter[str] = Counter()
    blank = 0
    for found in (text_files(name, role) for name in paths):
        skipped |= found.skipped
        for path in found.files:
            records = read_records(path) if path.suffix.lower() in JSON_SUFFIXES else [_plain(path)]
            for record in (r if isinstance(r, dict) else {"text": r} for r in records):
                if record.get("text", "").strip():
                    texts.append(
                        record["text"]
                        if path.suffix.lower() in JSON_SUFFIXES
                        else record["text"].strip()
                    )
                elif "question" not in record:
                    blank += 1
                if "question" in record:
                    qa.append((record["question"], record["answer"]))
                ignored.update(k for k in record if k not in FIELDS)
    if not texts and not qa:
        raise UserError(
            f"The {role} set is empty.", f"Give --{role} at least one file with text in it."
        )
    notes = (
        [f"Fields of the {role} entries that are not read: {', '.join(sorted(ignored))}."]
        if ignored
        else []
    )
    notes += (
        [f"{blank} {role} {'text is' if blank == 1 else 'texts are'} blank and left out."]
        if blank
        else []
    )
    return Source(texts, qa, skipped, tuple(notes))


def _plain(path: Path) -> str:
    """A file that is one text.

    Refused where its content is JSON or a page of the web in spite of its name.
    """
    text = read_utf8(path)
    start = text.lstrip()[:16].lower()
    if start.startswith(("<!doctype html", "<html")):
        raise UserError(
            f"{path} is a web page (HTML), whatever its name says.",
            "Convert it first, with pandoc -t plain.",
        )
    if start.startswith(("[", "{")) and (_is_json(text) or _is_json(text.lstrip().split("\n")[0])):
        raise UserError(
            f"{path} holds JSON, but its name says plain text.",
            "Rename it to end in .json or .jsonl.",
        )
    return text


def _is_json(text: str) -> bool:
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
            {text}, or no text in it.
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
        if len(lines) == 1 or not _is_json(lines[0][1]):  # one value, over several lines or not
            raise
    return [load_json(f"Line {i} of {path}", line) for i, line in lines]


def load_json(where: str, content: str) -> Any:
    """A JSON value.

    Raises:
        UserError: not JSON, a key twice in one record, or too deep.
    """
    try:
        return json.loads(content, object_pairs_hook=_once)
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply to be read.", _SHAPES) from error
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}.", _SHAPES) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]:
        raise ValueError(f"a record has the field '{twice[0]}' twice")
    return dict(pairs)


def _fault(record: Any) -> str:
    """What is wrong with an entry, behind its name; empty if it can be read."""
    if isinstance(record, str):
        return _no_text("", record)
    if not isinstance(record, dict):
        return f"is {_name(record)}"
    if not any(field in record for field in FIELDS):
        return (
            "has none of the fields text, question and "
            f"answer{', but ' + ', '.join(map(repr, record)) if record else ''}"
        )[:300]
    for field in FIELDS:
        if field in record and (fault := _no_text(field, record[field])):
            return fault
    for one, other in (("question", "answer"), ("answer", "question")):
        if one in record and other not in record:
            return f"has the field {one}, but not {other}"
        if one in record and not record[one].strip():
            return f"has a blank {one}"
    return ""


def _no_text(field: str, value: Any) -> str:
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
    return names[type(value)]


def _has(record: Any, *keys: str) -> bool:
    return isinstance(record, dict) and not any(_no_text(key, record.get(key)) for key in keys)


def read_muse_folder(folder: Path) -> dict[str, list[Any]]:
    """The files of a MUSE download that are there, checked; raw text may be .json or .txt.

    Raises:
        UserError: no such folder, no forget text, or a file of another shape.
    """
    if not folder.is_dir():
        raise UserError(
            f"The folder {folder} does not exist.",
            "Give the folder of one corpus, with raw/, verbmem/, ... in it.",
        )
    found: dict[str, list[Any]] = {}
    for name, keys in MUSE_FILES.items():
        path = folder / f"{name}.json"
        if path.is_file():
            found[name] = _checked(
                path.as_posix(), load_json(path.as_posix(), read_utf8(path)), keys
            )
        elif name.startswith("raw/") and path.with_suffix(".txt").is_file():
            found[name] = [read_utf8(path.with_suffix(".txt"))]
    if not any(map(str.strip, found.get("raw/forget", []))):
        has = (
            "an empty raw/forget"
            if "raw/forget" in found
            else "no raw/forget.json or raw/forget.txt"
        )
        raise UserError(f"{folder} has {has}.", "Is it a corpus in MUSE's layout?")
    return found


def read_tofu(
    folder: Path, split: str, most: int | None
) -> tuple[dict[str, list[Any]], list[tuple[str, str]], list[tuple[str, str]]]:
    """A TOFU download: its question sets by the names that they have here, the forget questions and
    the retain questions.

    Args:
        folder: with forgetNN.json, retainMM.json and their companions, JSON lines.
        split: "forget01", "forget05" or "forget10".
        most: at most so many retain questions, those of retain_perturbed first.

    Raises:
        UserError: a file is missing or of another shape.
    """
    sets = {}
    files = {
        "forget": f"{split}_perturbed",
        "retain": "retain_perturbed",
        "authors": "real_authors_perturbed",
        "facts": "world_facts_perturbed",
    }
    for name, file in files.items():
        rows = _tofu_rows(folder / f"{file}.json")
        for i, row in enumerate(rows, 1):
            wrong = row.get("perturbed_answer")
            if (
                not isinstance(wrong, list)
                or not wrong
                or not all(isinstance(w, str) and w.strip() and not _no_text("", w) for w in wrong)
            ):
                raise UserError(
                    f"Entry {i} of {folder / file}.json has no list of perturbed answers.",
                    "Is it TOFU's file?",
                )
            if not _has({"paraphrased_answer": ""} | row, "paraphrased_answer"):
                raise UserError(
                    f"Entry {i} of {folder / file}.json has no text as paraphrased answer.",
                    "Is it TOFU's file?",
                )
        sets[name] = rows
    forget = _tofu_rows(folder / f"{split}.json")
    retain = _tofu_rows(folder / f"retain{100 - int(split[-2:])}.json")
    asked = {row["question"] for row in sets["retain"]}
    retain = sorted(retain, key=lambda row: row["question"] not in asked)[:most]
    return (
        sets,
        [(r["question"], r["answer"]) for r in forget],
        [(r["question"], r["answer"]) for r in retain],
    )


def _tofu_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path} is missing.", "Give the folder of a complete TOFU download.")
    rows = read_records(path)
    if not rows or not all(_has(row, "question", "answer") for row in rows):
        raise UserError(f"{path} does not hold questions and answers.", "Is it TOFU's file?")
    return rows


def read_hub(name: str, revision: str | None) -> dict[str, list[Any]]:
    """The same files from a data set on the hub (muse-bench/MUSE-News, muse-bench/MUSE-Books).

    Raises:
        UserError: the hub or the data set cannot be reached.
    """
    import datasets  # heavy, and only for this door

    found: dict[str, list[Any]] = {}
    for file, keys in MUSE_FILES.items():
        config, split = file.split("/")
        try:
            rows = list(datasets.load_dataset(name, config, split=split, revision=revision))
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            # A part that is not there is absent; one that cannot be reached must not look like
            # that.
            if file == "raw/forget" or not isinstance(error, ValueError):
                raise UserError(
                    f"The data set {name} cannot be opened ({file}): {first_line(error)}",
                    "Use a local folder.",
                ) from error
            continue
        found[file] = _checked(f"{name}:{file}", [r if keys else r.get("text") for r in rows], keys)
    return found


def _checked(where: str, rows: Any, keys: tuple[str, ...]) -> list[Any]:
    if not isinstance(rows, list):
        raise UserError(f"{where} holds no list.", "MUSE's files are lists.")
    for i, row in enumerate(rows, 1):
        if not (_has(row, *keys) if keys else isinstance(row, str) and not _no_text("", row)):
            wanted = f"a record with {' and '.join(keys)}" if keys else "a string"
            raise UserError(
                f"Entry {i} of {where} is not {wanted}.",
                "See the table of files in the documentation.",
            )
    return rows
