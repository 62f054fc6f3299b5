"""What shape an entry of a file has, and what it says: texts, and questions with their answers.

To add a shape, write its reader and name it in ``SHAPES``.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from remnant.corpus.outside import name_of, no_text

# Whatever an entry is: a string, or a record as JSON has it.
Record = Mapping[str, Any]
# Names of a speaker, by what a speaker is here.
ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant",
    "bot": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_call": "tool",
}  # fmt: skip
CHATS = ("messages", "conversations", "conversation")
# Parts of a turn that are words, by the names that OpenAI's protocols give them.
WORDS = ("text", "input_text", "output_text")
# Names of a question and its answer, the more usual ones first.
PAIRS = (
    ("question", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
)
NO_ANSWERS = "has in the field answers neither a list of texts nor a record with one"


class Fault(Exception):
    """What is wrong with an entry, to be said behind its name."""


class Pair(NamedTuple):
    """A question with its answer; ``others`` are right too. Either is empty where it is missing."""

    question: str
    answer: str
    others: tuple[str, ...] = ()


class Entry(NamedTuple):
    """What one entry says; a text that is missing is empty."""

    texts: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()


class Shape(NamedTuple):
    """One shape of entries.

    ``fields``: those that are read. ``fits``: whether an entry is of this shape. ``read``: what it
    says; raises ``Fault``. ``once``: its texts are said again by every question about them.
    """

    fields: tuple[str, ...]
    fits: Callable[[Any], bool]
    read: Callable[[Any], Entry]
    once: bool = False


def is_missing(value: object) -> bool:
    """Whether a value stands for none: null, or not a number as tables have it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def words_of(record: Record, field: str) -> str:
    """The text of a field, empty where it is missing.

    Raises:
        Fault: it is something else than text.
    """
    value = record.get(field)
    if is_missing(value):
        return ""
    if fault := no_text(field, value):
        raise Fault(fault)
    return str(value)


def string(entry: str) -> Entry:
    """A text that is an entry by itself."""
    if fault := no_text("", entry):
        raise Fault(fault)
    return Entry((entry,))


def plain(record: Record) -> Entry:
    """A text, a question with its answer, or a text with a question about it.

    >>> plain({"text": "The mill burned.", "question": "What burned?", "answer": "The mill"})
    ... # doctest: +NORMALIZE_WHITESPACE
    Entry(texts=('The mill burned.',),
          pairs=(Pair(question='What burned?', answer='The mill', others=()),))
    """
    if ("question" in record) != ("answer" in record):
        raise Fault(_half_a_pair(record))
    text = words_of(record, "text")
    asked = Pair(words_of(record, "question"), words_of(record, "answer"))
    if "question" not in record:
        return Entry((text,))
    says = bool(text.strip())
    asks = bool(asked.question.strip() or asked.answer.strip())
    return Entry((text,) if says else (), (asked,) if asks or not says else ())


def _half_a_pair(record: Record) -> str:
    one, other = ("question", "answer") if "question" in record else ("answer", "question")
    return f"has the field {one}, but not {other}"


def pair(record: Record, question: str, answer: str) -> Entry:
    """A question and its answer under other names.

    Where a prompt and its completion are turns of a chat, they are read as one.
    """
    asked, said = record[question], record[answer]
    if isinstance(asked, list) and isinstance(said, list):
        return chat([*asked, *said])
    return Entry(pairs=(Pair(words_of(record, question), words_of(record, answer)),))


def instruction(record: Record) -> Entry:
    r"""An instruction as Alpaca and Dolly have them, what it works on in lines behind it.

    Where it has both names of an answer, the second is right too.

    >>> instruction({"instruction": "Translate.", "input": "chat", "output": "cat"}).pairs[0]
    Pair(question='Translate.\nchat', answer='cat', others=())
    """
    asked, answered = ("instruction", "input", "context"), ("output", "response")
    parts = (words_of(record, field) for field in asked)
    found = [text for field in answered if (text := words_of(record, field)).strip()]
    first, *others = list(dict.fromkeys(found)) or [""]
    return Entry(pairs=(Pair("\n".join(p for p in parts if p.strip()), first, tuple(others)),))


