"""All benchmarks, and what they bring taken together. No torch.

To add one, write its file and name it in ``BENCHMARKS``.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from remnant.corpus import muse, probes, tofu, wmdp
from remnant.corpus.base import Benchmark, Item, Reader, SetEntry
from remnant.metrics import MEMBERSHIP, NEEDED_KINDS, Column, Kind, Metric, Number, Role, numbers_of

BENCHMARKS: Mapping[str, Benchmark] = {
    "muse": muse.BENCHMARK,
    "probes": probes.BENCHMARK,
    "tofu": tofu.BENCHMARK,
    "wmdp": wmdp.BENCHMARK,
}
READERS: Mapping[str, Reader] = {
    name: b.reader for name, b in BENCHMARKS.items() if b.reader is not None
}
ITEM_SETS: Mapping[str, SetEntry] = {
    name: entry for b in BENCHMARKS.values() for name, entry in b.sets.items()
}
METRICS: Mapping[str, Metric] = {
    name: metric for b in BENCHMARKS.values() for name, metric in b.metrics.items()
}

# What is made of several metrics, or of one beside the numbers that it makes by itself.
COMBINED: tuple[Number, ...] = tuple(n for b in BENCHMARKS.values() for n in b.combined)


def of_role(role: Role) -> tuple[str, ...]:
    """The metrics of a role, in the order of the catalogue.

    >>> of_role("utility")[:2]
    ('knowmem_retain', 'verbmem_retain')
    """
    return tuple(name for name, metric in METRICS.items() if metric.role == role)


def of_kind(kind: Kind) -> tuple[str, ...]:
    """The tests of a kind, in the order of the catalogue."""
    return tuple(name for name, metric in METRICS.items() if metric.kind == kind)


def needed(kind: Kind) -> tuple[str, ...]:
    """The tests of a kind that no verdict passes without.

    >>> needed("membership")
    ('privleak',)
    """
    return tuple(name for name in of_kind(kind) if METRICS[name].needed)


def split_of(name: str, on: str) -> str:
    """How a set of items is told from the others of a built-in metric; "" where there is one."""
    return ITEM_SETS[on].split if len(METRICS[name].on) > 1 else ""


def lacking(name: str, corpus: Path, absent: Mapping[str, str]) -> str:
    """Why a prepared corpus has no items of a set; empty if it has.

    Args:
        name: of the set.
        corpus: the folder.
        absent: what its card says that it lacks.
    """
    entry = ITEM_SETS[name]
    if entry.absent:
        return str(absent.get(entry.absent, ""))
    return "" if (corpus / f"{entry.file}.json").is_file() else entry.without


def brought() -> tuple[str, ...]:
    """The knowledge and utility that only some benchmark brings: measured wherever a corpus has it
    and any knowledge is measured, so that no verdict passes by what was not asked.
    """
    named = (*of_role("knowledge"), *of_role("utility"))
    plain = (n for n in named if not METRICS[n].instead_of and not METRICS[n].beside)
    return tuple(filter(_may_be_absent, plain))


def beside(names: Iterable[str]) -> tuple[str, ...]:
    """The metrics that are scored on the same answers as some others.

    >>> beside(["verbmem", "knowmem_retain"])
    ('knowmem_retain_recall', 'knowmem_retain_contained')
    """
    named = set(names)
    return tuple(name for name, metric in METRICS.items() if metric.beside in named)


def _may_be_absent(metric: str) -> bool:
    return all(ITEM_SETS[on].without for on in METRICS[metric].on)


def counted_too(
    names: Sequence[str], corpus: Path, absent: Mapping[str, str], form: str
) -> list[str]:
    """The metrics that are measured besides those that were named.

    Args:
        names: those that were named.
        corpus: the folder of the prepared corpus.
        absent: what its card says that it lacks.
        form: in which questions are asked. Where it is not the published one, they are asked as
            published too: a model may be silent in one form only.
    """
    stand_in = [n for n, m in METRICS.items() if m.instead_of in absent and m.instead_of in names]
    knows = any(name in of_role("knowledge") for name in names)

    def there(metric: str) -> bool:
        return not any(lacking(on, corpus, absent) for on in METRICS[metric].on)

    otherwise = [n for n in METRICS if form_of(n) not in ("", form) and not METRICS[n].beside]
    more = list(filter(there, [*brought(), *otherwise])) if knows else []
    return [n for n in (*stand_in, *beside([*names, *more]), *more) if n not in names]


def form_of(name: str) -> str:
    """The form in which a built-in metric's questions are always asked; "" where it is chosen."""
    return next((ITEM_SETS[on].form for on in METRICS[name].on), "")


