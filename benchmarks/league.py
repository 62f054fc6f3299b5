"""Methods of unlearning on one footing: tuned by the same number of trials, then stopped at one
forget loss with weights in float32 and in bfloat16, and rounded in six ways.

The lab's newswire; target, never-read model and all that is made of them are kept in --work, and a
run that was cut off goes on. The settings are chosen on the development half of the items, the
table is told on the other. Several processes may share the search on one --work: --search-only with
some --methods each. Last line: one JSON object.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from remnant import api
from remnant.corpus import of_role
from remnant.flow import plan as planning
from remnant.flow.store import Store
from remnant.parsing import parse
from remnant.records import (
    FULL,
    PrepareSpec,
    Recovery,
    Shares,
    SweepSpec,
    TrainSpec,
    UnlearnResult,
)
from remnant.report import page, table, terminal
from remnant.report.charts import knowledge_by_form
from remnant.report.table import Group
from remnant.tuning.search import (
    ASKED,
    Question,
    Searched,
    benched,
    planned,
    searched_all,
    settings_of,
    spaces,
)
from remnant.tuning.spaces import Span
from remnant.tuning.told import came_to, settings_said, telling

# The smallest newswire and model found whose questions the target answers, on both sides, better
# than four in five.
CORPUS: dict[str, Any] = {
    "lab": "news", "prompt_tokens": 64, "answer_tokens": 48, "text_tokens": 200, "max_items": 30,
    "forget_docs": 8, "retain_docs": 12, "holdout_docs": 8, "cuts_per_text": 4,
}  # fmt: skip
TRAIN: dict[str, Any] = {
    "hidden": 128, "intermediate": 384, "layers": 3, "init_std": 0.05, "lr": 8e-3, "steps": 170,
    "block_tokens": 256,
}  # fmt: skip
METHODS = (
    "adaptive_rmu", "ga_gdr", "npo_gdr", "simnpo_gdr", "undial_gdr", "ceu_gdr", "me_gdr", "pdu",
)  # fmt: skip
BUDGET = 8
# Retain terms read all retain text: what no regulariser shows is lost (design/004-lab.md).
COMMON: dict[str, Any] = {
    "train": "matrices", "retain": ["retain1", "retain2"], "beta2": 0.95, "batch_size": 4,
    "pack_tokens": 96,
    # As published, the down-projections up to the block whose states are moved.
    "adaptive_rmu": {"train": ["layers.0-1.mlp.down_proj"], "params": {"layer": 1}},
}  # fmt: skip
# What a model of a million weights, trained from scratch, wants in some seconds; where two matrices
# move alone, more.
SPANS = {
    "lr": Span(3e-5, 3e-3),
    "adaptive_rmu.lr": Span(1e-3, 1e-1),
    "steps": Span(30, 60, whole=True),
}
FORMS = ("int8", "int4", "int4-g128", "nf4", "q4_0", "nvfp4")
# Nats per token of the whole forget text at which every run stops (--level), and the steps for it.
LEVEL, MOST_STEPS = 1.0, 90
WEIGHTS: dict[str, dict[str, Any]] = {
    "fp32": {"weights": "fp32"},
    "bf16": {"weights": "bf16", "compute": "fp32"},
}


def search(store: Store, methods: Sequence[str]) -> tuple[Searched, ...]:
    """The trials of some methods."""
    corpus = planning.prepare_node(parse(PrepareSpec, CORPUS, "corpus"))
    target = planning.train_node(parse(TrainSpec, TRAIN, "train"), corpus)
    api.done(store, [target], progress=True)
    spans = {n: s for n, s in SPANS.items() if n.partition(".")[0] in ("lr", "steps", *methods)}
    question = Question(tuple(methods), BUDGET, settings=COMMON, spans=spans)
    bench = benched(store, target, corpus, question)
    there, _ = planned(bench, spaces(store, target, question))
    heard = telling(terminal.console(stderr=True), len(there) * BUDGET)
    return searched_all(bench, there, heard)


def run_of(found: Searched, weights: str, level: float) -> dict[str, Any]:
    """A method at the settings that were found, stopped at the common forget loss."""
    fixed = settings_of(found.method, Question(settings=COMMON))
    own = {name: value for name, value in found.best.drawn.items() if name != "steps"}
    return {
        **fixed, **own, **WEIGHTS[weights],
        "name": f"{found.method} {weights}", "method": found.method, "steps": MOST_STEPS,
        "probe_every": 3, "select": "last", "stop_forget_loss": level, "stop_utility": 0.5,
    }  # fmt: skip


def league(searched: Sequence[Searched], level: float) -> SweepSpec:
    """The sweep at one forget loss, measured on the half that nothing was chosen by."""
    runs = [run_of(found, weights, level) for found in searched for weights in WEIGHTS]
    told = {
        "name": "league", "title": "Every method at its own settings, at one forget loss",
        "corpus": [CORPUS], "train": TRAIN, "unlearn": runs, "quantizers": FORMS,
        "measure": {"metrics": ASKED, "half": "test"},
    }  # fmt: skip
    return parse(SweepSpec, told, "league")


def judged(store: Store, sweep: SweepSpec) -> table.Results:
    """All of it made and read."""
    nodes = planning.plan(sweep)
    api.done(store, nodes, progress=True)
    return table.collect(store, sweep, [node.piece for node in nodes], {})


def share(shares: Shares | None) -> str:
    """Value and interval in a cell of a table."""
    return "-" if shares is None else "{:.2f} [{:.2f}, {:.2f}]".format(*shares)


def value(group: Group, model: str, metric: str) -> str:
    """A number in full precision, x100."""
    return table.number(group.cell(model, FULL, metric))


def back(group: Group, model: str) -> list[Recovery]:
    """What came back of a model, of the two kinds of knowledge as published."""
    own = (r for r in group.recoveries if r.model == model and r.form != FULL)
    return [r for r in own if r.metric in of_role("knowledge") and r.metric in ASKED]


def most_back(group: Group, model: str) -> Recovery | None:
    """The form and kind of knowledge of which most is back."""
    own = [r for r in back(group, model) if r.recovery]
    return max(own, key=lambda r: r.recovery[0] if r.recovery else 0.0, default=None)


def lines(group: Group, stopped: Mapping[str, UnlearnResult]) -> Iterator[tuple[str, ...]]:
    """The table: a row for every model."""
    yield (
        "model",
        "forget nats reached",
        "VerMem",
        "KnowMem forget",
        "KnowMem retain",
        "most back",
    )
    for model in group.models:
        told = stopped.get(model)
        reached = "" if told is None else "yes" if "forget loss" in told.stopped else "no"
        worst = most_back(group, model)
        back = "" if worst is None else f"{worst.form} {worst.metric} {share(worst.recovery)}"
        yield (model, reached, *(value(group, model, metric) for metric in ASKED), back)


def regime(group: Group, weights: str) -> Group:
    """The models of one kind of weights, with target and never-read model."""
    cells = [c for c in group.cells if c.is_reference or c.model.endswith(f" {weights}")]
    return replace(group, cells=cells)


def draw(group: Group, folder: Path) -> None:
    """One picture for each kind of weights: VerMem in every form."""
    folder.mkdir(parents=True, exist_ok=True)
    for weights in WEIGHTS:
        drawing = knowledge_by_form(regime(group, weights), "verbmem")
        (folder / f"league-{weights}.svg").write_text(drawing, encoding="utf-8")


def stops(results: table.Results) -> dict[str, UnlearnResult]:
    """How every run ended."""
    made = {n: m for n, m in results.manifests.items() if m.stage == "unlearn"}
    return {str(results.labels[n].model): m.of(UnlearnResult) for n, m in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/league"))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--level", type=float, default=LEVEL)
    parser.add_argument("--search-only", action="store_true")
    asked = parser.parse_args()
    store = Store(asked.work / "store").open()
    searched = search(store, asked.methods.split(","))
    if asked.search_only:
        return
    results = judged(store, league(searched, asked.level))
    print(page.write(results, store, asked.work / "report"))
    (group,) = results.groups
    draw(group, asked.work / "figures")
    for found in searched:
        kept = "" if found.useful else " (no trial kept enough utility)"
        print(f"{found.method}: {settings_said(found.best)}; {came_to(found.best)}{kept}")
    for line in lines(group, stops(results)):
        print("| " + " | ".join(line) + " |")
    for model in group.unlearned:
        for row in back(group, model):
            print(f"{model:18} {row.form:10} {row.metric:15} {share(row.recovery)}")
    worst = {m: r.recovery for m in group.unlearned if (r := most_back(group, m))}
    chosen = {found.method: dict(found.best.drawn) for found in searched}
    print(json.dumps({"chosen": chosen, "most_back": worst}))


if __name__ == "__main__":
    main()
