"""Whole weights that move: all of them, those that a quantizer touches, or layers by pattern."""

from collections.abc import Iterable

from transformers import PreTrainedModel

from remnant.functional.patterns import chosen
from remnant.model.load import matrices
from remnant.records import LayersResult
from remnant.trainable.parts import Part
from remnant.trainable.trainable import Trainable, of_weights


def everything(model: PreTrainedModel) -> Trainable:
    """Every weight."""
    return of_weights(model, [Part(parameter) for parameter in model.parameters()])


def quantized(model: PreTrainedModel) -> Trainable:
    """The weights that a quantizer touches when nothing else was asked for."""
    return of_weights(model, [Part(matrix.parameter) for matrix in matrices(model)])


def layers(model: PreTrainedModel, patterns: Iterable[str]) -> Trainable:
    """The weights that patterns name (`functional/patterns.py`), biases and norms among them.

    Raises:
        UserError: a pattern fits no weight.
    """
    parameters = dict(model.named_parameters())
    names = chosen(patterns, parameters)
    return of_weights(
        model, [Part(parameters[name]) for name in names], result=LayersResult(weights=len(names))
    )
