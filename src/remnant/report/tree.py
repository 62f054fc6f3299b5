"""A forest of models as rows of a drawing: children below their parents."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from remnant.ancestry.member import Member

# Pixels of the tree: a row, a generation, and a letter at the size of its text.
ROW, STEP, LETTER = 30, 26, 7.5


class Placed(NamedTuple):
    """A model in the drawing: its place, and that of its parent (None of one without)."""

    member: Member
    x: int
    y: int
    above: int | None


class Drawing(NamedTuple):
    """A tree as a page draws it: its rows, its size and that of a generation, in pixels."""

    rows: list[Placed]
    width: int
    height: int
    step: int = STEP


def ordered(members: Sequence[Member]) -> list[Placed]:
    """The models as rows of a tree, children below their parents, unrelated ones last."""
    found: list[Placed] = []

    def add(member: Member, depth: int, above: int | None) -> None:
        found.append(Placed(member, depth * STEP + ROW // 2, len(found) * ROW + ROW // 2, above))
        own = found[-1].y
        for child in members:
            if child.parent == member.name:
                add(child, depth + 1, own)

    tops = [m for m in members if m.parent is None]
    for top in sorted(tops, key=lambda m: (m.family is None, m.family or 0)):
        add(top, 0, None)
    return found


def drawing(members: Sequence[Member], note: Callable[[Member], str]) -> Drawing:
    """The tree of some models, with a note behind the name of each."""
    rows = ordered(members)
    longest = max((r.x + LETTER * len(r.member.name + note(r.member)) for r in rows), default=0)
    return Drawing(rows, int(longest) + 3 * ROW, len(rows) * ROW)
