"""What a library is given to write a deployed model, and the way that those inside transformers
share.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError, some
from remnant.model.load import open_model


class Order(NamedTuple):
    """A model, the table key and parameters of a format, the weights to quantize, and the folder of
    the dense copy that was judged.

    ``probe`` [B, T]: token ids on which what is written is compared.
    """

    use: str
    params: Mapping[str, Any]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    names: list[str]
    dense: Path
    probe: Tensor


class Saved(NamedTuple):
    """What a library has written, for which runtime.

    ``logits`` [B, T, V]: of the packed model in memory on the order's probe; None where the file is
    all there is. ``tokenizer``: what was seen of the runtime's own, where it has one.
    """

    runtime: str
    logits: Tensor | None
    tokenizer: str | None = None


def check_linear(
    model: PreTrainedModel,
    names: Sequence[str],
    library: str,
    kinds: tuple[type[nn.Module], ...] = (nn.Linear,),
) -> None:
    """Refuse weights of other layers than linear ones, which libraries leave alone in silence: all
    experts of a mixture that are kept as one weight are none.

    Raises:
        UserError: a weight is not a linear layer's (of ``kinds``).
    """
    layers = dict(model.named_modules())
    for name in names:
        if not isinstance(layers.get(name.removesuffix(".weight")), kinds):
            fused = model.get_parameter(name).ndim > 2
            raise UserError(
                f"{library} quantizes linear layers only, and {name} is "
                f"{'all experts in one weight' if fused else 'not one'}.",
                "Use a round-to-nearest quantizer, or leave the weight out with --set skip"
                f"{' (its list and experts)' if fused else ''}.",
            )


def check_rows(order: Order, group: int, library: str) -> None:
    """Refuse a model with weights whose rows are no whole number of groups, which a library packs
    wrongly or not at all; 0 is one group per row.

    Raises:
        UserError: names these weights and the length of the first one's rows.
    """
    shapes = {n: p.shape for n, p in order.model.named_parameters() if n in set(order.names)}
    bad = [name for name, shape in shapes.items() if group and shape[-1] % group]
    if bad:
        raise UserError(
            f"{library} cannot keep rows of {shapes[bad[0]][-1]} in groups of {group}: "
            f"{some(bad)}.",
            "Leave these weights out with --set skip, or deploy another format.",
        )


def repack(order: Order, settings: Any, out: Path) -> Tensor:
    """Write a folder by loading the model with transformers' settings of a quantizer and saving it.

    Returns the packed model's logits.

    It is saved before the first forward pass: on some CPUs a pass repacks bitsandbytes' 4-bit
    weights, and saved afterwards they are corrupt.
    """
    with tempfile.TemporaryDirectory(dir=out) as folder:
        order.model.save_pretrained(folder)
        packed = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=settings, device_map="cpu", dtype=torch.float32
        )
    packed.save_pretrained(out)
    order.tokenizer.save_pretrained(out)
    return logits_of(packed, order.probe)


def answers(folder: Path, ids: Tensor) -> Tensor:
    """[B, T, V] logits of a deployed model by its library's kernels under transformers."""
    return logits_of(open_model(str(folder)), ids)


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """[B, T, V] in float32."""
    found: Tensor = model(input_ids=ids).logits.float()
    return found
