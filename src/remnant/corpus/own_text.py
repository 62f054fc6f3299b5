"""The user's own text: files and folders of text, JSON and JSON lines, for each side."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from remnant.corpus.base import Material, pages
from remnant.corpus.files import JSON_SUFFIXES, text_files
from remnant.corpus.outside import FIELDS, is_json, read_records, read_utf8
from remnant.errors import UserError

# The sides that a user may give files for.
ROLES = ("forget", "retain", "holdout")


def read(paths: Mapping[str, Sequence[str]]) -> Material:
    """The texts and questions of the files of each role.

    Where there are only questions each question is a text of its own.

    Raises:
        UserError: as ``read_sources``, or one side holds text and the other only questions.
    """
    found = {role: read_sources(names, role) for role, names in paths.items() if names}
    forget, retain, held = found["forget"], found["retain"], found.get("holdout")
    qa_only = not forget.texts
    for role, source in found.items():
        if not (source.qa if qa_only else source.texts):
            has, lacks = ("questions", "none") if qa_only else ("text", "questions only")
            kind = "questions" if qa_only else "text"
            raise UserError(
                f"The forget set holds {has} but the {role} set holds {lacks}.",
                f"Give --{role} a file of {kind} too.",
            )
    texts = {
        "forget": pages(forget.qa) if qa_only else forget.texts,
        "retain1": pages(retain.qa) if qa_only else retain.texts,
        "retain2": [],
        "holdout": (pages(held.qa) if qa_only else held.texts) if held else [],
    }
    return Material(
        texts,
        {"forget": forget.qa, "retain": retain.qa},
        qa_only=qa_only,
        skipped={role: source.skipped for role, source in found.items() if source.skipped},
        notes=tuple(note for source in found.values() for note in source.notes),
    )


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
    if start.startswith(("[", "{")) and (is_json(text) or is_json(text.lstrip().split("\n")[0])):
        raise UserError(
            f"{path} holds JSON, but its name says plain text.",
            "Rename it to end in .json or .jsonl.",
        )
    return text
