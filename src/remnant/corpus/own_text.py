"""The user's own text: files, folders and data sets of any common shape, for each side."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from remnant.corpus.base import Material, pages
from remnant.corpus.contents import entries, look
from remnant.corpus.outside import SHAPES_SAID
from remnant.corpus.shapes import (
    FIELDS,
    SHAPES,
    Entry,
    Fault,
    Pair,
    holds,
    renamed,
    shape_of,
    unread,
)
from remnant.errors import UserError, some, unknown

# The sides that a user may give files for.
ROLES = ("forget", "retain", "holdout")
_COLUMNS = (
    "If another field holds it, name it: --columns text=FIELD, or question=FIELD,answer=FIELD."
)


def read(paths: Mapping[str, Sequence[str]], columns: Mapping[str, str] | None = None) -> Material:
    """The texts and questions of the files of each role.

    Where there are only questions each question is a text of its own.

    Args:
        paths: files, folders and data sets by role.
        columns: the names of fields by what they are to be read as.

    Raises:
        UserError: as ``read_sources``, a column that is nowhere, or one side holds text and the
            other only questions.
    """
    columns = columns or {}
    for name in columns:
        if name not in FIELDS:
            raise unknown("field to be read", name, FIELDS)
    found = {role: read_sources(names, role, columns) for role, names in paths.items() if names}
    _all_used(columns, found)
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
        notes=(
            *chain.from_iterable(source.notes for source in found.values()),
            *(_unused_texts(found) if qa_only else ()),
        ),
        shapes={role: source.shapes for role, source in found.items() if source.shapes},
        accepted={**forget.accepted, **retain.accepted},
    )


class Source(NamedTuple):
    """What a list of files holds: texts, and question/answer pairs.

    ``accepted``: answers that are right beside that of a pair. ``skipped``: files of the folders
    that were not read, with the reason. ``shapes``: of the entries of each file that has any.
    ``used``: fields that stood under another name. ``notes``: what else was left out, a sentence
    each.
    """

    texts: list[str]
    qa: list[tuple[str, str]]
    skipped: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()
    shapes: Mapping[str, str] = {}
    accepted: Mapping[tuple[str, str], tuple[str, ...]] = {}
    used: frozenset[str] = frozenset()


class _Read(NamedTuple):
    """One file, read: its entries behind the name of their shape, its fields in the order in which
    they come, those that were not read, and those that were by another name.
    """

    path: Path
    said: list[tuple[str, Entry]]
    fields: list[str]
    unread: set[str]
    used: set[str]


def read_sources(
    paths: Sequence[str], role: str, columns: Mapping[str, str] | None = None
) -> Source:
    """All texts and questions of some files and folders, in sorted order.

    Raises:
        UserError: as ``look`` and ``entries``, an entry of no known shape, or nothing in it.
    """
    skipped: dict[str, str] = {}
    files: list[_Read] = []
    for found in (look(name, role) for name in paths):
        skipped |= found.skipped
        files += [_file(path, columns or {}) for path in found.files]
    said = [entry for file in files for entry in _kept_once(file.said)]
    texts = [text for entry in said for text in entry.texts]
    pairs = [pair for entry in said for pair in entry.pairs]
    whole = [p for p in pairs if p.question.strip() and p.answer.strip()]
    source = Source(
        [text for text in texts if text.strip()],
        [(p.question, p.answer) for p in whole],
        skipped,
        shapes=_shapes(files),
        accepted=_accepted(whole),
        used=frozenset[str]().union(*(file.used for file in files)),
    )
    if not source.texts and not source.qa:
        raise UserError(
            f"The {role} set is empty{_only_blank(len(texts), len(pairs))}.",
            f"Give --{role} at least one file with text in it.",
        )
    lost = {"text": len(texts) - len(source.texts), "question": len(pairs) - len(whole)}
    return source._replace(notes=tuple(_notes(role, files, lost, whole)))


def _accepted(pairs: Sequence[Pair]) -> dict[tuple[str, str], tuple[str, ...]]:
    """What is right beside the answer of a question, of all entries that ask it."""
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for p in (p for p in pairs if p.others):
        known = found.get((p.question, p.answer), ())
        found[p.question, p.answer] = tuple(dict.fromkeys((*known, *p.others)))
    return found


def _file(path: Path, columns: Mapping[str, str]) -> _Read:
    said: list[tuple[str, Entry]] = []
    fields: dict[str, None] = {}
    not_read: set[str] = set()
    used: set[str] = set()
    for i, raw in enumerate(entries(path), 1):
        entry, shape = renamed(raw, columns), ""
        try:
            shape = shape_of(entry)
            said.append((shape, SHAPES[shape].read(entry)))
        except Fault as fault:
            remedy = SHAPES_SAID if shape else f"{SHAPES_SAID} {_COLUMNS}"
            raise UserError(f"Entry {i} of {path} {fault}.", remedy) from fault
        fields |= dict.fromkeys(raw if isinstance(raw, dict) else ())
        here = {field for field in columns.values() if holds(raw, field)}
        not_read |= unread(raw, here) if here else unread(raw, SHAPES[shape].fields)
        used |= here
    return _Read(path, said, list(fields), not_read, used)


def _kept_once(said: Sequence[tuple[str, Entry]]) -> list[Entry]:
    """The entries of a file, a text that several questions are about only with the first."""
    seen: set[str] = set()
    found = []
    for shape, entry in said:
        new = tuple(t for t in entry.texts if t not in seen)
        found.append(entry._replace(texts=new) if SHAPES[shape].once else entry)
        seen.update(entry.texts)
    return found


def _shapes(files: Sequence[_Read]) -> dict[str, str]:
    """What shapes the entries of each file have; a file that is one text has none.

    Files are told by their own names, so that a card says nothing of where they lay; by the whole
    path where two have one name.
    """
    found: dict[str, str] = {}
    for file in files:
        if len(file.said) != 1 or file.said[0][0] != "string":
            name = file.path.name
            told = [f"{f} (not read)" if f in file.unread else f for f in file.fields]
            shapes = f"{_counted(file)}; fields {', '.join(told)}" if told else _counted(file)
            found[str(file.path) if name in found else name] = shapes
    return found


def _counted(file: _Read) -> str:
    counts = Counter(shape for shape, _ in file.said)
    return ", ".join(f"{n} {shape}" for shape, n in counts.items())


def _is_mixed(file: _Read) -> bool:
    """Whether entries differ in shape; strings beside plain records do not count."""
    return len({"plain" if shape == "string" else shape for shape, _ in file.said}) > 1


def _only_blank(texts: int, pairs: int) -> str:
    """What a set holds that has nothing in it."""
    if pairs:
        return f": none of its {pairs} questions has both a question and an answer"
    return f": its {texts} texts are blank" if texts > 1 else ""


def _notes(
    role: str, files: Sequence[_Read], lost: Mapping[str, int], pairs: Sequence[Pair]
) -> list[str]:
    """What was not read, and what was read in a way that a user should know of."""
    notes = []
    if names := set[str]().union(*(file.unread for file in files)):
        shown = ", ".join(sorted(names))
        notes.append(f"Fields of the {role} entries that are not read: {shown}.")
    if n := lost["text"]:
        notes.append(f"{n} {role} {'text is' if n == 1 else 'texts are'} blank and left out.")
    if n := lost["question"]:
        what = "question lacks its text or its answer and is"
        many = "questions lack their text or their answer and are"
        notes.append(f"{n} {role} {what if n == 1 else many} left out.")
    notes += [
        f"{file.path.name} holds entries of several shapes: {_counted(file)}."
        for file in files
        if _is_mixed(file)
    ]
    if n := sum(bool(pair.others) for pair in pairs):
        notes.append(f"{n} {role} questions have several answers: the first is asked for.")
    return notes


def _unused_texts(found: Mapping[str, Source]) -> list[str]:
    """Texts that nothing is done with where only questions are forgotten."""
    return [
        f"{n} {role} {'text is' if n == 1 else 'texts are'} left out, since the forget set holds "
        "questions only."
        for role, source in found.items()
        if (n := len(source.texts))
    ]


def _all_used(columns: Mapping[str, str], found: Mapping[str, Source]) -> None:
    used = frozenset[str]().union(*(source.used for source in found.values()))
    if lost := [name for name in columns.values() if name not in used]:
        raise UserError(
            f"No entry has the field {some(map(repr, lost))} that --columns names.",
            "See what there is with --dry-run and without --columns.",
        )
