"""Where a corpus comes from: the user's files, a MUSE folder, a hub data set. Everything is checked on the way in."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from remnant.errors import UserError

TEXT_SUFFIXES = {".txt", ".md"}
JSON_SUFFIXES = {".json", ".jsonl"}
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
    """What a list of files holds: texts, and question/answer pairs."""

    texts: list[str]
    qa: list[tuple[str, str]]


def read_sources(paths: tuple[str, ...], role: str) -> Source:
    """All texts and questions of some files and folders, in sorted order.

    Raises:
        UserError: missing, not UTF-8, JSON of another shape, or nothing in it.
    """
    texts: list[str] = []
    qa: list[tuple[str, str]] = []
    for path in (file for name in paths for file in _files(Path(name))):
        if path.suffix in JSON_SUFFIXES:
            records = read_records(path)
            texts += [r for r in records if isinstance(r, str) and r.strip()]
            qa += [(r["question"], r["answer"]) for r in records if isinstance(r, dict) and "question" in r]
            texts += [r["text"] for r in records if isinstance(r, dict) and "text" in r]
        elif text := read_utf8(path).strip():
            texts.append(text)
    if not texts and not qa:
        raise UserError(f"The {role} set is empty.", f"Give --{role} at least one file with text in it.")
    return Source(texts, qa)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in TEXT_SUFFIXES | JSON_SUFFIXES)
        if not found:
            raise UserError(f"The folder {path} holds no text.", "Expected files ending in .txt, .md, .json or .jsonl.")
        yield from found
    elif path.is_file():
        yield path
    else:
        raise UserError(f"The file {path} does not exist.", "Check the path; it is relative to the current folder.")


def read_utf8(path: Path) -> str:
    r"""The text of a file with line ends as "\n" and without a byte-order mark."""
    try:
        return path.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}).", "Convert it, for example with iconv -t UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def read_records(path: Path) -> list[Any]:
    """A JSON list, or JSON lines (also under the name .json, as TOFU has them), of strings or records.

    Raises:
        UserError: not JSON, or an entry that is neither a string, nor {question, answer}, nor {text}.
    """
    content = read_utf8(path)
    try:
        records = json.loads(content)
    except ValueError:
        records = [_line(path, i, line) for i, line in enumerate(content.splitlines(), 1) if line.strip()]
    if isinstance(records, dict):
        records = [records]
    if not isinstance(records, list):
        raise UserError(f"{path} holds neither a list nor JSON lines.", _SHAPES)
    for i, record in enumerate(records, 1):
        if not (isinstance(record, str) or _has(record, "question", "answer") or _has(record, "text")):
            raise UserError(f"Entry {i} of {path} has another shape.", _SHAPES)
    return records


_SHAPES = 'Each entry must be a string, {"question", "answer"} or {"text"}, all of them strings.'


def _line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise UserError(f"Line {number} of {path} is not JSON: {error}.", _SHAPES) from error


def _has(record: Any, *keys: str) -> bool:
    return isinstance(record, dict) and all(isinstance(record.get(key), str) for key in keys)


def read_muse_folder(folder: Path) -> dict[str, list[Any]]:
    """The files of a MUSE download that are there, checked; raw text may be .json or .txt.

    Raises:
        UserError: no such folder, no forget text, or a file of another shape.
    """
    if not folder.is_dir():
        raise UserError(f"The folder {folder} does not exist.", "Give the folder of one corpus, with raw/, verbmem/, ... in it.")
    found: dict[str, list[Any]] = {}
    for name, keys in MUSE_FILES.items():
        path = folder / f"{name}.json"
        if path.is_file():
            found[name] = _checked(path.as_posix(), json.loads(read_utf8(path)), keys)
        elif name.startswith("raw/") and path.with_suffix(".txt").is_file():
            found[name] = [read_utf8(path.with_suffix(".txt"))]
    if not found.get("raw/forget"):
        raise UserError(f"{folder} has no raw/forget.json or raw/forget.txt.", "Is it a corpus in MUSE's layout?")
    return found


def read_tofu(folder: Path, split: str, most: int | None) -> tuple[dict[str, list[Any]], list[tuple[str, str]], list[tuple[str, str]]]:
    """A TOFU download: its question sets by the names that they have here, the forget questions and the retain questions.

    Args:
        folder: with forgetNN.json, retainMM.json and their companions, JSON lines.
        split: "forget01", "forget05" or "forget10".
        most: at most so many retain questions, those of retain_perturbed first.

    Raises:
        UserError: a file is missing or of another shape.
    """
    sets = {}
    for name, file in (("forget", f"{split}_perturbed"), ("retain", "retain_perturbed"), ("authors", "real_authors_perturbed"),
                       ("facts", "world_facts_perturbed")):  # fmt: skip
        rows = _tofu_rows(folder / f"{file}.json")
        for i, row in enumerate(rows, 1):
            wrong = row.get("perturbed_answer")
            if not isinstance(wrong, list) or not wrong or not all(isinstance(w, str) for w in wrong):
                raise UserError(f"Entry {i} of {folder / file}.json has no list of perturbed answers.", "Is it TOFU's file?")
        sets[name] = rows
    forget = _tofu_rows(folder / f"{split}.json")
    retain = _tofu_rows(folder / f"retain{100 - int(split[-2:])}.json")
    asked = {row["question"] for row in sets["retain"]}
    retain = sorted(retain, key=lambda row: row["question"] not in asked)[:most]
    return sets, [(r["question"], r["answer"]) for r in forget], [(r["question"], r["answer"]) for r in retain]


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
            rows = datasets.load_dataset(name, config, split=split, revision=revision)
        except (OSError, ValueError) as error:
            if file == "raw/forget":
                raise UserError(f"The data set {name} cannot be opened: {str(error).splitlines()[0]}", "Use a local folder.") from error
            continue
        found[file] = _checked(f"{name}:{file}", [r if keys else r["text"] for r in rows], keys)
    return found


def _checked(where: str, rows: Any, keys: tuple[str, ...]) -> list[Any]:
    if not isinstance(rows, list):
        raise UserError(f"{where} holds no list.", "MUSE's files are lists.")
    for i, row in enumerate(rows):
        if not (_has(row, *keys) if keys else isinstance(row, str)):
            wanted = f"a record with {' and '.join(keys)}" if keys else "a string"
            raise UserError(f"Entry {i} of {where} is not {wanted}.", "See the table of files in the documentation.")
    return rows
