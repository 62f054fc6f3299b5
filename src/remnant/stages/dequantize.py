"""dequantize: a packed model -> a dense one in float32, its weights what the codes stand for."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from remnant.context import Context
from remnant.errors import UserError
from remnant.model.door import packing_at
from remnant.model.load import open_model, open_tokenizer
from remnant.model.saving import LEFT_BY_MODELS, check_saving, save
from remnant.packing import BEFORE, Packing, check_decoded
from remnant.records import DequantizeResult, DequantizeSpec, Difference
from remnant.runtimes.decoding import Decoded
from remnant.runtimes.order import logits_of
from remnant.stages.deploy import APART, PROBE_TOKENS, PROBES, difference

LEAVES = LEFT_BY_MODELS


def run(
    spec: DequantizeSpec, inputs: Mapping[str, Path], out: Path, work: Context
) -> DequantizeResult:
    """Decode, compare with the packed model where a runtime opens it, and save.

    A model of the hub that turns out to be plain is saved as it is.

    Raises:
        UserError: nothing here decodes it, or the dense model answers otherwise.
    """
    work.models.clear()
    source = str(inputs["model"])
    packing = packing_at(source)
    tokenizer = open_tokenizer(source)
    work.progress(0, 1, "decoding")
    dense, packed = _decoded(packing, source) if packing else Decoded(open_model(source), None)
    check_saving(dense, tokenizer)
    save(dense, tokenizer, out)
    apart = _compared(dense, packed, source) if packed is not None else None
    work.progress(1, 1, "decoding")
    return DequantizeResult(packed_as=packing.name if packing else None, against_packed=apart)


def _compared(dense: PreTrainedModel, packed: PreTrainedModel, source: str) -> Difference:
    vocabulary = dense.config.get_text_config().vocab_size
    seeded = torch.Generator().manual_seed(0)
    probe = torch.randint(vocabulary, (PROBES, PROBE_TOKENS), generator=seeded)
    apart = difference(logits_of(packed, probe.to(packed.device)).cpu(), logits_of(dense, probe))
    if not apart.relative <= APART:
        raise UserError(
            f"The decoded weights of {source} answer otherwise than the packed ones "
            f"(relative difference {apart.relative:.2f}).",
            BEFORE,
        )
    return apart


def _decoded(packing: Packing, source: str) -> Decoded:
    check_decoded(packing, source)
    module, name = packing.decoder.split(":")
    function: Any = getattr(importlib.import_module(module), name)
    found: Decoded = function(source)
    return found
