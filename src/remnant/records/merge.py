"""An adapter merged into its model."""

from remnant.records.base import Record


class MergeSpec(Record):
    """The merge of an adapter: nothing to choose."""


class MergeResult(Record):
    """What a merge changed: names of weights, and the norm of the update over that of the weights.

    ``relative_update``: over all weights that changed.
    """

    changed: tuple[str, ...]
    relative_update: float
