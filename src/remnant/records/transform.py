"""What is done to a model between unlearning and use, and what is asked about it afterwards."""

from typing import Any, Literal

from pydantic import Field

from remnant.records.base import Positive, Record


class TransformSpec(Record):
    """One transform of a model, to a dense copy: a quantization, with recorded codes, or another.

    ``seed``: of calibration text, of noise, of relearning.
    """

    use: str
    params: dict[str, Any] = Field(default_factory=dict)
    skip: tuple[str, ...] = ("lm_head", "embedding", "norm", "router", "conv", "state", "bias")
    source_dtype: Literal["float32", "bfloat16"] = "float32"
    calibration_samples: Positive = 32
    calibration_tokens: Positive = 256
    seed: int = 0


# A transform, or a chain of them in order; a name may stand for a chain too ("prune20+int4").
Use = str | TransformSpec | tuple[str | TransformSpec, ...]


class ExplainSpec(Record):
    """What a quantizer left of an update: nothing to choose."""


class Calibration(Record):
    """The text that a transform looked at, and what makes it a poor sample (``warnings``)."""

    split: str
    samples: int
    tokens: int
    texts_left_out_for_overlap: int
    warnings: tuple[str, ...]


class TransformResult(Record):
    """What was done. ``changed``: names of weights that differ from the source's.

    ``left_out``: weights that stay as they are, since the blocks do not divide their rows.
    ``quantized_weights``: of how many numbers there are codes. ``weights``: sha256 of all weights
    of the copy, by which one that is made again is known to be the same; "" from before.
    """

    use: str
    params: dict[str, Any]
    quantized_weights: int
    parameters: int
    share_quantized: float
    changed: tuple[str, ...]
    left_out: tuple[str, ...]
    calibration: Calibration | None = None
    weights: str = ""


class Difference(Record):
    """How far two sets of logits are apart.

    ``relative``: the norm of the difference over that of the second. ``largest``: of one logit.
    ``same_top``: share of places where the most likely token is the same, 0 to 1.
    """

    relative: float
    largest: float
    same_top: float


class DeployResult(Record):
    """What was written for which runtime, and how far its answers are from the dense copy's.

    ``against_before_saving``: from the packed model in memory; None where the file is all there is.
    """

    format: str
    params: dict[str, Any]
    runtime: str
    tokenizer: str | None = None
    against_dense_copy: Difference
    against_before_saving: Difference | None = None


class ExplainResult(Record):
    """What a quantizer left of a whole update: the fields of ``functional.survival.Survival``.

    ``missing``: weights that not all models have.
    """

    survival: dict[str, float | None]
    missing: tuple[str, ...]
