"""Records that cross a stage or touch the disk: what a user may write (specs) and what a run leaves
behind.
"""

from remnant.records.artefact import SCHEMA, FileRecord, Manifest, Piece
from remnant.records.base import Half, OwnHalf, Positive, Record, Share, Stage, circumstance
from remnant.records.judge import (
    CastMember,
    Cell,
    Evidence,
    JudgeSpec,
    Outcome,
    Recovery,
    Rule,
    Says,
    Shares,
    Verdict,
    status_of,
)
from remnant.records.measure import EndpointSpec, MeasureSpec, MetricSpec, Row
from remnant.records.perturb import ExplainSpec, PerturbSpec
from remnant.records.prepare import PrepareSpec
from remnant.records.sweep import CorpusSpec, RunSpec, SweepSpec
from remnant.records.train import OptimSpec, TrainSpec, Weights
from remnant.records.unlearn import SureSpec, TermSpec, UnlearnSpec

__all__ = [
    "SCHEMA",
    "CastMember",
    "Cell",
    "CorpusSpec",
    "EndpointSpec",
    "Evidence",
    "ExplainSpec",
    "FileRecord",
    "Half",
    "JudgeSpec",
    "Manifest",
    "MeasureSpec",
    "MetricSpec",
    "OptimSpec",
    "Outcome",
    "OwnHalf",
    "PerturbSpec",
    "Piece",
    "Positive",
    "PrepareSpec",
    "Record",
    "Recovery",
    "Row",
    "Rule",
    "RunSpec",
    "Says",
    "Share",
    "Shares",
    "Stage",
    "SureSpec",
    "SweepSpec",
    "TermSpec",
    "TrainSpec",
    "UnlearnSpec",
    "Verdict",
    "Weights",
    "circumstance",
    "status_of",
]
