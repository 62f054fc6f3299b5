"""What the Python interface hands out, each shown as a table in a notebook."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from remnant.adapterfiles import adapter_in
from remnant.flow.store import Store
from remnant.records import (
    Cell,
    Evidence,
    MeasureResult,
    PrepareResult,
    Recovery,
    TrainResult,
    TransformResult,
    UnlearnResult,
    Verdict,
)
from remnant.report import notebook, table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus: its folder, and what is in it and what it lacks."""

    path: Path
    result: PrepareResult

    def _repr_html_(self) -> str:
        return notebook.fields("Corpus", self.path, self.result)


@dataclass(frozen=True)
class Model:
    """A model in a folder, and what the stage that made it has to say."""

    path: Path
    result: TrainResult | UnlearnResult | TransformResult

    def load(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """The model and its tokenizer, in float32 on the CPU; an adapter merged into its model."""
        door = importlib.import_module("remnant.model.load")
        adapter = adapter_in(str(self.path))
        base = adapter.base if adapter else str(self.path)
        model, tokenizer = door.open_model(base), door.open_tokenizer(base)
        if adapter:
            model = (
                importlib.import_module("remnant.model.adapter").merge(model, adapter.folder).model
            )
        return model, tokenizer

    def _repr_html_(self) -> str:
        return notebook.fields("Model", self.path, self.result)


@dataclass(frozen=True)
class Scores:
    """The numbers of one model, x100 with 95 % intervals, and what was not measured and why."""

    path: Path
    cells: tuple[Cell, ...]
    result: MeasureResult

    def __getitem__(self, metric: str) -> Cell:
        """The cell of a metric.

        Raises:
            KeyError: it was not measured; ``result.absent`` says why.
        """
        found = next((c for c in self.cells if c.metric == metric), None)
        if found is None:
            raise KeyError(self.result.absent.get(metric, metric))
        return found

    def _repr_html_(self) -> str:
        return notebook.cells(self.cells)


@dataclass(frozen=True)
class Audit:
    """Did it stay forgotten? One verdict per form, with all that it rests on."""

    results: table.Results
    store: Store

    @property
    def group(self) -> table.Group:
        """The numbers of the one corpus that was asked about."""
        return self.results.groups[0]

    @property
    def verdicts(self) -> list[Verdict]:
        """One per form, full precision first."""
        return self.group.verdicts

    @property
    def evidence(self) -> list[Evidence]:
        """What every test that is stronger than plain asking says."""
        return self.group.evidence

    @property
    def recoveries(self) -> list[Recovery]:
        """What every form brings back of each kind of knowledge."""
        return self.group.recoveries

    @property
    def passed(self) -> bool:
        """Whether the text is gone in every form, by every test."""
        return {v.outcome for v in self.verdicts} == {"gone"}

    def report(self, out: str | Path, *, examples: bool = False) -> Path:
        """Write report.html and summary.json into a folder; returns the page's path."""
        page = importlib.import_module("remnant.report.page")  # brings the plotting library
        path: Path = page.write(self.results, self.store, Path(out), examples=examples)
        return path

    def _repr_html_(self) -> str:
        return notebook.audit(self.results)
