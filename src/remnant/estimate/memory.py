"""Peak memory of a step, in bytes, by arithmetic on the shape of a model. No torch.

What a block keeps for the backward pass is counted tensor by tensor, as autograd saves them in
transformers' Llama (the tests ask autograd itself). The peak is the largest of the moments of a
step, and of opening and saving the model.
"""

import math
from typing import NamedTuple

from remnant.estimate.shape import Shape
from remnant.formats.bitsandbytes import OPENED_BLOCK
from remnant.functional.patterns import chosen
from remnant.records import (
    ByLoraSpec,
    BySureSpec,
    OptimSpec,
    RectifiedSpec,
    SamSpec,
    SignSpec,
    UnlearnSpec,
    ZerothSpec,
    packs,
    saves_apart,
)

# As functional/pieces.py, which needs torch: logits of more bytes are made in pieces of so many,
# and up to so many are kept for the backward pass.
PIECE_BYTES, KEPT_BYTES = 64 * 2**20, 256 * 2**20
# Tensors of the size of a piece that exist side by side in the backward pass of a piece: the
# logits, their log-softmax, its gradient, the logits' gradient; of a divergence also the
# reference's log-softmax, its exponential and the difference.
PIECES_OF_A_LOSS, PIECES_OF_A_DIVERGENCE = 4, 7
# Python, torch, transformers and peft, and what they allocate at the first pass; measured on Linux,
# torch 2.13: `benchmarks/memory.py` prints it again as "idle".
LIBRARIES = 600 * 10**6


class Text(NamedTuple):
    """What a step reads.

    ``batch`` x ``length`` tokens a side, in ``passes`` sides whose graphs live together.
    ``cached``: tokens of all texts whose last states the reference keeps. ``divergence``: a term
    compares whole distributions; ``early``: one of a side whose pass is not the last one.
    ``padded``: texts differ in length, so that attention gets a mask. ``forget``: tokens of all
    forget texts, which a promise reads.
    """

    batch: int
    length: int
    passes: int = 1
    cached: int = 0
    divergence: bool = False
    padded: bool = True
    early: bool = False
    forget: int = 0

    @property
    def tokens(self) -> int:
        """Of one side."""
        return self.batch * self.length


class Moving(NamedTuple):
    """How many numbers move. ``graded``: of parameters that get a gradient, which may be more.
    ``largest``: of the largest part. ``table``: embeddings move; ``head``: the output head does.
    ``adapters``: of which rank; 0 without any.
    """

    numbers: int
    graded: int
    largest: int
    table: bool
    head: bool
    adapters: int = 0


class Peak(NamedTuple):
    """Bytes, by what they are for. ``activations``: kept for the backward pass. ``passing``: what
    exists for a moment at the peak of a step (pieces of logits, copies of a part). ``cache``: of
    reference values. ``around``: what opening or saving the model, or keeping a promise, needs
    beyond a step, mostly 0.
    """

    weights: int
    gradients: int
    moments: int
    activations: int
    passing: int
    cache: int
    libraries: int
    around: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def moving_of(shape: Shape, spec: OptimSpec) -> Moving:
    """What moves in a model.

    Raises:
        UserError: a pattern fits no weight.
    """
    matrices = shape.matrices()
    sizes = {name: math.prod(size) for name, size in matrices.items()}
    match spec.train:
        case ByLoraSpec(lora=own):
            names = chosen(own.targets, matrices) if own.targets else list(matrices)
            factors = [own.rank * sum(matrices[name]) for name in names]
            largest = own.rank * max(max(matrices[name]) for name in names)
            return Moving(sum(factors), sum(factors), largest, False, False, own.rank)
        case BySureSpec(sure=own):
            graded = sum(sizes.values()) + bool(own.also) * shape.tables * shape.table
            share = 1 - own.percentile / 100
            return Moving(int(share * graded), graded, max(sizes.values()), bool(own.also), False)
        case "all":
            largest = max(shape.table, *sizes.values())
            return Moving(shape.weights, shape.weights, largest, True, True)
        case "matrices":
            total = sum(sizes.values())
            return Moving(total, total, max(sizes.values()), False, False)
        case patterns:
            tables = {"model.embed_tokens": shape.table, "lm_head": shape.table}
            found = chosen(patterns, [*matrices, *tables])
            numbers = [(sizes | tables)[name] for name in found]
            table, head = (name in found for name in tables)
            return Moving(sum(numbers), sum(numbers), max(numbers), table, head)