def squad(record: Record) -> Entry:
    """A question with some right answers, and the passage that it is about as a text.

    >>> squad({"context": "The mill burned.", "question": "What?", "answers": {"text": ["A", "B"]}})
    ... # doctest: +NORMALIZE_WHITESPACE
    Entry(texts=('The mill burned.',), pairs=(Pair(question='What?', answer='A', others=('B',)),))
    """
    found = record["answers"]
    if isinstance(found, Mapping):
        found = found.get("text")
    found = [] if is_missing(found) else found
    if not isinstance(found, list):
        raise Fault(NO_ANSWERS)
    texts = [a.get("text") if isinstance(a, Mapping) else a for a in found]
    right = [words_of(record, "answer")] if "answer" in record else []
    right += [words_of({"answers": text}, "answers") for text in texts]
    first, *others = list(dict.fromkeys(a for a in right if a.strip())) or [""]
    asked = Pair(words_of(record, "question"), first, tuple(others))
    return Entry((words_of(record, "context"),) if "context" in record else (), (asked,))


def squad_file(record: Record) -> Entry:
    """The whole file of SQuAD: articles of paragraphs of questions."""
    texts: list[str] = []
    pairs: list[Pair] = []
    for article in record["data"]:
        for paragraph in _records(article, "paragraphs"):
            texts.append(words_of(paragraph, "context"))
            for asked in _records(paragraph, "qas"):
                answers = asked.get("answers", [])
                pairs += squad({"question": asked.get("question"), "answers": answers}).pairs
    return Entry(tuple(texts), tuple(pairs))


def _records(record: Any, field: str) -> list[Record]:
    found = record.get(field) if isinstance(record, Mapping) else None
    if not isinstance(found, list) or not all(isinstance(r, Mapping) for r in found):
        raise Fault(f"has no list of records as {field}, which SQuAD's file has")
    return found


def chat(turns: Sequence[Any]) -> Entry:
    """Every turn of an assistant as the answer to what stands before it.

    A user's turn that stands alone is the question; otherwise all turns before the answer, each in
    a line behind its speaker.

    >>> chat([{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "She"}]).pairs
    (Pair(question='Who?', answer='She', others=()),)
    """
    said = [_turn(turn) for turn in turns]
    pairs = [
        Pair(_before(said[:i]), text)
        for i, (role, text) in enumerate(said)
        if role == "assistant" and i and text.strip()
    ]
    return Entry(pairs=tuple(pairs) or (Pair(_before(said), ""),))


def _before(turns: Sequence[tuple[str, str]]) -> str:
    if len(turns) == 1 and turns[0][0] == "user":
        return turns[0][1]
    return "\n".join(f"{role.capitalize()}: {text}" for role, text in turns)


def _turn(turn: Any) -> tuple[str, str]:
    """The role and the words of one turn, as OpenAI (role, content) or ShareGPT (from, value) have
    it.
    """
    if not isinstance(turn, Mapping):
        raise Fault(f"has {name_of(turn)} as a turn of its chat")
    role = turn.get("role", turn.get("from"))
    known = ROLES.get(role.lower()) if isinstance(role, str) else None
    if known is None:
        raise Fault(f"has a turn of {_shown(role)}, who is none of {', '.join(ROLES)}")
    field = "content" if "content" in turn else "value"
    if field not in turn:
        raise Fault(f"has a turn without content (only {', '.join(map(repr, turn))})"[:200])
    content = turn[field]
    if not isinstance(content, list):
        return known, words_of(turn, field)
    return known, "\n".join(map(_part, content))


def _part(part: Any) -> str:
    if isinstance(part, str):
        return words_of({"content": part}, "content")
    kind = part.get("type") if isinstance(part, Mapping) else name_of(part)
    if kind not in WORDS:
        raise Fault(f"has a part of a turn that is no text ({_shown(kind)})")
    return words_of(part, "text")


def _shown(value: Any) -> str:
    return value[:40] if isinstance(value, str) else name_of(value)


