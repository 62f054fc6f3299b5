"""Trials of many methods, the same number of each, as ordinary pieces of the store.

What is tried next follows from the seed and from what came of the trials before, so a search that
is started again asks for the same trials and finds those that were made. No torch until something
has to be made.
"""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from remnant import api
from remnant.catalog import LOSSES, METHODS
from remnant.corpus import METRIC_GROUPS, METRICS
from remnant.errors import Diverged, UserError, unknown
from remnant.flow import plan as planning
from remnant.flow.node import Input, Node
from remnant.flow.place import Outside
from remnant.flow.sources import merge_node
from remnant.flow.store import Store
from remnant.metrics import Role
from remnant.parsing import parse
from remnant.quiet import unchanged
from remnant.records import MeasureSpec, UnlearnSpec, Variant, saves_apart
from remnant.report.pareto import LEAST, Means, left_of, means_on
from remnant.resolve import keywords
from remnant.tuning.objective import FLOOR, WORST, objective
from remnant.tuning.spaces import Space, Span, fixed, space_of, wants_alternatives, wants_reinforced
from remnant.weightfiles import config_of

ALL = "all"
INSTALL = "Install it in Remnant's folder with: pip install -e '.[tune]'"
# A run whose own probe falls so far ends: what it keeps lies before, and few come back from there.
PRUNED: Mapping[str, Any] = {"stop_utility": 0.8}
# Knowledge and utility as published, asked on one half; a verdict's stronger tests cost more than
# most of a trial.
ASKED = tuple(n for n in METRIC_GROUPS["muse"] if METRICS[n].role in ("knowledge", "utility"))
DEV = MeasureSpec(metrics=ASKED, half="dev")
# Settings drawn at random before the sampler goes by what it has seen: half of them, and no more
# than Optuna's own default.
FEWEST_DRAWN, MOST_DRAWN = 2, 10
# What configurations call the number of blocks.
BLOCKS = ("num_hidden_layers", "n_layer", "n_layers")


class Question(NamedTuple):
    """What is searched.

    ``methods``: of the catalogue, or "all". ``budget``: trials of each. ``seed``: of the sampler
    and of every run. ``floor``: least share of the target's utility. ``settings``: fields of
    ``UnlearnSpec`` that every run has, and under a method's name those of its runs alone; they are
    not searched. ``spans``: bounds in the place of the table's, "lr" or "rmu.lr".
    """

    methods: tuple[str, ...] = (ALL,)
    budget: int = 20
    seed: int = 0
    floor: float = FLOOR
    settings: Mapping[str, Any] = MappingProxyType({})
    spans: Space = MappingProxyType({})


class Bench(NamedTuple):
    """What all trials share. ``known``: what the target knows on the development half.
    ``progress``: how far each piece of work is, is shown on stderr.
    """

    store: Store
    target: Input
    corpus: Input
    question: Question
    known: Means
    progress: bool = True


class Trial(NamedTuple):
    """One setting of a method: what was drawn, and what came of it on the development half.

    ``left``, ``utility``: shares of the target's; NaN where there is no number, and ``said`` tells
    why. ``value``: of the objective. ``model``: what was made. ``seconds``: of its making and
    measuring, as recorded.
    """

    drawn: Mapping[str, float]
    value: float
    left: float = math.nan
    utility: float = math.nan
    model: Node | None = None
    seconds: float = 0.0
    said: str = ""


