"""Which metrics are measured on which items, and what is asked for them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from remnant.corpus import ITEM_SETS, METRICS, counted_too, split_of
from remnant.corpus.base import Item, ItemSet
from remnant.corpus.muse import privleak_texts
from remnant.errors import UserError
from remnant.evaluate.collect import Answers
from remnant.evaluate.items import Manner, items_of
from remnant.evaluate.reads import Wanted, asked, needs
from remnant.evaluate.requests import CHATS, Backend, Reading, Request
from remnant.functional.segments import beginning
from remnant.functional.tokens import COLUMNS
from remnant.methods import metric, metric_names
from remnant.readings import METRIC_READINGS, by_reference, of_measured
from remnant.records import MeasureSpec, MetricSpec
from remnant.resolve import Method

UNREAD_WORDS = 48


class Plan(NamedTuple):
    """One metric on one set of items; ``split`` tells the sets of one metric apart."""

    name: str
    method: Method
    on: str
    split: str
    wanted: Wanted


class Schedule(NamedTuple):
    """What can be measured, the items by the name of their set, and why the rest cannot."""

    plans: list[Plan]
    sets: dict[str, ItemSet]
    absent: dict[str, str]

    @property
    def on_items(self) -> list[Plan]:
        """The metrics that read what was asked and answered."""
        return [p for p in self.plans if "view" not in p.method.reads]

    @property
    def on_views(self) -> list[Plan]:
        """The metrics that read a View of a whole text."""
        return [p for p in self.plans if "view" in p.method.reads]


def scheduled(
    spec: MeasureSpec,
    corpus: Path,
    card: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    backend: Backend,
    has_reference: bool,
) -> Schedule:
    """All that a spec asks for.

    Raises:
        UserError: a user's metric reads what its set of items has not.
    """
    plans: list[Plan] = []
    sets: dict[str, ItemSet] = {}
    absent: dict[str, str] = {}
    for plan in _named(spec, corpus, card):
        name = plan.on
        if name in ITEM_SETS and ITEM_SETS[name].form == spec.form:
            absent[plan.name] = "all questions are asked in that form"
            continue
        if name not in sets:
            found = items_of(name, corpus, card, tokenizer, Manner(spec.form, spec.system))
            if isinstance(found, str):
                absent[plan.name] = found
                continue
            sets[name] = found._replace(
                items=[i for i in found.items if spec.half in ("all", i.half)]
            )
        who = "server" if spec.endpoint else "engine"
        if CHATS not in backend.offers and not all(i.framed for i in sets[name].items):
            absent[plan.name] = f"the {who} is not asked in a chat template from here"
        elif reason := _unanswered(plan, backend.offers, has_reference, who):
            absent[plan.name] = reason
        else:
            plans.append(plan)
    return Schedule(plans, sets, absent)


def first(of: Schedule) -> list[Request]:
    """What the measured model is asked."""
    found: list[Request] = []
    for p in of.plans:
        found += [
            r
            for item in of.sets[p.on].items
            for read in of_measured(p.method.reads)
            for r in asked(read, item, of.sets[p.on], p.wanted)
        ]
    return found


def second(schedule: Schedule, answers: Answers) -> list[Request]:
    """What the reference model is asked: the texts, and what the measured model has written."""
    found: list[Request] = []
    for p in schedule.plans:
        of = schedule.sets[p.on]
        for read in by_reference(p.method.reads):
            found += [
                request
                for item in of.items
                for request in _of_reference(read, item, of, p.wanted, answers)
            ]
    return found


def _of_reference(
    read: str, item: Item, of: ItemSet, wanted: Wanted, answers: Answers
) -> list[Request]:
    """What the reference is asked for one reading of one item; nothing where nothing was
    written.
    """
    if METRIC_READINGS[read].of is None:
        return asked(read, item, of, wanted)
    request = on_generated(item, of, wanted, answers)
    return [request] if request else []


def on_generated(item: Item, of: ItemSet, wanted: Wanted, answers: Answers) -> Reading | None:
    """What was written for an item, to be read behind its prompt; None if nothing was."""
    (request,) = asked("generated", item, of, wanted)
    text = answers[request]
    return (
        Reading(text, item.context + item.prompt, framed=item.framed)
        if isinstance(text, str) and text.strip()
        else None
    )


def _named(spec: MeasureSpec, corpus: Path, card: Mapping[str, Any]) -> list[Plan]:
    names = list(metric_names(spec.metrics))
    names += counted_too(names, corpus, card["absent"], spec.form)
    found = []
    for name in dict.fromkeys(names):
        method, entry = metric(name), METRICS[name]
        wanted = _wanted(spec, corpus, method, entry.columns)
        found += [Plan(name, method, on, split_of(name, on), wanted) for on in entry.on]
    return found + [_of_user(spec, corpus, extra) for extra in spec.extra]


def _of_user(spec: MeasureSpec, corpus: Path, extra: MetricSpec) -> Plan:
    method = metric(extra)
    whole = [name for name, entry in ITEM_SETS.items() if entry.asked == "whole"]
    if "view" in method.reads and extra.on not in whole:
        raise UserError(
            f"The metric '{extra.use}' reads a view.",
            "Set on = " + " or ".join(f'"{name}"' for name in whole) + ".",
        )
    return Plan(
        extra.name,
        method,
        extra.on,
        extra.on,
        _wanted(spec, corpus, method, COLUMNS),
    )


def _wanted(spec: MeasureSpec, corpus: Path, method: Method, columns: tuple[str, ...]) -> Wanted:
    unread = ""
    if "behind_prefix" in method.reads and (corpus / "privleak/holdout.json").is_file():
        unread = beginning(privleak_texts(corpus, "holdout")[-1], UNREAD_WORDS)
    return Wanted(
        columns, spec.samples, spec.temperature, spec.seed, spec.decoding == "paper-code", unread
    )


def _unanswered(plan: Plan, offers: frozenset[str], has_reference: bool, who: str) -> str:
    """Why a metric cannot be measured with this backend; empty if it can."""
    reads = plan.method.reads
    if not has_reference and by_reference(reads):
        return "no reference model was given"
    lacking = sorted(needs(reads, plan.wanted.columns) - offers)
    return f"the {who} does not say this of a text: {', '.join(lacking)}" if lacking else ""
