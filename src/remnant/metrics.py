"""What a metric says of itself, as data: what it counts as, and which numbers its rows make.

No torch. Who judges, draws or prints asks these records and knows no metric by its name.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

# What a metric counts as: what plain asking finds of forget text, what a useful model keeps, a test
# that may still tell forget text where plain asking finds nothing, or a number that is only shown.
Role = Literal["knowledge", "utility", "test", "shown"]
# Kinds of tests. Those of an access must be made, and be silent, before a verdict passes.
Kind = Literal[
    "given beginning",
    "samples",
    "probability per token",
    "membership",
    "relearning",
    "damaged weights",
    "soft prompt",
    "more tests",
]
BEGUN: Kind = "given beginning"
SAMPLED: Kind = "samples"
EXACT: Kind = "probability per token"
MEMBERSHIP: Kind = "membership"
MORE: Kind = "more tests"
NEEDED_KINDS = (BEGUN, SAMPLED, EXACT, MEMBERSHIP)
RELEARNED: Kind = "relearning"
DAMAGED: Kind = "damaged weights"
PROMPTED: Kind = "soft prompt"
WEIGHT_KINDS = (RELEARNED, DAMAGED, PROMPTED)
# What is seen of a model: only what it writes, what it says of every token of a text as well, or
# also its weights, which may be changed and asked again.
Access = Literal["text", "probabilities", "weights"]
KINDS_BY: Mapping[Access, tuple[Kind, ...]] = {
    "text": (BEGUN, SAMPLED),
    "probabilities": NEEDED_KINDS,
    "weights": (*NEEDED_KINDS, *WEIGHT_KINDS),
}
# Where the number lies if the model knows the items it is asked about.
Known = Literal["high", "apart", "unsaid"]
# The sides of the membership tests: text to be forgotten, and text like it that was never read.
MEMBERS, OTHERS = "forget", "holdout"
SHARE = "0 to 100"


class Column(NamedTuple):
    """The rows of one metric on one set of items; ``split`` tells the sets of one metric apart.

    >>> str(Column("privleak", "forget")), str(Column("verbmem"))
    ('privleak/forget', 'verbmem')
    """

    metric: str
    split: str = ""

    def __str__(self) -> str:
        """As messages name it."""
        return f"{self.metric}/{self.split}" if self.split else self.metric


class Reduce(NamedTuple):
    """How rows become a number.

    ``function``: "module:function", a reduction of ``functional.reductions``'s form. ``name``: of
    the number; {} stands for the metric, with its set where it has several. ``of``: the splits that
    one number is made of, a group each; without any every set makes a number of its own.
    ``unread``: the groups of the model that never read the text follow the own ones.
    """

    function: str
    name: str = "{}"
    of: tuple[tuple[str, ...], ...] = ()
    unread: bool = False


_REDUCTIONS = "remnant.functional.reductions:"
MEAN = Reduce(_REDUCTIONS + "mean")


def attack(name: str = "{}") -> tuple[Reduce, ...]:
    """AUC and true positives at one percent of false ones, of both sides together."""
    sides = ((MEMBERS, OTHERS),)
    return (
        Reduce(_REDUCTIONS + "area", name, sides),
        Reduce(_REDUCTIONS + "caught", f"{name}_tpr", sides),
    )


class Metric(NamedTuple):
    """One built-in metric: where its function lives, and what it is measured on and counts as.

    ``path``: "module:function". ``known``: where its number lies if the model knows the text that
    the items are about, forget text or retain text alike: high, apart from 0, or it does not say.
    ``on``: sets of items. ``title``: the heading of its table and chart; one without stands among
    the further numbers. ``kind``: of a test; ``needed``: no verdict passes without it. ``chance``:
    what guessing scores, 0 to 1. ``instead_of``: the metric in whose absence it is measured.
    ``beside``: the published one whose answers it scores too, wherever that is measured. ``told``:
    what a target does that is good at it, said of a percentage. ``params``: keyword arguments that
    are not the function's defaults. ``columns``: which fields of Tokens it reads. ``span``: the
    range of the number that is shown.
    """

    path: str
    version: int
    meaning: str
    source: str
    on: tuple[str, ...]
    role: Role = "shown"
    known: Known = "unsaid"
    title: str = ""
    kind: Kind | None = None
    needed: bool = False
    reduce: tuple[Reduce, ...] = (MEAN,)
    chance: float = 0.0
    instead_of: str = ""
    beside: str = ""
    told: str = ""
    params: Mapping[str, object] = {}
    columns: tuple[str, ...] = ("logp",)
    unit: str = "x100"
    span: str = SHARE

    @property
    def is_share(self) -> bool:
        """Whether the number of every item is a share, 0 to 1."""
        return self.reduce == (MEAN,) and self.span == SHARE


class Number(NamedTuple):
    """One number of a summary: its name, its reduction, and the columns of each of its groups.

    Columns of one group are aligned over the items that all of them have. ``unread``: as in
    ``Reduce``. ``unit``: by what it is multiplied when it is shown.
    """

    name: str
    function: str
    groups: tuple[tuple[Column, ...], ...]
    unread: bool = False
    unit: float = 100.0

    @property
    def columns(self) -> tuple[Column, ...]:
        """All of them."""
        return tuple(column for group in self.groups for column in group)


def numbers_of(name: str, metric: Metric, splits: tuple[str, ...]) -> Iterator[Number]:
    """The numbers that one metric makes.

    Args:
        name: of the metric.
        metric: its record.
        splits: of its sets of items, one of them "" where there is one set only.
    """
    unit = 100.0 if metric.unit else 1.0
    for how in metric.reduce:
        for group in how.of or tuple((split,) for split in splits):
            single = len(group) == 1 and group[0]
            shown = how.name.format(f"{name}_{group[0]}" if single else name)
            columns = tuple((Column(name, split),) for split in group)
            yield Number(shown, how.function, columns, how.unread, unit)