class Searched(NamedTuple):
    """All trials of one method, in their order."""

    method: str
    space: Space
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The first of those with the least value."""
        return min(self.trials, key=lambda trial: trial.value)

    @property
    def useful(self) -> bool:
        """Whether the best one keeps enough utility."""
        return self.best.value <= 1


Attempt = Callable[[Mapping[str, float]], Trial]
Heard = Callable[[str, Sequence[Trial]], None]


def settings_of(method: str, question: Question) -> dict[str, object]:
    """The fields of a method's runs that are not searched.

    Raises:
        UserError: what stands under the method's name are no settings.
    """
    common = {k: v for k, v in question.settings.items() if k not in METHODS}
    own = question.settings.get(method, {})
    if not isinstance(own, dict):
        raise UserError(f"{method} = {own!r} is no setting.", f"Write --set {method}.KEY=VALUE.")
    given = {**PRUNED, "seed": question.seed, **common, **own}
    if not wants_reinforced(method):
        given.pop("reinforced", None)
    if not wants_alternatives(method):
        return {name: value for name, value in given.items() if name != "alternatives"}
    return {"examples": "questions", **given}


def spec_of(method: str, question: Question, drawn: Mapping[str, float]) -> UnlearnSpec:
    """One run of a method.

    Raises:
        UserError: a setting is wrong.
    """
    told = with_drawn(settings_of(method, question) | {"method": method}, drawn)
    return parse(UnlearnSpec, told, f"tune {method}")


def with_drawn(told: dict[str, object], drawn: Mapping[str, float]) -> dict[str, object]:
    """Settings of a run with what was drawn, params among the method's own.

    >>> with_drawn({"params": {"layer": 1}}, {"lr": 1e-3, "params.scale": 6.5})
    {'params': {'layer': 1, 'scale': 6.5}, 'lr': 0.001}
    """
    params = {n.removeprefix("params."): v for n, v in drawn.items() if n.startswith("params.")}
    told |= {name: value for name, value in drawn.items() if not name.startswith("params.")}
    given = told.get("params", {})
    if params and isinstance(given, dict):
        told["params"] = given | params
    return told


def spaces(store: Store, target: Input, question: Question) -> dict[str, dict[str, Span]]:
    """What is searched of every method that is asked about.

    Raises:
        UserError: an unknown method or setting, or bounds that nothing has.
    """
    names = _all(question) if question.methods == (ALL,) else question.methods
    for name in names:
        if name not in METHODS:
            raise unknown("method", name, METHODS)
    if both := question.spans.keys() & fixed(question.settings):
        raise UserError(f"{min(both)} is fixed and has bounds too.", "Give one of the two.")
    blocks = blocks_of(store, target)
    found = {
        name: space_of(name, settings_of(name, question), blocks) | _bounds(name, question)
        for name in names
    }
    known = {field for name in names for field in _tunable(name)}
    under = {f"{name}.{field}" for name in names for field in _tunable(name)}
    if strange := question.spans.keys() - known - under:
        raise unknown("setting", min(strange), known)
    return found


def _all(question: Question) -> tuple[str, ...]:
    """All methods; those that read a reinforced model only where one is given."""
    given = "reinforced" in question.settings
    return tuple(m for m in METHODS if given or not wants_reinforced(m))


def _tunable(method: str) -> set[str]:
    """All that could be searched of a method."""
    terms = (*METHODS[method].forget, *METHODS[method].retain)
    own = {f"params.{name}" for use in terms for name in keywords("loss", use, LOSSES)}
    return {"lr", "steps", *own} | ({"alpha"} if METHODS[method].retain else set())


def _bounds(method: str, question: Question) -> dict[str, Span]:
    """The user's own bounds of a method: those of all methods, then those under its name."""
    begun = f"{method}."
    under = {n.removeprefix(begun): s for n, s in question.spans.items() if n.startswith(begun)}
    told = {**question.spans, **under}
    free = _tunable(method) - fixed(settings_of(method, question))
    return {name: told[name] for name in sorted(free & told.keys())}


def blocks_of(store: Store, model: Input) -> int | None:
    """How many blocks a model has, by its configuration; None where that does not say."""
    folder = Path(model.source) if isinstance(model, Outside) else store.path(model.name)
    config = config_of(folder) if folder.is_dir() else {}
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        for name in BLOCKS:
            if isinstance(count := part.get(name), int):
                return count
    return None


def planned(bench: Bench, found: Mapping[str, Space]) -> tuple[dict[str, Space], dict[str, str]]:
    """The methods that can be run, and why others cannot: where all are asked for, what is refused
    is left out.

    Raises:
        UserError: a method that was named is refused, or every one is.
    """
    there: dict[str, Space] = {}
    refused: dict[str, str] = {}
    for method, space in found.items():
        try:
            middle_of(bench, method, space)
            there[method] = space
        except UserError as error:
            if bench.question.methods != (ALL,):
                raise
            refused[method] = error.message
    if not there:
        raise UserError(f"No method can be run: {next(iter(refused.values()))}")
    return there, refused


def middle_of(bench: Bench, method: str, space: Space) -> Node:
    """The run of a method in the middle of its space; raises as ``unlearned``."""
    return unlearned(bench, method, {name: span.middle for name, span in space.items()})


def unlearned(bench: Bench, method: str, drawn: Mapping[str, float]) -> Node:
    """The model of one trial, as a piece of work.

    Raises:
        UserError: a setting is wrong.
    """
    spec = spec_of(method, bench.question, drawn)
    label = labelled(bench, method, spec)
    node = planning.unlearn_node(spec, bench.target, bench.corpus, label)
    return merge_node(bench.target, node, label) if saves_apart(spec.train) else node


