"""merge: a model + an adapter of it -> one model, its weights the sum."""

from collections.abc import Mapping
from pathlib import Path

from remnant.context import Context
from remnant.model.adapter import merge
from remnant.model.door import check_plain
from remnant.model.load import open_model, open_tokenizer
from remnant.model.saving import LEFT_BY_MODELS, check_saving, save
from remnant.records import MergeResult, MergeSpec

LEAVES = LEFT_BY_MODELS


def run(spec: MergeSpec, inputs: Mapping[str, Path], out: Path, work: Context) -> MergeResult:
    """Merge in float32 and save.

    The tokenizer is the model's: an adapter changes no ids.

    Raises:
        UserError: the model holds packed weights, or the adapter is not of it.
    """
    work.models.clear()
    base = str(inputs["base"])
    check_plain(base, "no adapter can be added to packed weights")
    tokenizer, model = open_tokenizer(base), open_model(base)
    check_saving(model, tokenizer)
    work.progress(0, 1, "merging")
    merged = merge(model, inputs["adapter"])
    save(merged.model, tokenizer, out)
    work.progress(1, 1, "merging")
    return MergeResult(changed=merged.changed, relative_update=merged.relative_update)
