"""What a store is doing at this moment, as values: its runs, how far they are, what is in hand,
and what was found so far. No torch.
"""

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import NamedTuple

from remnant.catalog import STAGE_VERSIONS
from remnant.errors import UserError, first_line
from remnant.flow.failures import failures
from remnant.flow.progress import Left, State, clock, describe, in_hand, left_of_each
from remnant.flow.store import PROGRESS, Store
from remnant.parsing import parse
from remnant.records import AuditSpec, MeasureSpec, Piece, SweepSpec
from remnant.report import table
from remnant.report.front import headline
from remnant.report.league import Standing, league
from remnant.report.table import Results

# Of an audit that was ordered by itself, and not as a part of a run.
TITLE = "Did it stay forgotten?"


class Kept(NamedTuple):
    """A run as the store keeps it: what was ordered, and what it consists of."""

    sweep: SweepSpec
    pieces: list[Piece]


class Going(NamedTuple):
    """A piece that is being made: what, how far, a note, and the time left in words."""

    what: str
    done: int
    total: int
    note: str
    left: str


class Found(NamedTuple):
    """What was found so far: in one sentence, and of every model."""

    said: str
    league: list[Standing]


class Run(NamedTuple):
    """A run of the store. ``fault``: why nothing can be told of it; empty where it can."""

    name: str
    title: str
    done: int
    total: int
    left: str
    going: list[Going]
    failed: list[tuple[str, str]]
    found: Found
    fault: str = ""


def kept(store: Store, name: str) -> Kept:
    """A run by its name, or an audit by that of its artefact.

    Raises:
        UserError: there is neither, or it is damaged.
    """
    if name not in store.labels() and name in audits(store):
        return _audit(store, name)
    data = store.labelled(name)
    pieces = [parse(Piece, piece, name) for piece in data["pieces"]]
    return Kept(parse(SweepSpec, data["sweep"], name), pieces)


def audits(store: Store) -> list[str]:
    """The artefacts of audits that this version has made."""
    there = [n for n in store.matching("", "audit") if store.has(n)]
    newest = STAGE_VERSIONS["audit"]
    return [n for n in there if store.manifest(n).stage_version == newest]


def _audit(store: Store, name: str) -> Kept:
    """An audit that was ordered by itself, from its manifest."""
    manifest = store.manifest(name)
    spec = AuditSpec.model_validate(manifest.spec)
    found: dict[str, Piece] = {}
    for role, label in spec.members.items():
        measured = manifest.inputs[role]
        given = store.manifest(measured).inputs if store.has(measured) else {}
        if (form := given.get("elicited", "")) and store.has(form):
            of_target = label.model_copy(update={"model": "target", "steps": ()})
            found.setdefault(form, Piece(name=form, stage="elicit", label=of_target))
        found[measured] = Piece(name=measured, stage="measure", label=label)
    asked = MeasureSpec(dtype=spec.rule.dtype)
    sweep = SweepSpec(
        name=name, title=TITLE, corpus=(), unlearn=(), quantizers=(), measure=asked, rule=spec.rule
    )
    return Kept(sweep, [*found.values(), Piece(name=name, stage="audit")])


def collected(store: Store, run: Kept) -> Results:
    """What is finished of a run, for its report."""
    lost = {n: f["message"] for n, f in failures(store, run.pieces).items()}
    return table.collect(store, run.sweep, run.pieces, lost)


def found_of(store: Store, run: Kept) -> Found:
    """What a run has found so far."""
    results = collected(store, run)
    return Found(headline(results), league(results.groups))


def judged(store: Store, run: Kept) -> frozenset[str]:
    """The finished audits of a run; what was found changes only with these."""
    return frozenset(p.name for p in run.pieces if p.stage == "audit" and store.has(p.name))


def look(store: Store, name: str, found: Callable[[Kept], Found], left: Left) -> Run:
    """How far a run is.

    Args:
        store: where it is made.
        name: of the run.
        found: what was found so far, perhaps kept from a look before.
        left: the time left of one piece.

    A run that cannot be read is told as such.
    """
    try:
        run = kept(store, name)
        return _run(store, name, run, found(run), left)
    except (UserError, OSError, ValueError) as error:
        nothing = Found("", [])
        return Run(name, name, 0, 0, "", [], [], nothing, first_line(error))


def _run(store: Store, name: str, run: Kept, found: Found, left: Left) -> Run:
    todo = [p for p in run.pieces if not store.has(p.name)]
    states = in_hand(store, [p.name for p in todo])
    going = [_going(describe(p), p.name, states[p.name], left) for p in todo if p.name in states]
    lost = failures(store, todo)
    whole = left_of_each(store, run.pieces, [p for p in todo if p.name not in lost], left)
    failed = [(describe(p), lost[p.name]["message"]) for p in todo if p.name in lost]
    told = f"about {clock(sum(whole.values()) / len(going))} left" if going else ""
    return Run(
        name,
        run.sweep.title or run.sweep.name,
        len(run.pieces) - len(todo),
        len(run.pieces),
        told,
        going,
        failed,
        found,
    )


def _going(what: str, name: str, state: State, left: Left) -> Going:
    rest = left(name, state.done, state.total)
    said = f"about {clock(rest)} left" if rest is not None else ""
    return Going(what, state.done, state.total, state.note, said)


def single(store: Store, known: Collection[str], left: Left) -> list[Going]:
    """What is being made and belongs to no run: that of single commands."""
    folders = sorted(path.parent.name for path in store.root.glob(f"partial/*/{PROGRESS}"))
    states = in_hand(store, [name for name in folders if name not in known])
    return [_going(name, name, state, left) for name, state in states.items()]


def every(store: Store) -> tuple[list[str], set[str]]:
    """The runs of a store by name, audits that belong to none behind them; and the artefacts of
    all runs that can be read.
    """
    known: set[str] = set()
    named = store.labels()
    for name in named:
        with suppress(UserError):
            known |= {piece.name for piece in kept(store, name).pieces}
    return [*named, *(name for name in audits(store) if name not in known)], known