def labelled(bench: Bench, method: str, spec: UnlearnSpec) -> Variant:
    """Whose a trial's numbers are."""
    return Variant(
        corpus="corpus", model=method, method=method, weights=spec.weights, seed=spec.seed
    )


def asked(bench: Bench, model: Input, label: Variant, by: MeasureSpec = DEV) -> Node:
    """A measurement, with questions in the form in which the target knows most."""
    elicited = planning.elicit_node(by, bench.target, bench.corpus, label)
    return planning.measure_node(by, model, bench.corpus, label, bench.target, elicited)


def benched(
    store: Store, target: Input, corpus: Input, question: Question, *, progress: bool = True
) -> Bench:
    """What all trials share; the target is measured.

    Raises:
        UserError: it knows next to nothing of the forget text, or of the retain text.
    """
    bare = Bench(store, target, corpus, question, {}, progress)
    known = measured(bare, target, Variant(corpus="corpus", model="target"))[0]
    sides: Mapping[Role, str] = {"knowledge": "forget", "utility": "retain"}
    for role, side in sides.items():
        most = max(known[role].values(), default=0.0)
        if most < LEAST:
            raise UserError(
                f"The target knows too little of the {side} text on the development half "
                f"({most:.1%}, not {LEAST:.0%}), so no setting can be told from another.",
                "Take the model that was trained on it, or prepare more items.",
            )
    return bare._replace(known=known)


def measured(bench: Bench, model: Input, label: Variant) -> tuple[Means, float]:
    """What a model knows on the development half, and the seconds that model and measurement took.

    Raises:
        Diverged: the model came to nothing.
    """
    node = asked(bench, model, label)
    api.done(bench.store, [node], progress=bench.progress)
    made = [one.name for one in (model, node) if isinstance(one, Node)]
    seconds = sum(bench.store.manifest(name).seconds for name in made)
    return means_on(bench.store.path(node.name) / "rows.jsonl", "dev", {}), seconds


def attempted(bench: Bench, method: str, drawn: Mapping[str, float]) -> Trial:
    """One setting tried; one whose loss is not finite is a trial without numbers."""
    model = unlearned(bench, method, drawn)
    try:
        means, seconds = measured(bench, model, model.label)
    except Diverged as error:
        return Trial(drawn, WORST, said=error.message)
    left = left_of(means, bench.known, "knowledge")
    utility = left_of(means, bench.known, "utility")
    value = objective(left, utility, bench.question.floor)
    said = "" if math.isfinite(left + utility) else "a number is missing"
    return Trial(drawn, value, left, utility, model, seconds, said)


def searched(space: Space, budget: int, seed: int, attempt: Attempt) -> tuple[Trial, ...]:
    """Trials of one method, each drawn by what came of those before it.

    Args:
        space: what is searched.
        budget: how many.
        seed: the same gives the same draws.
        attempt: makes one.

    Raises:
        UserError: Optuna is not there.
    """
    optuna = _library()
    found: list[Trial] = []
    drawn_first = min(MOST_DRAWN, max(FEWEST_DRAWN, budget // 2))
    with unchanged():
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=drawn_first)
        study = optuna.create_study(sampler=sampler)
        for _ in range(budget):
            asked_for = study.ask()
            drawn = {name: _drawn(asked_for, name, span) for name, span in space.items()}
            found.append(attempt(drawn))
            study.tell(asked_for, found[-1].value)
    return tuple(found)


def _drawn(asked_for: Any, name: str, span: Span) -> float:
    if span.whole:
        return int(asked_for.suggest_int(name, int(span.low), int(span.high), log=True))
    return span.told(asked_for.suggest_float(name, span.low, span.high, log=True))


def check_library() -> None:
    """Whether Optuna can be used.

    Raises:
        UserError: it is not installed.
    """
    _library()


def _library() -> Any:
    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        raise UserError("A search needs Optuna.", INSTALL) from error


def searched_all(bench: Bench, found: Mapping[str, Space], heard: Heard) -> tuple[Searched, ...]:
    """The trials of all methods; ``heard`` is told of every one: its method and all so far, over
    all methods.
    """
    question, every, done = bench.question, [], []

    def attempt_of(method: str) -> Attempt:
        def attempt(drawn: Mapping[str, float]) -> Trial:
            every.append(attempted(bench, method, drawn))
            heard(method, every)
            return every[-1]

        return attempt

    for method, space in found.items():
        trials = searched(space, question.budget, question.seed, attempt_of(method))
        done.append(Searched(method, space, trials))
    return tuple(done)
