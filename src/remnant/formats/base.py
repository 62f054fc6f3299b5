"""What one format of weights says of itself, as a value, and the words in which its parameters are
bounded.
"""

from collections.abc import Callable
from math import inf
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from pydantic import AfterValidator

from remnant.records.base import Record

P = TypeVar("P", bound=Record)
# Kernels read whole groups of 8 columns (llm-compressor, torchao, hqq); more than 65536 columns
# has no row.
GROUP_STEP, MOST_GROUP = 8, 1 << 16


class Kind(Protocol):
    """What every transform says of itself, a format of weights among them (``Format``)."""

    @property
    def key(self) -> str:
        """Unique among all."""

    @property
    def path(self) -> str:
        """The function that does it: "module:function"."""

    @property
    def version(self) -> int:
        """Raised when results change."""

    @property
    def params(self) -> type[Record]:
        """The record of its parameters."""

    @property
    def read(self) -> Callable[[str], Record | None]:
        """The parameters that a short name stands for, None if it is another's."""

    @property
    def write(self) -> Callable[[Any], str | None]:
        """The short name of some parameters."""

    @property
    def names(self) -> tuple[str, ...]:
        """Short names to suggest."""

    @property
    def by_text(self) -> bool:
        """Whether text decides the result, so that weights alone do not tell it."""


class Grid(NamedTuple):
    """What a forecast from weights alone must know of a grid.

    ``kind``: its arithmetic, one of `forecast/kernels.KINDS`. ``block``: so many entries share a
    scale (0: a row; -1: the whole weight). ``low``, ``high``: the codes' ends. ``divisor``: the
    largest magnitude of a block over it is the step. ``limit``: the largest magnitude that scales
    and levels can hold. ``over_rows``: blocks go on over the ends of rows. ``by_weight``: of a grid
    that keeps its scales relative to a second one, shared by the whole weight, that scale from the
    weight's largest magnitude; it stands in place of the divisor, in float32.
    """

    kind: str
    block: int
    low: float
    high: float
    divisor: float
    limit: float = inf
    over_rows: bool = False
    by_weight: Callable[[float], float] | None = None
    name: str = ""

    @property
    def whole(self) -> bool:
        """Whether the largest magnitude of the whole weight decides the codes."""
        return self.block < 0 or self.by_weight is not None


class Format(NamedTuple, Generic[P]):
    """One format, by the name under which specs and manifests hold it (``key``).

    Attributes:
        key: unique among all formats.
        path: "module:function" that quantizes.
        version: enters the identity of every artefact; raised when results change.
        meaning: in a few words.
        source: where it is defined.
        params: the record of its parameters, with the function's names and defaults; what the
            library would refuse is refused there, in words that follow "the format:".
        read: the parameters that a short name stands for, None if it is none of this format's;
            a ValidationError where they are out of bounds.
        write: the short name of some parameters, as near as there is one; None where there is none.
        names: short names to suggest.
        by_text: calibration text decides the codes, so that weights alone do not tell them.
        saver: "module:function" that writes files which a runtime opens; empty for grids to study.
        opener: "module:function" that gives the logits of such files by that runtime.
        unopened: why no runtime opens the files with some parameters, None where one does.
        extra: the optional part of the installation that it needs.
        library: the module without which nothing of it can be made; empty where its function sees
            to that before long work.
        grid: what a forecast must know; None where only quantizing tells.
    """

    key: str
    path: str
    version: int
    meaning: str
    source: str
    params: type[P]
    read: Callable[[str], P | None]
    write: Callable[[P], str | None]
    names: tuple[str, ...] = ()
    by_text: bool = False
    saver: str = ""
    opener: str = "remnant.runtimes.order:answers"
    unopened: Callable[[P], str | None] = lambda params: None
    extra: str = ""
    library: str = ""
    grid: Callable[[P], Grid] | None = None

    @property
    def install(self) -> str:
        """How to get what it needs."""
        return f"Install it in Remnant's folder with: pip install -e '.[{self.extra}]'"


# A format whatever its parameters are: their record is known where it is defined.
AnyFormat = Format[Any]


def one_of(what: str, *known: Any) -> AfterValidator:
    """A parameter that is one of some values; ``what`` begins the sentence that refuses others."""

    def check(value: Any) -> Any:
        if value in known:
            return value
        least = ", ".join(map(str, known[:-1]))
        raise ValueError(f"{what} {least} or {known[-1]}, not {_said(value)!r}.")

    return AfterValidator(check)


def within(what: str, low: float, high: float) -> AfterValidator:
    """A parameter between two numbers, both included."""

    def check(value: float) -> float:
        if low <= value <= high:
            return value
        raise ValueError(f"{what} {low} to {high}, not {_said(value)}.")

    return AfterValidator(check)


def _whole_groups(value: int) -> int:
    if 0 <= value <= MOST_GROUP and value % GROUP_STEP == 0:
        return value
    raise ValueError(
        f"groups are multiples of {GROUP_STEP} columns up to {MOST_GROUP}, or 0 for whole rows, "
        f"not {_said(value)}."
    )


# Columns that share a scale in the libraries' formats.
grouped = AfterValidator(_whole_groups)


def _said(value: Any) -> str:
    return str(value)[:40]
