"""The grids that a library has too, and a model's weights as that library rounds them."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.methods import step
from remnant.model.load import matrices
from remnant.model.rounding import on_grid
from remnant.runtimes.llamacpp import decoded_blocks

# Our grids, and the format by which a library makes the same one.
LIBRARIES: Mapping[str, str] = {
    "nf4": "bnb-nf4",
    "fp4": "bnb-fp4",
    "nvfp4": "ct-nvfp4a16",
    "mxfp4": "ct-mxfp4a16",
    "int4-g128-half-step": "ct-w4a16",
    "int8-g128-half-step": "ct-w8a16",
    "q4_0": "gguf Q4_0",
    "q8_0": "gguf Q8_0",
}
GGUF = "gguf "


@torch.no_grad()
def decoded_by(
    library: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Tensor]:
    """The decoded weights [..., out, in] that a library makes of a model, by their names.

    Args:
        library: one of the values of ``LIBRARIES``.
        model: stays as it is.
        tokenizer: the model's; llm-compressor wants one.

    Raises:
        UserError: the library is missing, or refuses the model.
    """
    if library.startswith(GGUF):
        return {
            m.name: decoded_blocks(m.read(), library.removeprefix(GGUF)) for m in matrices(model)
        }
    by = step(library)
    if by.method.reads == ("weight",):
        found = ((m.name, on_grid(m, m.read(), by)) for m in matrices(model))
        return {name: q.weight for name, q in found if q is not None}
    twin = copy.deepcopy(model).float()
    offered = {"model": twin, "tokenizer": tokenizer, "names": [m.name for m in matrices(model)]}
    made = by.method.load()(*(offered[name] for name in by.method.reads), **by.method.params)
    return {name: q.weight for name, q in made.items()}
