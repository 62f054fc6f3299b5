"""How long training takes, from what it computes and moves and how fast a machine is. No torch."""

from typing import NamedTuple, Protocol

from remnant.estimate.memory import (
    Text,
    kept_by_a_pass,
    moving_of,
    on_grids,
    rounded_of,
    width_of,
)
from remnant.estimate.shape import Shape
from remnant.records import OptimSpec, SamSpec, UnlearnSpec, ZerothSpec

# What is expected of a disk before it was timed, bytes a second, as training/checkpoints.py does.
DISK = 200e6
# Rounding a weight takes as long as copying its float32 values so often (docs/benchmarks.md,
# `quantize.py`: 9 times by rows, 21 times NF4, over memory that is there).
COPIES_OF_A_ROUNDING = 15
# Numbers of weights that a promise tries: doublings from 0.05 % to 5 %, halvings, and the
# certificate (training/promise.py); a look that fails ends early, which is not counted on.
LOOKS_OF_A_PROMISE = 12


class Speed(Protocol):
    """As rates.Rates: operations a second in float32 and bfloat16, bytes a second."""

    @property
    def matmul(self) -> float: ...  # noqa: D102
    @property
    def half(self) -> float: ...  # noqa: D102
    @property
    def copy(self) -> float: ...  # noqa: D102


class Step(NamedTuple):
    """Seconds of a step: products of matrices, what stands between them, the optimiser."""

    products: float
    between: float
    optimiser: float


def operations(shape: Shape, spec: OptimSpec, text: Text) -> float:
    """Floating point operations of the passes of a micro-step.

    Two for every weight and token forward, two backward for the gradient of the states and two for
    that of the weights, which adapters do without; two more where blocks are computed again; of
    attention 4 per query's number and place forward, twice that backward. Steps at two points have
    two forward passes and nothing else, those by SAM one side more.

    Source: Kaplan et al. 2020 (arXiv 2001.08361), section 2.1; PaLM (arXiv 2204.02311), appendix B.
    """
    blocks = shape.layers * shape.block
    attention = 2 * shape.layers * text.length * shape.query
    backward = 1 if moving_of(shape, spec).adapters else 2
    again = 1 if spec.checkpointing else 0
    if isinstance(spec.update, ZerothSpec):
        return 2 * text.passes * text.tokens * 2 * (blocks + attention + shape.table)
    of_blocks = (1 + again + backward) * 2 * blocks + (3 + again) * 2 * attention
    # Logits in pieces are made again in the backward pass.
    passes = text.passes + isinstance(spec.update, SamSpec)
    return passes * text.tokens * (of_blocks + (2 + backward) * 2 * shape.table)


def step_of(shape: Shape, spec: OptimSpec, text: Text, speed: Speed) -> Step:
    """Seconds of a step. What is kept for the backward pass is written and read forward, and read
    with its gradient backward; AdamW reads weights, gradients and two moments and writes all but
    the gradients.
    """
    width, moving = width_of(spec), moving_of(shape, spec)
    rate = speed.matmul if width == 4 else speed.half
    # Where grids are trained on, at the weights and at their rounding.
    looks = 2 if on_grids(spec) else 1
    products = looks * spec.accumulate * operations(shape, spec, text) / rate
    whole = spec.model_copy(update={"checkpointing": False})
    kept = text.passes * kept_by_a_pass(shape, text, width, whole, moving.adapters)
    between = looks * spec.accumulate * (4 + 2 * spec.checkpointing) * kept / speed.copy
    between += rounding_of(shape, speed) if on_grids(spec) else 0.0
    return Step(products, between, 7 * 4 * moving.numbers / speed.copy)


def rounding_of(shape: Shape, speed: Speed) -> float:
    """Seconds of rounding all matrices to one grid."""
    return COPIES_OF_A_ROUNDING * 4 * rounded_of(shape) / speed.copy


def promised_of(shape: Shape, spec: OptimSpec, text: Text, speed: Speed) -> float:
    """Seconds of keeping a promise: at every look the forget text is read by the model as it is and
    rounded to every grid.
    """
    if not isinstance(spec, UnlearnSpec) or not spec.promise:
        return 0.0
    rate = speed.matmul if width_of(spec) == 4 else speed.half
    reading = 2 * shape.weights * text.forget / rate
    grids = len(spec.promise.use)
    return LOOKS_OF_A_PROMISE * ((grids + 1) * reading + grids * rounding_of(shape, speed))


def seconds_of(shape: Shape, spec: OptimSpec, text: Text, speed: Speed) -> float:
    """Seconds of a whole run: opening, the reference's pass, all steps, a promise, saving.

    Probes, whose text an estimate does not read, are left out.
    """
    rate = speed.matmul if width_of(spec) == 4 else speed.half
    files = 2 * stored(shape, spec) / DISK
    reference = 2 * shape.weights * text.cached / rate
    promised = promised_of(shape, spec, text, speed)
    return files + reference + spec.steps * sum(step_of(shape, spec, text, speed)) + promised


def stored(shape: Shape, spec: OptimSpec) -> int:
    """Bytes of a model as a regime saves it."""
    return (4 if spec.weights == "fp32" else 2) * shape.weights
