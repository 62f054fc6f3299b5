"""Tables on the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from remnant.corpus.files import not_read
from remnant.flow.plan import Node
from remnant.flow.progress import clock
from remnant.records import FULL, Cell, ElicitResult, Manifest, PrepareResult, Record
from remnant.report import table

OUTCOME_STYLES = {
    "gone": "green", "unclear": "yellow", "not measured": "yellow", "hidden": "red",
    "came back": "red", "known": "red", "broken": "red",
}  # fmt: skip


def console(*, stderr: bool = False) -> Console:
    """Where people read: results on stdout, progress on stderr.

    Wide enough for a table where there is no terminal.
    """
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=160)


def columns(rows: Sequence[Sequence[str]]) -> str:
    r"""Rows of text in columns; drawing a table of thousands takes more than a second.

    >>> columns([("what", "size"), ("int4", "2 MB")])
    'what  size\nint4  2 MB'
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (map(str.ljust, row, widths) for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def artefact(manifest: Manifest) -> tuple[str, str, str, str]:
    """What an artefact is, when it was made, how long that took, how large it is."""
    spec = manifest.spec
    splits = ",".join(spec.get("splits", ()))
    what = spec.get("method") or spec.get("use") or spec.get("lab") or splits
    written = sum(f.bytes for f in manifest.files.values())
    return str(what), manifest.created, clock(manifest.seconds), size(written)


def size(count: int) -> str:
    """Bytes as people read them.

    >>> size(1_540_000)
    '1.5 MB'
    """
    return f"{count / 1e6:.1f} MB"


def code_of(nodes: Sequence[Node]) -> list[str]:
    """The user's functions among the methods of some pieces.

    Only those have a colon in their names.
    """
    return list(dict.fromkeys(use for node in nodes for use in node.methods if ":" in use))


def tell_code(uses: Sequence[str], screen: Console) -> None:
    """Say that files of the user's run, before they do."""
    for use in uses:
        screen.print(f"This runs code of {escape(use)}", highlight=False, soft_wrap=True)


def matrix(group: table.Group) -> Table:
    """One row per model and form, one column per metric, the verdict last."""
    found = Table(
        title=escape(f"{group.title} (x100, 95 % intervals)"),
        caption=escape("\n".join(group.unmeasured)) or None,
        caption_justify="left",
    )
    for column in ("model", "form", *group.metrics, "verdict"):
        found.add_column(escape(column))
    for model in group.models:
        for form in group.forms:
            cells = [group.cell(model, form, m) for m in group.metrics]
            styles = {"good": "green", "bad": "red", "plain": ""}
            shown = [
                f"[{styles[t]}]{escape(table.number(c))}[/]"
                if (t := table.tone(group, c)) != "plain"
                else escape(table.number(c))
                for c in cells
            ]
            verdict = group.verdict(model, form)
            outcome = f"[{OUTCOME_STYLES[verdict.outcome]}]{verdict.outcome}[/]" if verdict else ""
            name = escape(model) if form == FULL else ""
            found.add_row(
                name,
                escape(form),
                *shown,
                outcome,
                end_section=form == group.forms[-1],
            )
    return found


def print_cells(cells: Sequence[Cell], title: str | None = None) -> None:
    """The cells of one model as a small table."""
    found = Table(
        "metric", "x100 [95 % interval]", "items", "status", title=escape(title) if title else None
    )
    for cell in cells:
        value = table.number(cell) if cell.value is not None else "-"
        found.add_row(escape(cell.metric), escape(value), str(cell.n), escape(cell.status))
    console().print(found)


def computed_in(spec: Record) -> str | None:
    """What stands over the numbers of a measurement that was not computed in float32."""
    dtype = getattr(spec, "dtype", None)
    names = {"bf16": "bfloat16", "stored": "the dtype of the files"}
    return f"Computed in {names[dtype]}" if dtype else None


def warnings_of(card: PrepareResult) -> list[str]:
    """What the card of a corpus says that a user should look at."""
    lines = [
        (
            f"Warning: {count} {name} texts share a long run of words with the forget text, or "
            "are short and the same."
        )
        for name, count in card.overlapping_texts.items()
        if count and name != "questions"
    ]
    if count := card.overlapping_texts.get("questions"):
        lines.append(
            f"Warning: {count} retain questions are asked about the forget text too, or repeat it."
        )
    lines += [
        f"Warning: {count} {name} say what another one says."
        for name, count in card.repeated.items()
    ]
    return lines + not_read(card.skipped) + [f"Note: {note}" for note in card.notes]


def print_form(chosen: ElicitResult, *, alone: bool) -> None:
    """In which form questions were asked.

    With a warning where it was chosen on the measured model (``alone``), so that another model may
    have been asked otherwise.
    """
    print(chosen.said)
    if alone:
        print(
            "Warning: that form was chosen on this model itself; to compare it with a target, give "
            "--form-from TARGET."
        )
