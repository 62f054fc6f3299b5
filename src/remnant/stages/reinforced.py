"""The target trained once more on the forget text, for losses that read it beside the target."""

from pathlib import Path

from transformers import PreTrainedModel

from remnant.errors import UserError
from remnant.ranks import count
from remnant.records import UnlearnSpec
from remnant.training.stepper import opened


def reinforced(
    source: Path | None, model: PreTrainedModel, spec: UnlearnSpec
) -> PreTrainedModel | None:
    """The model that was trained once more on the forget text, in the regime of the run.

    Raises:
        UserError: several devices, or its tokens are not those of the target.
    """
    if source is None:
        return None
    if count() > 1:
        raise UserError("A reinforced model is read on one device.", "Leave devices out.")
    found, _ = opened(str(source), str(model.device), spec)
    sizes = [m.config.get_text_config().vocab_size for m in (model, found)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"The reinforced model has {sizes[1]} tokens, the target {sizes[0]}.",
            "Train it from the target: train CORPUS --base TARGET.",
        )
    return found