def width_of(spec: OptimSpec) -> int:
    """Bytes of a weight as it computes: 4, or 2 in bfloat16.

    >>> width_of(OptimSpec(weights="bf16")), width_of(OptimSpec(weights="bf16", compute="fp32"))
    (2, 4)
    """
    return 4 if spec.weights == "fp32" or spec.compute == "fp32" else 2


def of_weights(shape: Shape, spec: OptimSpec) -> int:
    """Bytes of a model's own weights while it is trained: linear layers that are packed take half a
    byte and a scale of 4 bytes for every block.
    """
    width = width_of(spec)
    if not packs(spec.train):
        return width * shape.weights
    linear = shape.layers * shape.block
    return linear // 2 + 4 * linear // OPENED_BLOCK + width * (shape.weights - linear)


def kept_by_a_block(shape: Shape, text: Text, width: int, adapters: int = 0) -> int:
    """Bytes that autograd keeps for the backward pass of one block.

    Args:
        shape: of the model.
        text: a side of it.
        width: bytes of a number, 4 or 2.
        adapters: their rank, which are float32 beside frozen weights; 0 where weights move.

    The input, and the normed one where the norm's weight moves, of two norms (float32 within them),
    the input of every linear layer, queries, keys and values as the attention takes them, what it
    gives with one number per head and place, three numbers within the MLP.
    """
    h, f, q = shape.width, shape.inner, shape.query
    kv = q if text.padded else shape.kv_heads * shape.head
    attention = q + 2 * kv
    small = 4 * (2 + shape.heads) + (text.length * width if text.padded else 0)
    if not adapters:
        per_token = 4 * 2 * h + width * (2 * h + 2 * h + attention + q + 4 * f)
        if width == 4:
            per_token = 4 * (6 * h + attention + q + 4 * f)
    elif width == 4:
        per_token = 4 * (4 * h + attention + q + 4 * f + 7 * adapters)
    else:
        # Every adapter takes a float32 copy of its input: three of one norm, two of the other, one
        # of what the attention gives, which keeps its own.
        copies = 5 * h + q + f + 7 * adapters
        per_token = 4 * (2 * h + copies) + width * (attention + q + 3 * f)
    return text.tokens * (per_token + small)


def kept_by_a_pass(
    shape: Shape, text: Text, width: int, spec: OptimSpec, adapters: int, *, whole: bool = False
) -> int:
    """Bytes that autograd keeps of the pass of one side: blocks, the last norm and what the head
    reads; with checkpointing the inputs of the blocks alone. Logits where they are few, or made at
    once (``whole``).
    """
    block = kept_by_a_block(shape, text, width, adapters)
    if spec.checkpointing:
        block = text.tokens * shape.width * width
    last = text.tokens * shape.width * (4 + 3 * width)
    logits = 4 * text.tokens * shape.vocabulary
    return shape.layers * block + last + (logits if whole or logits <= KEPT_BYTES else 0)


def of_the_head(
    shape: Shape, text: Text, width: int, moving: Moving, *, divergence: bool, whole: bool = False
) -> int:
    """Bytes that exist while losses are taken from the last states of a side: some pieces of
    logits, or of all at once (``whole``), and the gradient of the head's weights in float32.
    """
    logits = 4 * text.tokens * shape.vocabulary
    # Pieces are nearly equal in size.
    piece = logits if whole else logits // max(1, -(-logits // PIECE_BYTES))
    count = PIECES_OF_A_DIVERGENCE if divergence else PIECES_OF_A_LOSS
    gradient = (4 + (2 if width == 2 else 0)) * shape.table if moving.head else 0
    return count * piece + gradient


