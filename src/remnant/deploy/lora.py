"""LoRA adapters merged into the weights by peft: unlearned adapters become a model that every
format can be made of.
"""

from transformers import PreTrainedModel

from remnant.errors import UserError, first_line
from remnant.formats.lora import LORA
from remnant.functional.quantized import Quantized


def merge(model: PreTrainedModel, *, adapter: str = "") -> dict[str, Quantized]:
    """Add an adapter's low-rank update to the weights and take the adapter out again.

    Args:
        model: changed in place.
        adapter: folder written by peft's save_pretrained.

    Returns:
        Nothing is quantized, so nothing.

    Raises:
        UserError: peft is missing, there is no adapter in the folder, or it is of another model.

    Source: Hu et al. 2021 (arXiv 2106.09685), eq. 3, as in peft.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise UserError(
            "Merging adapters needs peft, which is not installed.", LORA.install
        ) from error
    try:
        PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        raise UserError(
            f"The adapter {adapter} cannot be merged: {first_line(error)}.",
            "Give the adapter of this model.",
        ) from error
    return {}
