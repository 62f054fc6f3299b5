"""From what a spec says of training to what moves in a model."""

from collections.abc import Callable, Iterable

from torch import Tensor
from transformers import PreTrainedModel

from remnant.records import ByLoraSpec, BySureSpec, OptimSpec
from remnant.trainable import layers, lora, sure
from remnant.trainable.trainable import Trainable


def _no_forget_loss() -> Iterable[Tensor]:
    raise AssertionError("SURE is asked for where nothing is forgotten")


def attach(
    model: PreTrainedModel,
    spec: OptimSpec,
    forget_loss: Callable[[], Iterable[Tensor]] = _no_forget_loss,
) -> Trainable:
    """What moves in a model.

    Args:
        model: before any step, in the dtype in which it is kept.
        spec: whose ``train`` says what.
        forget_loss: gives the loss of one part of the forget set after the other; their sum is the
            loss of all of it.

    Raises:
        UserError: the model has no such weights.
    """
    match spec.train:
        case "all":
            return layers.everything(model)
        case "matrices":
            return layers.quantized(model)
        case BySureSpec(sure=settings):
            return sure.salient(model, settings, forget_loss, spec.seed)
        case ByLoraSpec(lora=settings):
            return lora.adapted(model, settings, spec.seed)
        case patterns:
            return layers.layers(model, patterns)