def of_a_part(spec: OptimSpec, moving: Moving) -> int:
    """Bytes that exist beside weights, gradients and moments while the largest part is stepped.

    Stochastic rounding: gradient and values in float32, four tensors of bits, the mask and the
    result. Plain bfloat16: two tensors within AdamW; where it computes in float32, also gradient
    and values in bfloat16. float32: nothing, torch's fused kernel works in place; with narrow
    moments both of them in float32, and what rounds one of them (bfloat16) or what bitsandbytes
    makes on the processor (a gradient, and two tensors of the denominator).
    """
    within = {None: 0, "bf16": 4 + 4 + 15, "8bit": 4 + 4 + 4 + 4 + 4}[spec.moments]
    if moving.adapters or spec.weights == "fp32":
        return within * moving.largest
    if spec.weights == "bf16-stochastic-rounding":
        return (4 + 4 + max(15, within)) * moving.largest
    return (2 * 2 + (2 + 2 if spec.compute == "fp32" else 0)) * moving.largest


def of_moments(spec: OptimSpec, moving: Moving) -> int:
    """Bytes of both moments between steps; of 8 bits with a scale of 4 bytes for every 256."""
    if isinstance(spec.update, SignSpec | ZerothSpec):
        return 0
    if spec.moments == "8bit":
        return 2 * (moving.numbers + 4 * moving.numbers // 256)
    plain = spec.weights == "bf16" and not moving.adapters
    return 2 * (2 if plain or spec.moments == "bf16" else 4) * moving.numbers


def of_a_look(spec: OptimSpec, moving: Moving) -> int:
    """Bytes that an option of the optimiser holds beside weights and gradients while a step looks
    elsewhere: where weights go (float32) and what they were, or two gradients in float32.
    """
    width = 4 if moving.adapters else width_of(spec)
    match spec.update:
        case SamSpec() | ZerothSpec():
            return (4 + width) * moving.numbers
        case RectifiedSpec():
            return 2 * 4 * moving.numbers
        case _:
            return 0


def on_grids(spec: OptimSpec) -> bool:
    """Whether a run looks at rounded weights too."""
    return isinstance(spec, UnlearnSpec) and spec.grids is not None


def rounded_of(shape: Shape) -> int:
    """How many numbers a grid rounds: the matrices of all blocks."""
    return sum(map(math.prod, shape.matrices().values()))


def of_rounding(shape: Shape, spec: OptimSpec) -> int:
    """Bytes that rounded weights take beside the weights while a step looks at them: values in
    float32 with their codes, and in bfloat16 the values as the model computes with them.
    """
    if not on_grids(spec):
        return 0
    cast = width_of(spec) if width_of(spec) == 2 else 0
    return (4 + 1 + cast) * rounded_of(shape)


def of_a_promise(shape: Shape, spec: OptimSpec) -> int:
    """Bytes that keeping a promise takes behind the last step: the model and its target; of every
    weight that a grid rounds target, target as read, crossed value, score twice and what is tried,
    in float32, its place in the order of scores, and its rounding with the code.
    """
    if not isinstance(spec, UnlearnSpec) or not spec.promise:
        return 0
    return 2 * width_of(spec) * shape.weights + (6 * 4 + 8 + 4 + 1) * rounded_of(shape)


def room_of(spec: OptimSpec) -> int:
    """Bytes of reference values that are kept in memory; the rest lies on the disk. Training has no
    reference.
    """
    return int(1e9 * spec.reference_gb) if isinstance(spec, UnlearnSpec) else 0


def of_opening(shape: Shape, kept: int, width: int) -> int:
    """Bytes that opening a model takes at most.

    Args:
        shape: of the model.
        kept: bytes of a weight as it is opened, 4 or 2.
        width: as it computes.

    It is a view of its file where that has the dtype in which weights are kept; else the file is
    let go when all of it is cast. One weight at a time is summed in float32, to see that it is
    finite. Where a model computes in float32 it is cast once more.
    """
    read = kept + (shape.saved if shape.saved != kept else 0)
    cast = kept + width if width > kept else 0
    largest = max(shape.table, *(math.prod(size) for size in shape.matrices().values()))
    summed = 4 * largest if kept == 2 else 0
    return max(read * shape.weights, cast * shape.weights, kept * shape.weights + summed)


def of_gathering(shape: Shape, width: int) -> tuple[int, int]:
    """Bytes of what a device of several has whole for a moment, forward and beyond that backward:
    the tables for as long as a pass takes, and a block with what it is gathered into; their
    gradients, those of a block with what is sent of them.
    """
    there = width * (shape.tables * shape.table + 2 * shape.block)
    return there, there


def peak(shape: Shape, spec: OptimSpec, text: Text, shards: int = 1) -> Peak:
    """The peak memory of training, on one of ``shards`` devices that share weights, gradients and
    moments evenly (each with a batch of its own, whose logits are made at once), and gather one
    block, and the tables, for a moment. Adapters lie whole on each.

    The moments of a step: the backward pass begins (all sides are kept), goes from one side to the
    next (gradients are there, one side is kept), ends (the table's gradient is added), and the
    largest part is stepped.
    """
    width, moving = width_of(spec), moving_of(shape, spec)
    graded = 4 if moving.adapters else width
    own = 4 * moving.numbers if moving.adapters else 0
    held = of_a_look(spec, moving) + of_rounding(shape, spec)
    parted = 1 if moving.adapters else shards
    weights = (of_weights(shape, spec) + held) // shards + own
    gradients = graded * moving.graded // parted
    moments = of_moments(spec, moving) // parted
    rows = min(text.cached * shape.width * width, room_of(spec))
    cache = rows + (width * shape.table if text.cached else 0)
    spread = shards > 1
    side = kept_by_a_pass(shape, text, width, spec, moving.adapters, whole=spread)
    block = kept_by_a_block(shape, text, width, moving.adapters)
    head = of_the_head(shape, text, width, moving, divergence=text.divergence, whole=spread)
    # The last side goes backward first, so that what is left behind it are the others.
    rest = text.early if text.passes > 1 else text.divergence
    other = of_the_head(shape, text, width, moving, divergence=rest, whole=spread)
    added = width * shape.table if moving.table and (text.passes > 1 or shape.tied) else 0
    there, back = of_gathering(shape, width) if spread else (0, 0)
    gathered = there + back
    # Whole logits that are compared are kept with the reference's.
    compared = 4 * text.tokens * shape.vocabulary * (spread and text.divergence)
    # A packed layer is decoded for a moment, forward and backward.
    largest = max(math.prod(size) for size in shape.matrices().values())
    block += width * largest if packs(spec.train) else 0
    begins = (0, text.passes * side + compared, max(head, block) + there)
    between = (gradients, (text.passes - 1) * side, max(other, block, added) + gathered)
    ends = (gradients, 0, max(added + block + gathered, of_a_part(spec, moving) // shards))
    at_peak = max(begins, between, ends, key=sum)
    found = Peak(weights, at_peak[0], moments, at_peak[1], at_peak[2], cache, LIBRARIES)
    kept = 4 if spec.weights == "fp32" else 2
    opened = of_opening(shape, kept, width) // shards
    opened = max(opened, of_a_promise(shape, spec)) + cache
    if packs(spec.train):
        # Pages of the file are the system's, which takes them back; merged, all is decoded, beside
        # adapters and what is kept of the reference.
        opened = 0 if saves_apart(spec.train) else kept * shape.weights + own + cache
    whole = opened + LIBRARIES
    return found._replace(around=max(0, whole - found.total))