def plain_items(role: Role, corpus: Path, absent: Mapping[str, str]) -> list[Item]:
    """The items of a prepared corpus that metrics of a role are measured on, as its files have
    them: no answer is cut, no prompt turned. What is asked in a second form is there once.

    Args:
        role: of the metrics; one that stands in for another counts where that one is absent.
        corpus: the folder.
        absent: what its card says that it lacks.
    """
    metrics = [METRICS[name] for name in of_role(role) if not form_of(name)]
    sets = [on for m in metrics if not m.instead_of or m.instead_of in absent for on in m.on]
    there = [on for on in dict.fromkeys(sets) if not lacking(on, corpus, absent)]
    return [item for on in there for item in ITEM_SETS[on].items(corpus)]


def columns_of(name: str) -> tuple[Column, ...]:
    """The columns of a built-in metric, one for each of its sets."""
    return tuple(Column(name, split_of(name, on)) for on in METRICS[name].on)


def set_of(column: Column) -> str:
    """The set of items of a column; a metric of the user's bears its name as split."""
    if column.metric not in METRICS:
        return column.split
    return METRICS[column.metric].on[columns_of(column.metric).index(column)]


def is_beside(column: Column) -> bool:
    """Whether a column scores answers that another one of its role scores as published."""
    return column.metric in METRICS and bool(METRICS[column.metric].beside)


def published(column: Column) -> Column:
    """The column that scores the same answers as published; itself where it does."""
    return Column(METRICS[column.metric].beside) if is_beside(column) else column


def is_text(column: Column) -> bool:
    """Whether the items of a built-in metric's column are words that are written or read on."""
    return column.metric in METRICS and ITEM_SETS[set_of(column)].asked in ("text", "answer")


@cache
def numbers_by_column() -> Mapping[Column, tuple[Number, ...]]:
    """The numbers that every column of the built-in metrics has a part in."""
    found: dict[Column, tuple[Number, ...]] = {}
    for name, metric in METRICS.items():
        for number in numbers_of(name, metric, tuple(c.split for c in columns_of(name))):
            for column in number.columns:
                found[column] = (*found.get(column, ()), number)
    return found


def headlines(names: Iterable[str]) -> list[str]:
    """Those of some numbers that have tables and charts of their own: knowledge, utility, tests.

    >>> headlines(["mia_loss", "privleak", "knowmem_retain", "verbmem"])
    ['verbmem', 'knowmem_retain', 'privleak']
    """
    there = set(names)
    roles: tuple[Role, ...] = ("knowledge", "utility", "test", "shown")
    return [n for role in roles for n in of_role(role) if n in there and METRICS[n].title]


def short_title(name: str) -> str:
    """The first words of a metric's title, up to its colon; the name where it has none."""
    return METRICS[name].title.partition(":")[0] if name in METRICS else name


METRIC_GROUPS: Mapping[str, tuple[str, ...]] = {
    **{name: members for b in BENCHMARKS.values() for name, members in b.groups.items()},
    "tests": tuple(name for kind in NEEDED_KINDS for name in needed(kind)),
    "membership": of_kind(MEMBERSHIP),
    "all": tuple(METRICS),
}
