"""Records that cross a stage or touch the disk: what a user may write (specs) and what a run leaves
behind.
"""

from remnant.records.artefact import SCHEMA, FileRecord, Manifest, Piece, Result
from remnant.records.base import Half, OwnHalf, Positive, Record, Share, Stage, circumstance
from remnant.records.judge import (
    CastMember,
    Cell,
    Evidence,
    JudgeResult,
    JudgeSpec,
    Outcome,
    Recovery,
    Rule,
    Says,
    Shares,
    Verdict,
    status_of,
)
from remnant.records.measure import (
    Check,
    CheckName,
    EndpointSpec,
    MeasureResult,
    MeasureSpec,
    MetricSpec,
    Row,
)
from remnant.records.merge import MergeResult, MergeSpec
from remnant.records.perturb import (
    Calibration,
    DeployResult,
    Difference,
    ExplainResult,
    ExplainSpec,
    PerturbResult,
    PerturbSpec,
)
from remnant.records.prepare import PrepareResult, PrepareSpec
from remnant.records.sweep import CorpusSpec, RunSpec, SweepSpec
from remnant.records.train import OptimSpec, TrainResult, TrainSpec, Weights
from remnant.records.trainable import (
    BySureSpec,
    Chosen,
    LayersResult,
    SureResult,
    SureSpec,
    Trains,
)
from remnant.records.unlearn import Probed, TermSpec, UnlearnResult, UnlearnSpec

__all__ = [
    "SCHEMA",
    "BySureSpec",
    "Calibration",
    "CastMember",
    "Cell",
    "Check",
    "CheckName",
    "Chosen",
    "CorpusSpec",
    "DeployResult",
    "Difference",
    "EndpointSpec",
    "Evidence",
    "ExplainResult",
    "ExplainSpec",
    "FileRecord",
    "Half",
    "JudgeResult",
    "JudgeSpec",
    "LayersResult",
    "Manifest",
    "MeasureResult",
    "MeasureSpec",
    "MergeResult",
    "MergeSpec",
    "MetricSpec",
    "OptimSpec",
    "Outcome",
    "OwnHalf",
    "PerturbResult",
    "PerturbSpec",
    "Piece",
    "Positive",
    "PrepareResult",
    "PrepareSpec",
    "Probed",
    "Record",
    "Recovery",
    "Result",
    "Row",
    "Rule",
    "RunSpec",
    "Says",
    "Share",
    "Shares",
    "Stage",
    "SureResult",
    "SureSpec",
    "SweepSpec",
    "TermSpec",
    "TrainResult",
    "TrainSpec",
    "Trains",
    "UnlearnResult",
    "UnlearnSpec",
    "Verdict",
    "Weights",
    "circumstance",
    "status_of",
]
