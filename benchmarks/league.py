"""Methods of unlearning on one footing: tuned by the same number of trials, stopped at one level of
forgetting, rounded in many ways, and pooled over seeds.

Every seed is another corpus, another target, another never-read model and other runs, so that seeds
are independent. Settings are searched on the first seed of every corpus, on the development half of
the items; all tables are told on the other half. Everything is kept in --work, and a run that was
cut off goes on. Several processes may share the search on one --work: --search-only with some
--methods each. The page is league.html there. Last line: one JSON object.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import league_page as told
from remnant import api
from remnant.flow import plan as planning
from remnant.flow.run import missing
from remnant.flow.store import Store
from remnant.parsing import parse
from remnant.records import PrepareSpec, SweepSpec, TrainSpec, UnlearnResult
from remnant.report import page, table, terminal
from remnant.tuning.search import (
    ASKED,
    Question,
    Searched,
    benched,
    planned,
    searched_all,
    settings_of,
    spaces,
    with_drawn,
)
from remnant.tuning.spaces import Span
from remnant.tuning.told import telling

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
CORPORA = ("news", "books")
METHODS = (
    "adaptive_rmu", "ga_gdr", "npo_gdr", "simnpo_gdr", "undial_gdr", "ceu_gdr", "me_gdr", "pdu",
)  # fmt: skip
# Every method that needs no more than the corpus and the target: no other answers (DPO, FLAT, AP)
# and no reinforced model (WHP). The retain term is the plainest, where the method names none.
ALL = (*METHODS, "rmu", "satimp_gdr", "tnpo_gdr", "wga_gdr")
BUDGET = 8
# Retain terms read all retain text: what no regulariser shows is lost (design/004-lab.md).
COMMON: dict[str, Any] = {
    "train": "matrices", "retain": ["retain1", "retain2"], "beta2": 0.95, "batch_size": 4,
    "pack_tokens": 96,
    # As published, the down-projections up to the block whose states are moved.
    "adaptive_rmu": {"train": ["layers.0-1.mlp.down_proj"], "params": {"layer": 1}},
    "rmu": {"train": ["layers.0-1.mlp.down_proj"], "params": {"layer": 1}},
}  # fmt: skip
# What a model of a million weights, trained from scratch, wants in some seconds; where two matrices
# move alone, more.
SPANS = {
    "lr": Span(3e-5, 3e-3),
    "adaptive_rmu.lr": Span(1e-3, 1e-1),
    "rmu.lr": Span(1e-3, 1e-1),
    "steps": Span(30, 60, whole=True),
}
FORMS = ("int8", "int4", "int4-g128", "nf4", "q4_0", "nvfp4")
# What is deployed, by the grids that are bit for bit a library's where there is one.
TWELVE = (
    "int8", "int4", "int4-g64", "int3", "nf4", "fp4", "nvfp4", "mxfp4", "q4_0", "gguf-q4_k_m",
    "gptq4-g128", "awq4-g128",
)  # fmt: skip
# Nats per token of the whole forget text at which every run stops (--level), and the steps for it.
LEVEL, MOST_STEPS = 1.0, 90
# What the judge may use: tests on weights are dear.
ACCESS = "probabilities"
WEIGHTS: dict[str, dict[str, Any]] = {
    "fp32": {"weights": "fp32"},
    "bf16": {"weights": "bf16", "compute": "fp32"},
}
# Words that stand for a list.
LISTS = {"all": ALL, "twelve": TWELVE, "six": FORMS}


class Stop(NamedTuple):
    """When every run ends, on the development half: ``loss`` in nats per token of the forget text;
    or ``known``, the share of the target's right greedy tokens, which stands in its place.
    """

    loss: float = LEVEL
    known: float | None = None

    @property
    def settings(self) -> dict[str, float]:
        """As a run is told."""
        return (
            {"stop_forget_loss": self.loss} if self.known is None else {"stop_forget": self.known}
        )

    @property
    def words(self) -> str:
        """As a title says it."""
        if self.known is None:
            return f"forget loss {self.loss:g}"
        return f"{self.known:.0%} of the target's right tokens"


class Lab(NamedTuple):
    """Where one seed of one corpus is made."""

    corpus: str
    seed: int

    @property
    def material(self) -> dict[str, Any]:
        """The corpus."""
        return CORPUS | {"lab": self.corpus, "seed": self.seed}

    @property
    def training(self) -> dict[str, Any]:
        """How target and never-read model are trained."""
        return TRAIN | {"seed": self.seed}


def search(store: Store, lab: Lab, methods: Sequence[str], budget: int) -> tuple[Searched, ...]:
    """The trials of some methods."""
    corpus = planning.prepare_node(parse(PrepareSpec, lab.material, "corpus"))
    target = planning.train_node(parse(TrainSpec, lab.training, "train"), corpus)
    api.done(store, [target], progress=True)
    spans = {n: s for n, s in SPANS.items() if n.partition(".")[0] in ("lr", "steps", *methods)}
    question = Question(tuple(methods), budget, settings=COMMON, spans=spans)
    bench = benched(store, target, corpus, question)
    there, _ = planned(bench, spaces(store, target, question))
    heard = telling(terminal.console(stderr=True), len(there) * budget)
    return searched_all(bench, there, heard)


def run_of(found: Searched, weights: str, stop: Stop) -> dict[str, Any]:
    """A method at the settings that were found, stopped at the common level."""
    fixed = settings_of(found.method, Question(settings=COMMON))
    own = {name: value for name, value in found.best.drawn.items() if name != "steps"}
    return {
        **with_drawn(fixed, own), **WEIGHTS[weights], **stop.settings,
        "name": f"{found.method} {weights}", "method": found.method, "steps": MOST_STEPS,
        "probe_every": 3, "select": "last", "stop_utility": 0.5,
    }  # fmt: skip


class Order(NamedTuple):
    """What is asked for, beside methods and seeds."""

    stop: Stop
    weights: Sequence[str]
    forms: Sequence[str]
    access: str


def league(lab: Lab, searched: Sequence[Searched], order: Order) -> SweepSpec:
    """The sweep of one seed at one level, measured on the half that nothing was chosen by."""
    runs = [run_of(found, weights, order.stop) for found in searched for weights in order.weights]
    asked_for = {
        "name": "league",
        "title": f"Every method at its own settings, at {order.stop.words}",
        "seeds": [lab.seed], "corpus": [lab.material], "train": lab.training, "unlearn": runs,
        "quantizers": order.forms, "measure": {"metrics": ASKED, "half": "test"},
        "rule": {"access": order.access},
    }  # fmt: skip
    return parse(SweepSpec, asked_for, "league")


def judged(store: Store, sweeps: Sequence[SweepSpec]) -> table.Results:
    """All of it made and read, as if it were one sweep; how long the rest takes is told by the pace
    so far.
    """
    begin, found, made = time.monotonic(), [], 0
    for i, sweep in enumerate(sweeps):
        nodes = planning.plan(sweep)
        made += len(lacking := missing(store, nodes))
        print(f"sweep {i + 1} of {len(sweeps)}: {len(lacking)} of {len(nodes)} pieces", flush=True)
        api.done(store, nodes, progress=True)
        found.append(table.collect(store, sweep, [node.piece for node in nodes], {}))
        spent = time.monotonic() - begin
        left = _pieces(store, sweeps[i + 1 :])
        if made and left:
            print(f"about {spent / made * left / 60:.0f} minutes left", flush=True)
    groups = [group for one in found for group in one.groups]
    every = [one.manifests for one in found], [one.labels for one in found]
    manifests, labels = ({k: v for part in parts for k, v in part.items()} for parts in every)
    return replace(found[0], groups=groups, manifests=manifests, labels=labels)


def _pieces(store: Store, sweeps: Sequence[SweepSpec]) -> int:
    """How many pieces are still to be made."""
    return sum(len(missing(store, planning.plan(sweep))) for sweep in sweeps)


def reached(results: table.Results) -> dict[told.Run, bool]:
    """Which runs came to the common level."""
    made = {n: m for n, m in results.manifests.items() if m.stage == "unlearn"}
    runs = {n: told.Run.of(results.labels[n]) for n in made}
    return {runs[n]: "forget" in m.of(UnlearnResult).stopped for n, m in made.items()}


def listed(words: str) -> list[str]:
    """A list as the command line gives it."""
    return [name for word in words.split(",") for name in LISTS.get(word, (word,))]


def main() -> None:
    """Search, unlearn, round, measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/league"))
    parser.add_argument("--methods", default=",".join(METHODS), help='names, or "all"')
    parser.add_argument("--corpora", default="news", help=" and ".join(CORPORA))
    parser.add_argument("--seeds", type=int, default=1, help="so many, from 0")
    parser.add_argument("--forms", default="six", help='names, "six" or "twelve"')
    parser.add_argument("--weights", default=",".join(WEIGHTS))
    parser.add_argument("--level", type=float, default=LEVEL, help="forget loss, nats per token")
    parser.add_argument("--known", type=float, help="share of right tokens, in place of --level")
    parser.add_argument("--budget", type=int, default=BUDGET, help="trials of each method")
    parser.add_argument("--access", default=ACCESS, help='"weights": they learn it again')
    parser.add_argument("--search-only", action="store_true")
    asked_for = parser.parse_args()
    corpora, seeds = listed(asked_for.corpora), range(asked_for.seeds)
    methods, forms, weights = map(listed, (asked_for.methods, asked_for.forms, asked_for.weights))
    store = Store(asked_for.work / "store").open()
    searched = {name: search(store, Lab(name, 0), methods, asked_for.budget) for name in corpora}
    if asked_for.search_only:
        return
    stop = Stop(asked_for.level, asked_for.known)
    order = Order(stop, weights, forms, asked_for.access)
    sweeps = [league(Lab(name, s), searched[name], order) for name in corpora for s in seeds]
    results = judged(store, sweeps)
    print(page.write(results, store, asked_for.work / "report"))
    told.write(asked_for.work, results, searched, reached(results))


if __name__ == "__main__":
    main()
