"""The search of settings as a function."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from remnant import api
from remnant.api import AnyCorpus, AnyModel, AnyStore
from remnant.handles import Audit
from remnant.report import terminal
from remnant.tuning.objective import FLOOR
from remnant.tuning.search import (
    ALL,
    Bench,
    Question,
    Searched,
    benched,
    check_library,
    planned,
    searched_all,
    spaces,
)
from remnant.tuning.spaces import spans_of
from remnant.tuning.told import judged, telling, write


class Tuned(NamedTuple):
    """What a search found.

    ``searched``: all trials of each method. ``left_out``: methods that cannot be run here, and why.
    ``audit``: of the best of each method, on the half of the items that nothing was chosen by.
    """

    searched: tuple[Searched, ...]
    left_out: Mapping[str, str]
    audit: Audit

    @property
    def settings(self) -> dict[str, dict[str, float]]:
        """What was chosen of every method, as ``unlearn`` takes it ("params.beta": in params)."""
        return {found.method: dict(found.best.drawn) for found in self.searched}


def tune(
    target: AnyModel,
    corpus: AnyCorpus,
    methods: str | Sequence[str] = ALL,
    *,
    budget: int = 20,
    spans: Mapping[str, tuple[float, float]] = MappingProxyType({}),
    retrain: AnyModel | None = None,
    out: str | Path | None = None,
    store: AnyStore = "runs",
    progress: bool = False,
    **options: Any,
) -> Tuned:
    """Settings of many methods, searched by the same number of trials (docs/tuning.md).

    Args:
        target: the model before unlearning.
        corpus: a prepared one.
        methods: "all", a name, or some.
        budget: trials of each method.
        spans: bounds of what is searched: {"lr": (1e-5, 1e-3)}.
        retrain: a model that never read the forget text, to report beside them.
        out: a folder for the report and tune.json; without it nothing is written.
        store: where artefacts are kept; called again, a search that was cut off goes on.
        progress: show on stderr how far it is.
        options: ``seed`` (0), ``floor`` (0.9, the least share of the target's utility),
            ``dequantize``; all else are settings of every run, which are not searched.

    Raises:
        UserError: Optuna is not installed, an unknown method or setting, or a target that knows
            nothing.
    """
    check_library()
    seed, floor = options.pop("seed", 0), options.pop("floor", FLOOR)
    dequantize = options.pop("dequantize", False)
    names = (methods,) if isinstance(methods, str) else tuple(dict.fromkeys(methods))
    bounds = spans_of(f"{name}={low!r}:{high!r}" for name, (low, high) in spans.items())
    question = Question(names, budget, seed, floor, options, bounds)
    kept = api.opened(store)
    source, text = api.source_of(kept, target, dequantize), api.corpus_of(kept, corpus)
    found = spaces(kept, source, question)
    there, refused = planned(Bench(kept, source, text, question, {}), found)
    bench = benched(kept, source, text, question, progress=progress)
    screen = terminal.console(stderr=True)
    heard = telling(screen, len(there) * budget) if progress else _silent
    done = searched_all(bench, there, heard)
    unread = api.source_of(kept, retrain, dequantize) if retrain is not None else None
    results = judged(bench, done, unread)
    if out is not None:
        write(Path(out), bench, done, refused, results)
    return Tuned(done, refused, Audit(results, kept))


def _silent(method: str, every: Sequence[object]) -> None:
    """A trial that nobody is told of."""
