"""What tensors are called here, by their axes: one name for one shape and kind of number.

The tests check every call against them (jaxtyping); nothing is checked at work. Axes: batch of
texts, time (tokens of the padded batch), next (time - 1: what is predicted), vocab, hidden, rows
and columns of a weight, the columns being its inputs.
"""

from jaxtyping import Bool, Float, Int, Integer, Shaped
from torch import Tensor

# Of a batch.
PerText = Float[Tensor, "batch"]
PerToken = Float[Tensor, "batch next"]
NextTokens = Int[Tensor, "batch next"]
NextMask = Bool[Tensor, "batch next"]
Labels = Int[Tensor, "batch time"]
TimeMask = Bool[Tensor, "batch time"]
PerTime = Float[Tensor, "batch time"]
Logits = Float[Tensor, "batch time vocab"]
LogProbs = Float[Tensor, "batch next vocab"]
States = Float[Tensor, "batch time hidden"]
Number = Float[Tensor, ""]

# Of the head over hidden states, of which some rows are taken at a time.
HeadWeight = Float[Tensor, "vocab hidden"]
HeadBias = Float[Tensor, "vocab"]
PerRow = Shaped[Tensor, "rows"]
RowLogits = Float[Tensor, "rows vocab"]
AnyStates = Float[Tensor, "*texts hidden"]
AnyLogits = Float[Tensor, "*texts vocab"]

# Of weights.
Weight = Float[Tensor, "*experts rows columns"]
AnyWeight = Float[Tensor, "*shape"]
AnyMask = Bool[Tensor, "*shape"]
Blocks = Float[Tensor, "blocks entries"]
PerBlock = Float[Tensor, "blocks 1"]
PerColumn = Float[Tensor, "columns"]
OfInputs = Float[Tensor, "columns columns"]
Vector = Float[Tensor, "size"]

# Of packed files: every one has dimensions of its own, so only their number is told.
Integers = Integer[Tensor, "_ _"]
Indices = Int[Tensor, "_"]
Matrix = Float[Tensor, "_ _"]
