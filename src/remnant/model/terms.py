"""From the names of loss terms to the loss of a micro-step: only what some term reads is
computed.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from remnant.errors import UserError
from remnant.functional.hidden import Hidden
from remnant.functional.pieces import Head
from remnant.functional.robust import leaning_mean
from remnant.functional.view import IGNORED, View
from remnant.methods import loss, loss_reads, term_specs
from remnant.model.batches import Batches, Tokens, batches_of
from remnant.model.blocks import forward
from remnant.model.data import Batch
from remnant.model.examples import Pool, batch_of
from remnant.model.head import trained_head
from remnant.model.reference import Reference, build
from remnant.model.shelf import Shelf
from remnant.ranks import gathered, own
from remnant.readings import SIDES, Reading, Who, leader
from remnant.records import UnlearnSpec
from remnant.resolve import Method

Values = dict[Reading, View | Hidden | Tensor]


class Term(NamedTuple):
    """One resolved loss term, its weight in the sum, and what it reads in the order of its
    parameters. ``robust``: the temperature of its mean over a batch; None for the plain one.
    """

    label: str
    weight: float
    method: Method
    reads: tuple[Reading, ...]
    robust: float | None = None

    def load(self) -> Callable[[Values], Tensor]:
        """The function from the readings of a batch to its loss, [B]."""
        function = self.method.load()
        return lambda values: function(*(values[r] for r in self.reads), **self.method.params)

    def average(self, losses: Tensor) -> Tensor:
        """What a batch is worth whose texts have some losses [B]."""
        return losses.mean() if self.robust is None else leaning_mean(losses, self.robust)


def terms_of(spec: UnlearnSpec) -> list[Term]:
    """The resolved terms of a spec.

    Raises:
        UserError: unknown method, term, parameter or reading.
    """
    terms = [
        Term(t.use.rsplit(":", 1)[-1], t.weight, loss(t), loss_reads(t)) for t in term_specs(spec)
    ]
    return [t._replace(robust=spec.robust) if reads_forget_only(t) else t for t in terms]


class Stream(NamedTuple):
    """The examples of one side, what is read of them, and of every model that stands still what it
    says of them, if some of that is its.
    """

    pool: Pool
    wanted: frozenset[Reading]
    kept: Mapping[Who, Reference]


class Group(NamedTuple):
    """Sides that are drawn together: how many examples the leader has, the seed of their order,
    and the stream of every side that is read.
    """

    size: int
    seed: int
    streams: dict[str, Stream]


class Beside(NamedTuple):
    """What is there while reference values are made: the reinforced model, where a term reads it,
    and where the values are kept (in memory by default).
    """

    reinforced: PreTrainedModel | None = None
    shelf: Shelf | None = None


def make_streams(
    model: PreTrainedModel,
    terms: list[Term],
    pools: Mapping[str, Pool],
    pad: int,
    seed: int,
    beside: Beside | None = None,
) -> dict[str, Group]:
    """The sides that the terms read, grouped by the side that leads them, each with the reference
    values that they read, computed on the untouched model, and those of the reinforced one.
    """
    reinforced, shelf = beside or Beside()
    shelf = shelf or Shelf()
    still = {"reference": model} | ({"reinforced": reinforced} if reinforced else {})
    wanted = {reading for term in terms for reading in term.reads}
    groups: dict[str, Group] = {}
    for side in SIDES:
        own = frozenset(r for r in wanted if r.side == side)
        if not own:
            continue
        for name in (leader(side), side):
            if not pools[name].examples:
                raise UserError(
                    f"The {name} text is empty.", "Prepare the corpus again with text in it."
                )
        kept: dict[Who, Reference] = {}
        for who in sorted({r.model for r in own} - {"policy"}):
            ours = [r for r in own if r.model == who]
            kept[who] = build(still[who], pools[side].examples, pad, ours, shelf=shelf)
        group = groups.setdefault(leader(side), _group(leader(side), pools, seed))
        group.streams[side] = Stream(pools[side], own, kept)
    return groups


def _group(name: str, pools: Mapping[str, Pool], seed: int) -> Group:
    # One residue each, so that no two groups share an order under any two seeds. The formula is
    # part of every result: a third group needs seeds outside it.
    return Group(len(pools[name].examples), 2 * seed + ("forget", "retain").index(name), {})


def make_loss(
    model: PreTrainedModel,
    terms: list[Term],
    groups: Mapping[str, Group],
    batch: int | Tokens,
    pad: int,
    weigh: Callable[[Term, int], float] = lambda term, micro: term.weight,
) -> Callable[[int], tuple[Tensor, dict[str, float]]]:
    """The function that the training loop calls with a micro-step: it gives the weighted sum of the
    terms and its parts. ``batch``: how many texts of a side, or tokens. ``weigh``: the weight of a
    term in a micro-step.

    Raises:
        UserError: batches by tokens, and a text that is longer, or a term that reads texts of two
            sides, or beside others, which then are not as many.
    """
    for term in terms if isinstance(batch, Tokens) else ():
        sides = {r.side for r in term.reads}
        if sides != {leader(next(iter(sides)))}:
            raise UserError(
                f"{term.label} reads texts beside others, as many of the ones as of the others.",
                "Set batch_size instead of batch_tokens.",
            )
    functions = [(term, term.load()) for term in terms]
    read = _only_read(groups, terms)
    batches = {name: _batches(group, name, batch) for name, group in read.items() if group.streams}
    head = trained_head(model)
    said = Reading("forget", "policy", "view")

    def loss_at(micro: int) -> tuple[Tensor, dict[str, float]]:
        values: Values = {}
        shown = {name: found.shown(micro) for name, found in batches.items()}
        for name, turns in shown.items():
            values |= _read(model, read[name], own(turns), pad, head)
        parts: dict[str, float] = {}
        total = torch.zeros((), device=model.device)
        for term, function in functions:
            side = leader(term.reads[0].side)
            mean = term.average(gathered(function(values), len(shown[side])))
            value = mean * batches[side].share(micro)
            total = total + weigh(term, micro) * value
            parts[term.label] = value.item()
        if isinstance(view := values.get(said), View):
            mean = gathered(view.nll(), len(shown["forget"])).mean()
            parts["forget_nll"] = mean.item() * batches["forget"].share(micro)
        return total, parts

    return loss_at


def _batches(group: Group, name: str, batch: int | Tokens) -> Batches:
    """Of the side that leads a group."""
    stream = group.streams.get(name)
    # Where only what stands beside it is read, batches are by texts and nothing hangs on lengths.
    lengths = [len(e.ids) for e in stream.pool.examples] if stream else [0] * group.size
    return batches_of(batch, lengths, group.seed)


def reads_forget_only(term: Term) -> bool:
    """Whether a term looks at forget text, and what stands beside it, and at nothing else."""
    return all(leader(reading.side) == "forget" for reading in term.reads)


def reads_retain_only(term: Term) -> bool:
    """The same of retain text."""
    return all(leader(reading.side) == "retain" for reading in term.reads)


@torch.no_grad()
def mean_loss(
    model: PreTrainedModel, term: Term, groups: Mapping[str, Group], batch_size: int, pad: int
) -> float:
    """The mean of a retain term over all retain texts, each once beside what the first pass shows
    with it.
    """
    group, function = _only_read(groups, [term])["retain"], term.load()
    found = _in_order(model, group, batch_size, pad)
    return sum(float(gathered(function(v), n).sum()) for v, n in found) / group.size


def _in_order(
    model: PreTrainedModel, group: Group, batch_size: int, pad: int
) -> Iterator[tuple[Values, int]]:
    """What is read of every text of a group, in batches, and how many texts each has; of this
    rank's own texts.
    """
    head = trained_head(model)
    for start in range(0, group.size, batch_size):
        chosen = [(0, i) for i in range(start, min(start + batch_size, group.size))]
        yield _read(model, group, own(chosen), pad, head), len(chosen)


def forget_losses(
    model: PreTrainedModel,
    terms: list[Term],
    groups: Mapping[str, Group],
    batch_size: int,
    pad: int,
) -> Iterator[Tensor]:
    """The forget loss over the whole forget set in parts whose sum is its mean per text: every text
    once, in order, beside what the first pass shows with it.
    """
    forget = [(term, term.load()) for term in terms if reads_forget_only(term)]
    if not forget:
        raise UserError(
            "SURE needs a term that reads forget text only.", "Give such a term beside the others."
        )
    group = _only_read(groups, [term for term, _ in forget])["forget"]
    for values, number in _in_order(model, group, batch_size, pad):
        losses = [term.weight * gathered(f(values), number).sum() for term, f in forget]
        yield torch.stack(losses).sum() / group.size


def _only_read(groups: Mapping[str, Group], terms: list[Term]) -> dict[str, Group]:
    """The groups with what some terms read, and without what they do not."""
    wanted = {reading for term in terms for reading in term.reads}

    def kept(group: Group) -> dict[str, Stream]:
        streams = group.streams.items()
        return {n: s._replace(wanted=s.wanted & wanted) for n, s in streams if s.wanted & wanted}

    return {name: group._replace(streams=kept(group)) for name, group in groups.items()}


def _read(
    model: PreTrainedModel,
    group: Group,
    chosen: list[tuple[int, int]],
    pad: int,
    head: Head | None,
) -> Values:
    """Everything that is wanted of some turns of one group."""
    found: Values = {}
    for stream in group.streams.values():
        places = [stream.pool.place(number, index) for number, index in chosen]
        examples = [stream.pool.examples[place] for place in places]
        batch = batch_of(examples, pad, model.device)
        found |= _of_policy(model, batch, [r for r in stream.wanted if r.model == "policy"], head)
        for who, reference in stream.kept.items():
            own = (r for r in stream.wanted if r.model == who)
            found |= {r: reference.read(r, places, batch) for r in own}
    return found


def _of_policy(
    model: PreTrainedModel, batch: Batch, wanted: list[Reading], head: Head | None
) -> Values:
    """What the model in training says of a batch, by one pass."""
    if not wanted:
        return {}
    layers = {r.layer for r in wanted if r.layer is not None}
    views = any(r.what == "view" for r in wanted)
    given, states = forward(model, batch, layers, logits=views, head=head)
    found: Values = {}
    for reading in wanted:
        if reading.layer is not None:
            counts = batch.labels != IGNORED
            found[reading] = Hidden(states[reading.layer], counts, batch.weights)
        elif given is not None:
            found[reading] = View(given, batch.labels, batch.weights)
    return found
