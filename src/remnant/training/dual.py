"""Retain losses held under a bound: weights that rise where a loss is above it, else fall."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel

from remnant.model.terms import Group, Term, mean_loss, reads_retain_only
from remnant.records import DualSpec, UnlearnSpec


def moved(weight: float, losses: Iterable[float], bound: float, size: float) -> float:
    """A dual variable after some steps: at each, max(0, weight + size (loss - bound)).

    Args:
        weight: before them.
        losses: what the retain loss was at each.
        bound: what it is held under.
        size: of the step.

    Source: Reisizadeh et al. 2025 (arXiv 2506.05314), the primal-dual method. The code released
    with it moves at every micro-batch.

    >>> moved(1.0, [0.5, 0.25], 0.25, size=4.0)
    2.0
    """
    for loss in losses:
        weight = max(0.0, weight + size * (loss - bound))
    return weight


@dataclass
class Dual:
    """The weights of a run's terms at every step, from the log of the steps before it, so that a
    run that was cut goes on with the same.

    ``bounds``: of every term that is held under one, by its label. ``log``: of the steps, one JSON
    object a line. ``accumulate``: micro-steps of a step. ``seen``: what the log says of the steps
    that were looked at.
    """

    held: DualSpec
    bounds: Mapping[str, float]
    log: Path
    accumulate: int = 1
    seen: list[dict[str, float]] = field(init=False, default_factory=list)

    def weigh(self, term: Term, micro: int) -> float:
        """The weight of a term in a micro-step."""
        if term.label not in self.bounds:
            return term.weight
        step = micro // self.accumulate
        if step > len(self.seen):
            lines = self.log.read_text(encoding="utf-8").splitlines()[len(self.seen) : step]
            self.seen += map(json.loads, lines)
        losses = [record[term.label] for record in self.seen[self.held.warmup : step]]
        return moved(term.weight, losses, self.bounds[term.label], self.held.size)


def make_dual(
    model: PreTrainedModel,
    spec: UnlearnSpec,
    terms: list[Term],
    groups: Mapping[str, Group],
    pad: int,
    log: Path,
) -> Dual:
    """The weights of a run, every retain term held under what the untouched model has of it and a
    margin; none is held where the spec does not say so.
    """
    held = spec.dual or DualSpec()
    bounds = {
        term.label: mean_loss(model, term, groups, spec.batch_size, pad) + held.margin
        for term in terms
        if spec.dual and reads_retain_only(term)
    }
    return Dual(held, bounds, log, spec.accumulate)
