"""Alternative answers that a user gives: refusals for all questions, or some for each."""

from typing import Any, NamedTuple

from remnant.catalog import METHODS
from remnant.corpus.files import read_given
from remnant.errors import UserError
from remnant.methods import sides_read
from remnant.readings import SIDES
from remnant.records import UnlearnSpec


class Alternatives(NamedTuple):
    """One list that serves every question (``shared``), or one list for each, in their order."""

    shared: tuple[str, ...] = ()
    each: tuple[tuple[str, ...], ...] = ()

    def of(self, question: int) -> tuple[str, ...]:
        """The alternatives of one question."""
        return self.each[question] if self.each else self.shared


_FORM = "It is text with one answer a line, or JSON: a list of answers, or one list per question."


def read_alternatives(name: str) -> Alternatives:
    """The alternatives in a file.

    Raises:
        UserError: missing, not UTF-8, not JSON where its name says so, empty, or of another form.
    """
    data = read_given(name, "alternatives", _FORM, lines=True)
    if not isinstance(data, list):
        raise UserError(f"{name} holds no list of answers.", _FORM)
    if not data:
        raise UserError(f"The file of alternatives {name} is empty.", _FORM)
    if all(isinstance(entry, list) for entry in data):
        lists = (entry for entry in data if isinstance(entry, list))
        return Alternatives(
            each=tuple(_answers(name, f"list {i}", own) for i, own in enumerate(lists, 1))
        )
    return Alternatives(shared=_answers(name, "the list", data))


def _answers(name: str, where: str, entries: list[Any]) -> tuple[str, ...]:
    for i, entry in enumerate(entries):
        if not isinstance(entry, str) or not entry.strip():
            raise UserError(f"{name}: entry {i + 1} of {where} is no text or is empty.", _FORM)
    if not entries:
        raise UserError(f"{name}: {where} is empty.", "Give every question an answer or more.")
    return tuple(entry.strip() for entry in entries)


def check_alternatives(spec: UnlearnSpec, given: Alternatives | None) -> None:
    """Whether a run has the alternatives that its terms read, and no others.

    Raises:
        UserError: they are missing, of another form, or nobody reads them; or as ``sides_read``.
    """
    sides = sides_read(spec)
    wanted = any(SIDES[side].paired_with for side in sides)
    what = spec.method or "+".join(term.use for term in spec.terms)
    if wanted and given is None:
        raise UserError(
            f"'{what}' reads other answers to the questions, and none are given.",
            'Set alternatives to a file of them, and examples = "questions".',
        )
    if given is not None and not wanted:
        raise UserError(f"'{what}' reads no alternatives.", "Leave the file out.")
    if given is not None and given.each and "retain_alternative" in sides:
        raise UserError(
            f"'{what}' reads other answers to retain questions too, and the file has a list for "
            "each forget question.",
            "Give one list for all questions.",
        )
    form = METHODS[spec.method].alternatives if spec.method else None
    if given is not None and form and not getattr(given, form):
        wants = {"shared": "one list for all questions", "each": "one list per question"}
        raise UserError(f"'{what}' wants {wants[form]}, and the file holds another form.", _FORM)
