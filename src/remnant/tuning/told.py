"""The command `tune`: what is searched, how far it is, and what came of it, told on the half of
the items that nothing was chosen by.
"""

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from remnant import api
from remnant.durable import write_text
from remnant.errors import UserError
from remnant.flow import plan as planning
from remnant.flow.neverread import check_unread
from remnant.flow.node import Input, Node
from remnant.flow.progress import clock
from remnant.flow.store import Store, disk_errors
from remnant.records import FULL, MeasureSpec, Rule, SweepSpec, Variant
from remnant.report import table, terminal
from remnant.report.table import Results
from remnant.tuning.objective import WORDS
from remnant.tuning.search import (
    Bench,
    Heard,
    Question,
    Searched,
    Trial,
    asked,
    benched,
    check_library,
    middle_of,
    planned,
    searched_all,
    spaces,
)
from remnant.tuning.spaces import Space, spans_of
from remnant.verbs import estimate, overlaid

SCHEMA = 1
TEST = MeasureSpec(half="test")
TITLE = "Every method at the settings that a search found"


def tune(
    store: Store, corpus: str, target: str, beside: tuple[str | None, Path], **options: Any
) -> None:
    """Search, and report what was found.

    Args:
        store: where everything is made.
        corpus: a prepared one.
        target: the model that knows it.
        beside: a model that never read the forget text, or None; and the folder of the report.
        options: ``estimate`` and ``dequantize``, and those of ``question_of``.
    """
    retrain, out = beside
    only_told, dequantize = options.pop("estimate"), options.pop("dequantize")
    question = question_of(**options)
    check_library()
    text, source = api.corpus_of(store, corpus), api.source_of(store, target, dequantize)
    unread = api.source_of(store, retrain, dequantize) if retrain else None
    check_unread(store, {"target": source} | ({"retrain": unread} if unread else {}))
    found = spaces(store, source, question)
    bare = Bench(store, source, text, question, {})
    there, refused = planned(bare, found)
    screen = terminal.console(stderr=True)
    tell_plan(screen, question, there, refused)
    if only_told:
        return estimate(store, [middle_of(bare, *pair) for pair in there.items()])
    bench = benched(store, source, text, question)
    done = searched_all(bench, there, telling(screen, len(there) * question.budget))
    results = judged(bench, done, unread)
    write(out, bench, done, refused, results)
    tell(terminal.console(), done, results, out)


def question_of(
    methods: str,
    budget: int,
    seed: int,
    floor: float,
    settings: Sequence[str],
    spans: Sequence[str],
) -> Question:
    """What is searched, from options as a user gives them.

    Raises:
        UserError: no method is named, or something is of another form.
    """
    names = tuple(name for part in methods.split(",") if (name := part.strip()))
    if not names:
        raise UserError("No method is named.", "Give --methods all, or some: npo_gdr,simnpo_gdr.")
    return Question(
        tuple(dict.fromkeys(names)), budget, seed, floor, overlaid(settings), spans_of(spans)
    )


def tell_plan(
    screen: Console, question: Question, there: Mapping[str, Space], refused: Mapping[str, str]
) -> None:
    """What will be searched, and what will not."""
    count = len(there) * question.budget
    screen.print(
        f"{len(there)} methods, {question.budget} trials of each: {count} trials. Judged by "
        f"{WORDS.format(floor=f'{question.floor:g}')}.",
        highlight=False,
    )
    for method, space in there.items():
        bounds = ", ".join(f"{n} {s.low:g} to {s.high:g}" for n, s in space.items())
        screen.print(f"  {method}: {escape(bounds)}", highlight=False)
    reasons: dict[str, list[str]] = {}
    for method, why in refused.items():
        reasons.setdefault(why.replace(f"'{method}'", "it"), []).append(method)
    for why, methods in reasons.items():
        screen.print(f"Left out: {', '.join(methods)} ({escape(why)})", highlight=False)


def telling(screen: Console, total: int) -> Heard:
    """Says of every trial what came of it, and about how long the rest will take, by what trials
    took so far.
    """

    def heard(method: str, every: Sequence[Trial]) -> None:
        last = every[-1]
        mean = sum(trial.seconds for trial in every) / len(every)
        left = clock(mean * (total - len(every)))
        screen.print(
            f"{len(every)}/{total} {method} {escape(settings_said(last))}: {came_to(last)} "
            f"[dim]({clock(last.seconds)}; about {left} left)[/]",
            highlight=False,
        )

    return heard


def settings_said(trial: Trial) -> str:
    """The settings that were drawn, in a few words.

    >>> settings_said(Trial({"lr": 1e-4, "params.layer": 2}, 0.5))
    'lr 0.0001, layer 2'
    """
    return ", ".join(f"{n.removeprefix('params.')} {v:g}" for n, v in trial.drawn.items())