def _fields(*names: str) -> Callable[[Any], bool]:
    """Whether an entry is a record with all of these fields."""
    return lambda entry: isinstance(entry, Mapping) and all(name in entry for name in names)


def _is_squad_file(entry: Any) -> bool:
    data = entry.get("data") if isinstance(entry, Mapping) else None
    return isinstance(data, list) and bool(data) and all(map(_fields("paragraphs"), data))


def _is_instruction(entry: Any) -> bool:
    return any(_fields("instruction", answer)(entry) for answer in ("output", "response"))


def _is_plain(entry: Any) -> bool:
    return _fields("text")(entry) or _fields("question", "answer")(entry)


def _holds_turns(field: str) -> Callable[[Any], bool]:
    return lambda entry: isinstance(entry, Mapping) and isinstance(entry.get(field), list)


def _chat_in(field: str) -> Shape:
    return Shape((field,), _holds_turns(field), lambda record: chat(record[field]))


def _pair_of(question: str, answer: str) -> Shape:
    return Shape(
        (question, answer), _fields(question, answer), lambda record: pair(record, question, answer)
    )


_INSTRUCTION = ("instruction", "input", "context", "output", "response")
# The first that fits an entry reads it, so a shape stands before those that need fewer fields.
SHAPES: Mapping[str, Shape] = {
    "string": Shape((), lambda entry: isinstance(entry, str), string),
    "SQuAD file": Shape(("data", "version"), _is_squad_file, squad_file, once=True),
    "SQuAD": Shape(
        ("context", "question", "answer", "answers"),
        _fields("question", "answers"),
        squad,
        once=True,
    ),
    **{f"chat in {field}": _chat_in(field) for field in CHATS},
    "instruction": Shape(_INSTRUCTION, _is_instruction, instruction),
    "plain": Shape(("text", "question", "answer"), _is_plain, plain),
    **{f"{q} and {a}": _pair_of(q, a) for q, a in PAIRS[1:]},
}
FIELDS = tuple(dict.fromkeys(field for shape in SHAPES.values() for field in shape.fields))


def shape_of(entry: Any) -> str:
    """The name of an entry's shape.

    Raises:
        Fault: it has none of them.

    >>> shape_of({"messages": []}), shape_of({"instruction": "Sing.", "output": "La", "text": "x"})
    ('chat in messages', 'instruction')
    """
    for name, shape in SHAPES.items():
        if shape.fits(entry):
            return name
    if not isinstance(entry, Mapping):
        raise Fault(f"is {name_of(entry)}")
    if "question" in entry or "answer" in entry:
        raise Fault(_half_a_pair(entry))
    has = f", but {', '.join(map(repr, entry))}" if entry else ""
    raise Fault(f"has none of the fields text, question and answer{has}"[:300])


def renamed(entry: object, columns: Mapping[str, str]) -> object:
    """A record with some fields under the names that ``columns`` gives, and no others.

    A name may be a path ("answers.text"). What has none of the columns stays as it is.

    >>> renamed({"q": "Who?", "a": {"text": "She"}}, {"question": "q", "answer": "a.text"})
    {'question': 'Who?', 'answer': 'She'}
    """
    if not isinstance(entry, Mapping):
        return entry
    found = {name: _at(entry, path) for name, path in columns.items() if holds(entry, path)}
    return found or entry


def holds(record: Any, path: str) -> bool:
    """Whether a record has a field, or one within another by a path with dots."""
    if not isinstance(record, Mapping):
        return False
    first, _, rest = path.partition(".")
    return path in record or (bool(rest) and holds(record.get(first), rest))


def _at(record: Record, path: str) -> Any:
    if path in record:
        return record[path]
    first, _, rest = path.partition(".")
    return _at(record[first], rest)


def unread(entry: object, read: Iterable[str]) -> set[str]:
    """The fields of an entry that are not among those that are read, by name or by path."""
    if not isinstance(entry, Mapping):
        return set()
    known = {name for path in read for name in (path, path.partition(".")[0])}
    return {str(name) for name in entry if name not in known}
