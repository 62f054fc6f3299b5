"""How weights are moved, and what a model is trained on."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from remnant.records.base import Positive, Record, circumstance, none_for_fp32
from remnant.records.trainable import (
    ByLoraSpec,
    Trains,
    fault_of_base,
    fault_of_training,
    fault_of_weights,
)
from remnant.records.update import RectifiedSpec, SignSpec, Update, ZerothSpec, fault_of_update

Weights = Literal["fp32", "bf16", "bf16-stochastic-rounding"]
# None stands for what the regime of weights has, float32 in all but plain bfloat16.
Moments = Annotated[Literal["fp32", "bf16", "8bit"] | None, AfterValidator(none_for_fp32)]


class OptimSpec(Record):
    """How weights are moved, and which: the same fields for training and unlearning.

    ``accumulate``: so many batches make a step. ``checkpointing``: the inside of every block is
    computed again in the backward pass, in the place of being kept; the same bits in less memory.
    ``update``: how a step is made of the loss, where it is not AdamW along its gradient.
    ``moments``: in what AdamW's are kept between steps: float32, bfloat16 rounded stochastically,
    or 8 bits by bitsandbytes.
    """

    steps: Positive = 100
    batch_size: Positive = 8
    accumulate: Positive = 1
    lr: Annotated[float, Field(gt=0)] = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    clip: Annotated[float, Field(gt=0)] | None = None
    weights: Weights = "fp32"
    compute: Literal["fp32"] | None = None
    moments: Moments = None
    count_lost: bool = False
    train: Trains = "all"
    update: Update | None = None
    checkpointing: bool = circumstance(False)
    seed: int = 0

    @model_validator(mode="after")
    def _once_or_twice(self) -> "OptimSpec":
        if self.checkpointing and isinstance(self.train, ByLoraSpec) and self.train.lora.dropout:
            raise ValueError(
                "with checkpointing a block is computed twice and dropout would draw other "
                "numbers; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _way_and_weights(self) -> "OptimSpec":
        if fault := fault_of_weights(self.train, self.weights):
            raise ValueError(fault)
        if fault := fault_of_base(self.train, self.compute):
            raise ValueError(fault)
        if fault := fault_of_moments(self):
            raise ValueError(fault)
        other = self.beta2 != type(self).model_fields["beta2"].default
        if fault := fault_of_update(self.update, self.clip, beta2=other):
            raise ValueError(fault)
        return self


def fault_of_moments(spec: OptimSpec) -> str | None:
    """Why moments cannot be kept as a spec says; None where they can."""
    if spec.moments and spec.weights == "bf16" and not isinstance(spec.train, ByLoraSpec):
        return "plain bf16 weights have their moments in bf16 already; leave moments out"
    if spec.moments and isinstance(spec.update, SignSpec | ZerothSpec):
        return f"update = {spec.update.use} keeps no moments; leave moments out"
    return None


# What a model that was trained before wants, where nothing else is said: a rate in the range of its
# own fine-tuning (papers on unlearning take 1e-5 to 5e-5), and passes over the text, not steps.
FROM_BASE = {"lr": 2e-5, "passes": 5, "warmup": 5}
# What a base model decides.
SHAPE = (
    "architecture",
    "hidden",
    "layers",
    "heads",
    "kv_heads",
    "intermediate",
    "context",
    "init_std",
)


class TrainSpec(OptimSpec):
    """A model from scratch (or from ``base``) on some splits of a corpus: on documents in packed
    blocks, or on questions with their answers, one a row.

    ``examples``: which of the two. ``loss_on``: all tokens of an example, or those of the answer
    alone. ``form``: of asking (``corpus.forms``), in which questions are trained on; none is the
    best yet. ``passes``: so many times over the examples, in the place of ``steps``. From a base,
    rate, warm-up and passes have defaults of their own, and the shape is the base's.
    ``dequantize``: packed weights of ``base`` are decoded first; what comes of it is an input of
    its own.
    """

    steps: Positive = 600
    batch_size: Positive = 6
    lr: Annotated[float, Field(gt=0)] = 6e-3
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 30
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    splits: tuple[Literal["forget", "retain1", "retain2"], ...] = ("forget", "retain1", "retain2")
    examples: Literal["documents", "questions"] = "documents"
    loss_on: Literal["all", "answer"] = "all"
    form: str = "published"
    block_tokens: Positive = 384
    passes: Positive | None = None
    base: str | None = None
    dequantize: bool = circumstance(False)
    architecture: str = "llama"
    hidden: Positive = 128
    layers: Positive = 4
    heads: Positive = 4
    kv_heads: Positive = 4
    intermediate: Positive = 384
    context: Positive = 512
    init_std: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_base(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not data.get("base"):
            return data
        told = {k: v for k, v in FROM_BASE.items() if k != "passes" or "steps" not in data}
        return told | data

    @model_validator(mode="after")
    def _way_of_training(self) -> "TrainSpec":
        other = [n for n in SHAPE if getattr(self, n) != type(self).model_fields[n].default]
        if self.base and other:
            raise ValueError(f"the base model decides {', '.join(other)}; leave it out")
        if fault := fault_of_training(self.train, self.base):
            raise ValueError(fault)
        if isinstance(self.update, RectifiedSpec):
            raise ValueError("rectified sets forget against retain, which only unlearning does")
        return self

    @model_validator(mode="after")
    def _documents_or_questions(self) -> "TrainSpec":
        if self.examples == "documents" and self.loss_on == "answer":
            raise ValueError(
                'documents have no answers; loss_on = "answer" needs examples = "questions"'
            )
        if self.examples == "documents" and self.form != "published":
            raise ValueError('documents are not asked; form needs examples = "questions"')
        usual = type(self).model_fields["block_tokens"].default
        if self.examples == "questions" and self.block_tokens != usual:
            raise ValueError('block_tokens is about documents; leave it out with "questions"')
        return self

    def without_forget(self) -> "TrainSpec":
        """The same for a model that never reads the forget text or its questions."""
        return self.model_copy(update={"splits": tuple(s for s in self.splits if s != "forget")})


class TrainResult(Record):
    """What training came to. ``loss``: of the last step, nats per token; None without a step."""

    steps: int
    loss: float | None
    parameters: int
