"""`remnant lineage`: a forest of models as a table, as JSON, and as a page with a tree."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from remnant.ancestry.family import lineage
from remnant.ancestry.member import Forest, Member
from remnant.durable import write_text
from remnant.flow.progress import counting
from remnant.flow.store import disk_errors
from remnant.report import notebook, terminal
from remnant.report.tree import drawing, ordered

LINEAGE_SCHEMA = 1
STYLES = {
    "is one": "red",
    "descends": "red",
    "perhaps": "yellow",
    "gone": "green",
    "no": "",
    "not known": "",
}


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
        write_text(page, rendered(forest))
        if json_out is not None:
            text = json.dumps(record(forest), indent=1, allow_nan=False) + "\n"
            write_text(json_out, text)
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
