"""`remnant lineage`: a forest of models as a table, as JSON, and as a page with a tree."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table

from remnant.ancestry.family import Forest, Member, lineage
from remnant.flow.progress import counting
from remnant.flow.store import disk_errors
from remnant.report import notebook, terminal

LINEAGE_SCHEMA = 1
STYLES = {
    "is one": "red",
    "descends": "red",
    "perhaps": "yellow",
    "gone": "green",
    "no": "",
    "not known": "",
}
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


def show(folders: Sequence[Path], out: Path, json_out: Path | None) -> None:
    """Place all models below some folders: a table, a page, and JSON where it is wanted."""
    with counting(terminal.console(stderr=True), "Reading windows of the weights") as report:
        forest = lineage(folders, report)
    screen = terminal.console()
    screen.print(table(forest))
    screen.print(escape(said(forest)), highlight=False)
    for name, reason in forest.unread:
        screen.print(escape(f"Not read: {name}. {reason}"), highlight=False)
    with disk_errors(out, "Choose another folder with --out."):
        out.mkdir(parents=True, exist_ok=True)
        page = out / "lineage.html"
        page.write_text(rendered(forest), encoding="utf-8")
        if json_out is not None:
            text = json.dumps(record(forest), indent=1, allow_nan=False) + "\n"
            json_out.write_text(text, encoding="utf-8")
    screen.print(f"Page: [bold]{escape(str(page))}[/]", highlight=False, soft_wrap=True)


def said(forest: Forest) -> str:
    """What was found, in one sentence or two."""
    count = Counter(m.knowing for m in forest.members)
    families = {m.family for m in forest.members if m.family is not None}
    alone = sum(m.family is None for m in forest.members)
    audited = any(m.verdict for m in forest.members)
    known = (
        f"{count['is one']} still know by an audit, {count['descends']} descend from one of them, "
        f"{count['perhaps']} perhaps."
        if audited
        else "No audit of any of them was found: what they know is not told."
    )
    of_families = "family" if len(families) == 1 else "families"
    return (
        f"{len(forest.members)} models: {len(families)} {of_families}, {alone} related to no "
        f"other. {known}"
    )


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


def origin(member: Member) -> str:
    """How a model came from its parent, in words."""
    if member.parent is None:
        return "related to none" if member.family is None else ""
    beside = f", with {member.beside}" if member.beside else ""
    rank = f" of rank {member.rank}" if member.rank else ""
    fit = ""
    if member.fit is not None:
        fit = f", {member.fit:.1%} {'kept' if member.step == 'pruned' else 'of codes equal'}"
    untold = "" if member.told else ", or the other way round, or both from a third"
    made = f" ({member.how})" if member.how else ""
    return f"{member.step}{rank}{beside}{made}{fit}{untold}"


def table(forest: Forest) -> Table:
    """One row per model, children behind their parents."""
    found = Table("model", "from", "how", "told by", "audit", "descends from one that knows")
    for row in ordered(forest.members):
        m = row.member
        parents = " or ".join((m.parent, *m.perhaps)) if m.parent else "-"
        style = STYLES[m.knowing] or "default"
        answer = f"{m.knowing}: {m.of}" if m.of else m.knowing
        found.add_row(
            escape(m.name),
            escape(parents if m.told or not m.parent else f"{parents} ?"),
            escape(origin(m)),
            m.by,
            escape(m.verdict),
            f"[{style}]{escape(answer)}[/]",
        )
    return found


def record(forest: Forest) -> dict[str, object]:
    """The forest as JSON."""
    return {
        "schema": LINEAGE_SCHEMA,
        "said": said(forest),
        "models": [m._asdict() for m in forest.members],
        "not_read": dict(forest.unread),
    }


def drawing(members: Sequence[Member], note: Callable[[Member], str]) -> Drawing:
    """The tree of some models, with a note behind the name of each."""
    rows = ordered(members)
    longest = max((r.x + LETTER * len(r.member.name + note(r.member)) for r in rows), default=0)
    return Drawing(rows, int(longest) + 3 * ROW, len(rows) * ROW)


def rendered(forest: Forest) -> str:
    """One page that needs nothing else: the tree as SVG, and the table below it."""
    return (
        notebook.environment()
        .get_template("lineage.html.j2")
        .render(
            said=said(forest),
            drawing=drawing(forest.members, origin),
            unread=forest.unread,
            origin=origin,
        )
    )
