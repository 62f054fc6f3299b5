"""What is done to a model between unlearning and use, and what is asked about it afterwards."""

from typing import Any, Literal

from pydantic import Field

from remnant.records.base import Positive, Record


class PerturbSpec(Record):
    """One quantization of a model to a dense copy with recorded codes."""

    use: str
    params: dict[str, Any] = Field(default_factory=dict)
    skip: tuple[str, ...] = ("lm_head", "embedding", "norm", "router", "conv", "state", "bias")
    source_dtype: Literal["float32", "bfloat16"] = "float32"
    calibration_samples: Positive = 32
    calibration_tokens: Positive = 256
    seed: int = 0


class ExplainSpec(Record):
    """What a quantizer left of an update: nothing to choose."""
