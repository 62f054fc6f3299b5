"""A sweep: corpora x seeds x models x quantizers."""

from typing import Any

from pydantic import Field, model_validator

from remnant.names import Name
from remnant.records.audit import Rule
from remnant.records.base import Record
from remnant.records.measure import MeasureSpec
from remnant.records.prepare import PrepareSpec
from remnant.records.train import TrainSpec
from remnant.records.transform import Use
from remnant.records.unlearn import UnlearnSpec


class RunSpec(UnlearnSpec):
    """An unlearning run inside a sweep, with the name that the report shows."""

    name: Name | None = None


class CorpusSpec(PrepareSpec):
    """A corpus inside a sweep, with the name that the report shows."""

    name: Name | None = None


class SweepSpec(Record):
    """Corpora x seeds x models x quantizers, measured and judged.

    ``quantizers``: the forms in which every model is measured, by transforms or chains of them.
    Of ``packed`` formats the runtime's own kernels are measured too. ``transform``: settings of all
    transforms that are given by a name. ``dequantize``: packed weights of ``target`` and
    ``retrain`` are decoded first.
    """

    name: Name
    title: str = ""
    seeds: tuple[int, ...] = (0,)
    corpus: tuple[CorpusSpec, ...]
    train: TrainSpec = TrainSpec()
    target: str | None = None
    retrain: str | None = None
    dequantize: bool = False
    unlearn: tuple[RunSpec, ...]
    quantizers: tuple[Use, ...] = ("int8", "int4", "nf4")
    packed: tuple[str, ...] = ()
    transform: dict[str, Any] = Field(default_factory=dict)
    measure: MeasureSpec = MeasureSpec()
    rule: Rule = Rule()
    study: bool = False

    @model_validator(mode="after")
    def _one_dtype(self) -> "SweepSpec":
        if self.rule.dtype != self.measure.dtype:
            raise ValueError("rule.dtype and measure.dtype differ; give both the same")
        return self
