"""Which logs a file or folder holds, whose they are, and what they say. No torch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from remnant.errors import UserError
from remnant.foreign import muse, open_unlearning, tofu
from remnant.foreign.logs import (
    Cells,
    Log,
    Reference,
    parse_json,
    read_text,
    shown,
    side_auc,
    usable,
)
from remnant.records import AS_GIVEN, Cell, Rule, Variant

OWN, OPEN, MUSE, TOFU = "lines", "open-unlearning", "MUSE", "TOFU"
KNOWN = (
    "Known: open-unlearning's EVAL and SUMMARY; MUSE's log, agg, auc, history and out; TOFU's "
    "evaluation logs, aggregated or one by one; "
    "and JSON lines with a metric."
)
# Names that the tools give to their logs: such a file must be readable, others in the same folder
# need not be logs.
NAMES = (
    "_EVAL.json",
    "_SUMMARY.json",
    "agg.json",
    "auc.json",
    "log.json",
    "history.json",
    "out.json",
    *tofu.FILES,
)


class Run(NamedTuple):
    """The logs of one model, by one tool; ``name`` tells models apart within what was asked for."""

    name: str
    tool: str
    logs: list[Log]


class Found(NamedTuple):
    """Cells, and sentences about what was left out."""

    cells: list[Cell]
    notes: list[str]


TOOLS: Mapping[str, Callable[[Cells, Sequence[Log], Reference], tuple[list[Cell], list[str]]]] = {
    OPEN: open_unlearning.cells,
    MUSE: muse.cells,
    TOFU: tofu.cells,
}


def find(path: Path) -> tuple[list[Run], list[str]]:
    """The logs at a path by model and tool, and sentences about files that were left out.

    Raises:
        UserError: nothing that is known here, or a file that bears the name of a log and cannot be
            read.
    """
    if not path.is_dir():
        log = opened(path, asked=True)
        if log is None:
            raise UserError(f"{shown(path)} holds no evaluation log that is known here.", KNOWN)
        return [Run(path.stem, log[0], [log[1]])], []
    found: dict[tuple[str, tuple[str, ...]], list[Log]] = {}
    left: list[str] = []
    for file in sorted(p for end in ("json", "jsonl") for p in path.rglob(f"*.{end}")):
        if any(part.startswith(".") for part in file.relative_to(path).parts) or not file.is_file():
            continue
        log = opened(file, asked=False)
        if log is None:
            left.append(file.relative_to(path).as_posix())
        else:
            found.setdefault((log[0], _whose(path, log[0], log[1])), []).append(log[1])
    if not found:
        raise UserError(f"{shown(path)} holds no evaluation log that is known here.", KNOWN)
    return _named(path, found), [
        f"Not logs, left out: {shown(', '.join(left[:5]))}{' ...' if len(left) > 5 else ''}."
    ] if left else []


def opened(file: Path, *, asked: bool) -> tuple[str, Log] | None:
    """A file's tool and content; None where it is no log that is known here.

    Raises:
        UserError: it cannot be read, though it was asked for or bears the name of a log.
    """
    if file.suffix != ".json" and asked:
        return OWN, Log(OWN, file, None)
    try:
        text = read_text(file)
        data = parse_json(text)
    except UserError:
        if asked or file.name.endswith(NAMES):
            raise
        return None
    except ValueError as error:
        if _is_lines(text):
            return OWN, Log(OWN, file, None)
        if asked or file.name.endswith(NAMES):
            raise UserError(
                f"{shown(file)} is not JSON: {shown(error)}.", "Was it copied in whole?"
            ) from error
        return None
    if isinstance(data, dict) and "metric" in data:
        return OWN, Log(OWN, file, None)
    if kind := tofu.kind_of(file, data):
        return TOFU, Log(kind, file, data)
    if kind := muse.kind_of(file, data):
        return MUSE, Log(kind, file, data)
    return (
        (OPEN, Log("", file, data))
        if isinstance(data, dict) and open_unlearning.is_log(data)
        else None
    )


def _is_lines(text: str) -> bool:
    """Whether a text is JSON lines of this project's: its first line is an object that names a
    metric.
    """
    first = next((line for line in text.split("\n") if line.strip()), "")
    try:
        found = parse_json(first)
    except ValueError:
        return False
    return isinstance(found, dict) and "metric" in found


def _whose(path: Path, tool: str, log: Log) -> tuple[str, ...]:
    """What tells the model of a log from the others below a folder."""
    rest = log.file.relative_to(path)
    if tool == OWN:
        return rest.with_suffix("").parts
    if tool == OPEN:
        return (*rest.parent.parts, log.file.stem.removesuffix("_EVAL").removesuffix("_SUMMARY"))
    parts = list(rest.parent.parts)
    if tool == MUSE:
        if log.kind in (muse.TEXTS, muse.MEANS) and parts and parts[-1] in muse.SIDES:
            parts.pop()
        parts = [p for p in parts if p not in muse.PARTS]
    return tuple(parts)


def _named(path: Path, found: Mapping[tuple[str, tuple[str, ...]], list[Log]]) -> list[Run]:
    """Runs with names that differ: the folder.

    The log's own name or the tool where one folder holds several.
    """
    short = {k: "/".join(k[1][:-1] if k[0] == OPEN else k[1]) or path.resolve().name for k in found}
    if len(set(short.values())) < len(short):
        twice = [n for n in short.values() if list(short.values()).count(n) > 1]
        short = {
            k: f"{n} ({k[1][-1] if k[0] == OPEN and k[1] else k[0]})" if n in twice else n
            for k, n in short.items()
        }
    return [Run(shown(short[key]), key[0], logs) for key, logs in found.items()]


def reference(auc_retrain: float | None, retrain: Path | None) -> Reference:
    """What is known of the model that never read the forget text.

    An AUC that was given goes before its log's.

    Raises:
        UserError: the log is of no tool that is known here, of several models, or holds nothing to
            compare with.
    """
    if retrain is None:
        return Reference(auc_retrain)
    runs, _ = find(retrain)
    if len(runs) > 1:
        raise UserError(
            f"{shown(retrain)} holds the logs of {len(runs)} models: {listed(runs)}.",
            "Give one of them with --retrain.",
        )
    (run,) = runs
    sides: Any = None
    ratios = None
    if run.tool == MUSE:
        sides = muse.reference_of(run.logs)
    elif run.tool == OPEN:
        sides, ratios = open_unlearning.reference_of(run.logs)
    elif run.tool == TOFU:
        ratios = tofu.reference_of(run.logs)
    return Reference(
        auc_retrain if auc_retrain is not None else usable(shown(retrain), side_auc(sides)),
        ratios,
        retrain,
    )


def listed(runs: Sequence[Run]) -> str:
    """The names of some runs for a message."""
    return ", ".join(r.name for r in runs[:12]) + (
        f" and {len(runs) - 12} more" if len(runs) > 12 else ""
    )


def cells_of(run: Run, corpus: str, model: str, rule: Rule, against: Reference) -> Found:
    """What one model's logs say."""
    variant = Variant(corpus=corpus, model=model, steps=(AS_GIVEN,))
    cells, notes = TOOLS[run.tool](Cells(variant, rule), run.logs, against)
    return Found(cells, notes)