def came_to(trial: Trial) -> str:
    """What a trial came to, in a few words.

    >>> came_to(Trial({}, 0.25, 0.25, 0.955))
    'knowledge 25 %, utility 96 %'
    """
    if trial.said:
        return trial.said
    return f"knowledge {100 * trial.left:.0f} %, utility {100 * trial.utility:.0f} %"


def judged(bench: Bench, done: Sequence[Searched], unread: Input | None) -> Results:
    """The audit of the best of every method, in full precision, on the test half."""
    models: dict[str, tuple[Input, Variant]] = {
        "target": (bench.target, Variant(corpus="corpus", model="target"))
    }
    if unread is not None:
        models["retrain"] = (unread, Variant(corpus="corpus", model="retrain"))
    for found in done:
        if (node := found.best.model) is not None:
            models[found.method] = (node, node.label)
    measured = {
        f"{name}/{FULL}": asked(bench, source, label, TEST)
        for name, (source, label) in models.items()
    }
    rule = Rule(utility_floor=bench.question.floor)
    nodes = planning.ordered([planning.audit_node(rule, measured)])
    api.done(bench.store, nodes, progress=bench.progress)
    sweep = SweepSpec(
        name="tune", title=TITLE, corpus=(), unlearn=(), quantizers=(), rule=rule, measure=TEST
    )
    keep(bench.store, sweep, nodes)
    return table.collect(bench.store, sweep, [node.piece for node in nodes], {})


def keep(store: Store, sweep: SweepSpec, nodes: Sequence[Node]) -> None:
    """Keep what was audited under a name, so that ``remnant report`` writes it again and ``gc``
    can tell the best models from the other trials.
    """
    name = f"tune-{nodes[-1].digest[:8]}"
    told = sweep.model_copy(update={"name": name})
    pieces = [node.piece.model_dump(mode="json") for node in nodes]
    store.label(name, {"sweep": told.model_dump(mode="json"), "pieces": pieces})


def write(
    out: Path, bench: Bench, done: Sequence[Searched], refused: Mapping[str, str], results: Results
) -> None:
    """The page, its numbers, and tune.json."""
    page = importlib.import_module("remnant.report.page")  # brings the plotting library
    page.write(results, bench.store, out)
    told = summary(bench.question, done, refused, results)
    with disk_errors(out, "Choose another folder with --out."):
        write_text(out / "tune.json", json.dumps(told, indent=1, allow_nan=False) + "\n")


def summary(
    question: Question, done: Sequence[Searched], refused: Mapping[str, str], results: Results
) -> dict[str, JsonValue]:
    """The content of tune.json; its fields are described in docs/tuning.md."""
    cells = [cell for group in results.groups for cell in group.cells]
    verdicts = {v.model: v.outcome for group in results.groups for v in group.verdicts}

    def test_of(model: str) -> dict[str, JsonValue]:
        return {c.metric: [c.value, c.low, c.high] for c in cells if c.model == model}

    methods: dict[str, JsonValue] = {
        found.method: method_told(found)
        | {"test": test_of(found.method), "verdict": verdicts.get(found.method)}
        for found in done
    }
    return {
        "schema": SCHEMA,
        "objective": WORDS.format(floor=f"{question.floor:g}"),
        "budget": question.budget,
        "seed": question.seed,
        "fixed": json.loads(json.dumps(question.settings)),
        "methods": methods,
        "left_out": dict(refused),
        "target": test_of("target"),
        "retrain": test_of("retrain"),
    }


def method_told(found: Searched) -> dict[str, JsonValue]:
    """One method as JSON, but for what the test half says of it."""
    return {
        "space": {name: [span.low, span.high] for name, span in found.space.items()},
        "settings": dict(found.best.drawn),
        "useful": found.useful,
        "dev": trial_told(found.best),
        "trials": list(map(trial_told, found.trials)),
    }


def trial_told(trial: Trial) -> dict[str, JsonValue]:
    """One trial as JSON; what has no number is None."""

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "settings": dict(trial.drawn),
        "objective": trial.value,
        "knowledge": finite(trial.left),
        "utility": finite(trial.utility),
        "model": trial.model.name if trial.model else None,
        "seconds": trial.seconds,
        "said": trial.said,
    }


def tell(screen: Console, done: Sequence[Searched], results: Results, out: Path) -> None:
    """The settings that were chosen, and the numbers of the test half."""
    chosen = Table("method", "settings", "development half", title="Chosen")
    for found in sorted(done, key=lambda one: one.best.value):
        kept = "" if found.useful else "; no trial kept enough utility"
        chosen.add_row(
            found.method, escape(settings_said(found.best)), f"{came_to(found.best)}{kept}"
        )
    screen.print(chosen)
    for group in results.groups:
        screen.print(terminal.matrix(group))
    screen.print(
        f"Test half above; report and tune.json: [bold]{escape(str(out))}[/]",
        highlight=False,
        soft_wrap=True,
    )
