"""deploy: a model -> the files of a format that a runtime opens, opened again and compared with the
dense copy that was judged.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remnant.context import Context
from remnant.errors import UserError
from remnant.formats.table import FORMATS
from remnant.model.door import check_plain
from remnant.model.load import in_dtype, matrices, open_model, open_tokenizer
from remnant.model.saving import LEFT_BY_MODELS
from remnant.records import DeployResult, Difference, TransformSpec
from remnant.runtimes.order import Order, Saved, logits_of

PROBES, PROBE_TOKENS = 4, 64
# Kernels that round activations stay below this; weights that were left alone or garbled do not.
APART = 0.2
LEAVES = (
    *LEFT_BY_MODELS, "pytorch_model.bin", "pytorch_model-*-of-*.bin",
    "pytorch_model.bin.index.json", "recipe.yaml", "*.gguf",
)  # fmt: skip


def run(spec: TransformSpec, inputs: Mapping[str, Path], out: Path, work: Context) -> DeployResult:
    """Write the files and see how far the runtime's own kernels are from the dense copy.

    Raises:
        UserError: the library is missing, or would do in silence what is not what was asked for.
    """
    work.models.clear()
    check_plain(str(inputs["model"]), "quantizing it again would round twice")
    tokenizer = open_tokenizer(str(inputs["model"]))
    model = open_model(str(inputs["model"]))
    if spec.source_dtype == "bfloat16":
        in_dtype(in_dtype(model, torch.bfloat16), torch.float32)
    dense = open_model(str(inputs["dense"]))
    probe = torch.randint(
        dense.config.vocab_size, (PROBES, PROBE_TOKENS), generator=torch.Generator().manual_seed(0)
    )
    names = [m.name for m in matrices(model, spec.skip)]
    known = FORMATS[spec.use]
    save, answers = _function(known.saver), _function(known.opener)
    work.progress(0, 2, spec.use)
    order = Order(spec.use, spec.params, model, tokenizer, names, inputs["dense"], probe)
    saved: Saved = save(order, out)
    work.progress(1, 2, "opened again")
    opened: Tensor = answers(out, probe)
    apart = difference(opened, logits_of(dense, probe))
    if not apart.relative <= APART:
        raise UserError(
            (
                f"The files for {saved.runtime} answer otherwise than the dense copy "
                f"(relative difference {apart.relative:.2f})."
            ),
            (
                "The library left weights alone or decodes them wrongly; deploy another format of "
                "this model."
            ),
        )
    before = None if saved.logits is None else difference(opened, saved.logits)
    work.progress(2, 2, "opened again")
    return DeployResult(
        format=spec.use,
        params=dict(spec.params),
        runtime=saved.runtime,
        tokenizer=saved.tokenizer,
        against_dense_copy=apart,
        against_before_saving=before,
    )


def difference(packed: Tensor, plain: Tensor) -> Difference:
    """How far two sets of logits [B, T, V] are apart."""
    apart = packed - plain
    return Difference(
        relative=float(apart.norm() / plain.norm()),
        largest=float(apart.abs().max()),
        same_top=float((packed.argmax(-1) == plain.argmax(-1)).float().mean()),
    )


def _function(path: str) -> Callable[..., Any]:
    """A function by its "module:function", imported only where it is wanted."""
    module, function = path.split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found
