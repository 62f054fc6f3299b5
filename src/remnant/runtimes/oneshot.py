"""GPTQ, AWQ, AutoRound and plain rounding through llm-compressor, as dense copies with the
library's own codes.
"""

import contextlib
import copy
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError, first_line, some
from remnant.formats.compressed_tensors import COMPRESSED, SCHEMES
from remnant.functional.quantized import Quantized
from remnant.model.load import open_model
from remnant.quiet import unchanged
from remnant.runtimes.order import Order, Saved, check_linear, logits_of

# What the library raises where an architecture is not one of those that it knows.
REFUSALS = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
    IndexError,
    AssertionError,
)


def gptq(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batches: list[Tensor],
    names: list[str],
    *,
    bits: int = 4,
    group_size: int = 0,
) -> dict[str, Quantized]:
    """GPTQ: rounding that compensates its error on calibration text, symmetric, block 128,
    dampening 0.01, static act-order.

    Args:
        model: changed in place to its dense quantized copy; a second copy of the weights is held
            meanwhile.
        tokenizer: the model's; the library wants one.
        batches: calibration texts, each [1, T] ids.
        names: weights to quantize; all must belong to linear layers.
        bits: 3, 4 or 8.
        group_size: columns per scale; 0 for one scale per row.

    Raises:
        UserError: llm-compressor is missing, or a weight is not a linear layer's.

    Source: Frantar et al. 2022 (arXiv 2210.17323), as in llm-compressor.
    """
    return _dense(
        model, tokenizer, batches, names, "gptq", {"bits": bits, "group_size": group_size}
    )


def awq(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batches: list[Tensor],
    names: list[str],
    *,
    bits: int = 4,
    group_size: int = 0,
) -> dict[str, Quantized]:
    """AWQ: channels scaled by their activations before asymmetric rounding.

    The scales are folded into the layer before.

    Args, errors: as ``gptq``. Norms before scaled layers change too.

    Source: Lin et al. 2023 (arXiv 2306.00978), as in llm-compressor (grid of 20 ratios, no
    clipping).
    """
    return _dense(model, tokenizer, batches, names, "awq", {"bits": bits, "group_size": group_size})


def autoround(  # noqa: PLR0913  four that a quantizer reads and three that can be set
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batches: list[Tensor],
    names: list[str],
    *,
    bits: int = 4,
    group_size: int = 0,
    steps: int = 200,
) -> dict[str, Quantized]:
    """AutoRound: which way each weight is rounded and where its range is clipped are learned, a
    block at a time, on calibration text.

    Args, errors: as ``gptq``; ``steps``: of signed gradient descent per block.

    Source: Cheng et al. 2023 (arXiv 2309.05516), as in auto-round, driven by llm-compressor;
    symmetric.
    """
    return _dense(
        model,
        tokenizer,
        batches,
        names,
        "autoround",
        {"bits": bits, "group_size": group_size, "steps": steps},
    )


def rounded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    names: list[str],
    *,
    scheme: str = "W4A16",
) -> dict[str, Quantized]:
    """Plain rounding in a scheme that vLLM loads; `formats/compressed_tensors.py` says which.

    Activations, which some round too when they are served, are not rounded in the dense copy.

    Raises:
        UserError: llm-compressor is missing, no such scheme, or a weight is not a linear layer's.
    """
    if scheme not in SCHEMES:
        raise UserError(
            f"llm-compressor's scheme '{scheme}' is not known here.",
            f"Known: {', '.join(SCHEMES)}.",
        )
    return _dense(model, tokenizer, [], names, "compressed", {"scheme": scheme})


def save(order: Order, out: Path) -> Saved:
    """Write a folder in the format of compressed-tensors, which transformers and vLLM open.

    The weights are the dense copy's, the scales the recorded ones, so the files hold exactly what
    was judged: quantizing the source a second time would not, as GPTQ's sums depend on the number
    of threads.

    Raises:
        UserError: as ``gptq``.
    """
    source = open_model(str(order.dense))
    order = order._replace(names=_fitting(source, order.names, order.use, order.params))
    with _library() as modules:
        packed = _oneshot(modules, source, order.tokenizer, [], order.names, _plain(modules, order))
        _settle(packed, order)
        before = logits_of(packed, order.probe)
        packed.save_pretrained(out, save_compressed=True)
    order.tokenizer.save_pretrained(out)
    return Saved("transformers or vLLM with compressed-tensors", before)


# What a layer of the library calls the parts of ``Quantized``.
_HELD = {"scale": "weight_scale", "zero": "weight_zero_point", "shared": "weight_global_scale"}


@torch.no_grad()
def _settle(packed: PreTrainedModel, order: Order) -> None:
    """Put the weights and scales of the dense copy into layers that were quantized anew."""
    layers: dict[str, Any] = dict(packed.named_modules())
    with safe_open(order.dense / "codes.safetensors", "pt") as recorded:
        known = set(recorded.keys())
        for name in order.names:
            layer = layers[name.removesuffix(".weight")]
            parts = {
                part: recorded.get_tensor(f"{name}.{part}")
                for part in ("scale", "zero", "shared")
                if f"{name}.{part}" in known
            }
            if "shared" in parts:  # the file keeps scales in a narrow float, relative to this one
                kept = layer.quantization_scheme.weights.scale_dtype
                parts["scale"] = (parts["scale"] * parts["shared"]).to(kept)
            for part, value in parts.items():
                held = getattr(layer, _HELD[part])
                held.copy_(value.reshape(held.shape))


def _plain(modules: dict[str, Any], order: Order) -> list[Any]:
    """Rounding on the grid of a format, whatever chose the values before."""
    if order.use == "compressed":
        return _recipe(modules, order.use, order.names, order.params)
    groups = _groups(
        order.names, order.params["bits"], order.params["group_size"], symmetric=order.use != "awq"
    )
    return [modules["QuantizationModifier"](config_groups=groups, ignore=[])]


def _recipe(
    modules: dict[str, Any], use: str, names: Sequence[str], params: Mapping[str, Any]
) -> list[Any]:
    if use == "compressed":
        scheme = SCHEMES[params["scheme"]].preset
        return [
            modules["QuantizationModifier"](
                scheme={scheme: [name.removesuffix(".weight") for name in names]}, ignore=[]
            )
        ]
    groups = _groups(names, params["bits"], params["group_size"], symmetric=use != "awq")
    if use == "autoround":
        return [
            modules["AutoRoundModifier"](
                config_groups=groups, ignore=[], iters=params["steps"], enable_torch_compile=False
            )
        ]
    if use == "gptq":
        return [modules["GPTQModifier"](config_groups=groups, ignore=[])]
    return [
        modules["AWQModifier"](),
        modules["QuantizationModifier"](config_groups=groups, ignore=[]),
    ]


def _groups(names: Sequence[str], bits: int, group_size: int, *, symmetric: bool) -> dict[str, Any]:
    strategy = (
        {"strategy": "group", "group_size": group_size} if group_size else {"strategy": "channel"}
    )
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "dynamic": False,
        **strategy,
    }
    return {
        "group_0": {"targets": [name.removesuffix(".weight") for name in names], "weights": weights}
    }


def group_of(use: str, params: Mapping[str, Any]) -> int:
    """Columns that share a scale in a format of the library; 0 for whole rows."""
    if use == "compressed":
        return SCHEMES[params["scheme"]].group
    return int(params["group_size"])


def _fitting(
    model: nn.Module, names: Sequence[str], use: str, params: Mapping[str, Any]
) -> list[str]:
    """The weights whose columns the groups divide.

    The library refuses a whole model for one other.
    """
    group, columns = group_of(use, params), {n: p.shape[-1] for n, p in model.named_parameters()}
    found = [n for n in names if not group or columns[n] % group == 0]
    if not found:
        raise UserError(
            f"Groups of {group} divide the columns of no layer.", "Name a smaller group, or none."
        )
    return found


def _unpinned(kept: Any) -> contextlib.AbstractContextManager[Any]:
    """The library's cache without pinned memory, which only an accelerator has."""
    if torch.cuda.is_available():
        return contextlib.nullcontext()
    return mock.patch.object(kept, "pin_memory", return_value=None)


@contextlib.contextmanager
def _library() -> Iterator[dict[str, Any]]:
    """The library, imported late, kept quiet, and without pinned memory where there is no
    accelerator.
    """
    os.environ.setdefault("LLM_COMPRESSOR_LOG_DISABLED", "true")
    try:
        from llmcompressor import oneshot
        from llmcompressor.modifiers.autoround import AutoRoundModifier
        from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
        from llmcompressor.modifiers.transform.awq import AWQModifier
        from llmcompressor.pipelines import cache
        from loguru import logger
    except ImportError as error:
        raise UserError(
            "GPTQ, AWQ and AutoRound need llm-compressor, which is not installed.",
            COMPRESSED.install,
        ) from error
    logger.remove()
    with (
        unchanged(),
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        _unpinned(cache.IntermediatesCache),
    ):
        warnings.simplefilter("ignore")
        yield {
            "oneshot": oneshot,
            "AutoRoundModifier": AutoRoundModifier,
            "GPTQModifier": GPTQModifier,
            "AWQModifier": AWQModifier,
            "QuantizationModifier": QuantizationModifier,
        }


def _oneshot(
    modules: dict[str, Any],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batches: list[Tensor],
    names: list[str],
    recipe: list[Any],
) -> PreTrainedModel:
    """Run a recipe on a copy, which the library fills with hooks."""
    import datasets

    check_linear(model, names, "llm-compressor")
    hooked = copy.deepcopy(model)
    settings: dict[str, Any] = {}
    if batches:
        rows = [batch[0].tolist() for batch in batches]
        # Without a fixed order the library shuffles calibration rows with no seed, and two runs
        # differ.
        settings = {
            "dataset": datasets.Dataset.from_dict(
                {"input_ids": rows, "attention_mask": [[1] * len(r) for r in rows]}
            ),
            "max_seq_length": max(len(r) for r in rows),
            "num_calibration_samples": len(rows),
            "shuffle_calibration_samples": False,
        }
    modules["oneshot"](model=hooked, processor=tokenizer, recipe=recipe, **settings)
    return hooked


def _dense(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batches: list[Tensor],
    names: list[str],
    use: str,
    params: Mapping[str, Any],
) -> dict[str, Quantized]:
    """Make the model its own dense quantized copy and return the codes.

    Layers that the groups do not divide are left as they are.
    """
    check_linear(model, names, "llm-compressor")
    names = _fitting(model, names, use, params)
    with _library() as modules:
        try:
            hooked = _oneshot(
                modules, model, tokenizer, batches, names, _recipe(modules, use, names, params)
            )
        except UserError:
            raise
        except REFUSALS as error:
            kind = getattr(model.config, "model_type", "unknown")
            raise UserError(
                (
                    f"llm-compressor cannot quantize this '{kind}' model with {use}: "
                    f"{first_line(error)}"
                ),
                "Use another format; round-to-nearest grids work for every model.",
            ) from error
        layers = dict(hooked.named_modules())
        found = {name: _take(layers[name.removesuffix(".weight")]) for name in names}
        dense = hooked.state_dict() | {name: q.weight for name, q in found.items()}
        own = model.state_dict()
        apart = [name for name in own if name not in dense]
        if apart and use == "awq":
            # What AWQ folds into them cannot be told.
            raise UserError(
                f"llm-compressor takes weights apart that AWQ would scale: {some(apart)}.",
                "Use another format; round-to-nearest grids work for every model.",
            )
        # What is not quantized stays as it is, experts that the library takes apart among it.
        model.load_state_dict(own | {name: dense[name] for name in own if name in dense})
    return found


@torch.no_grad()
def _take(layer: nn.Module) -> Quantized:
    """Codes, scales and decoded weight of one quantized layer."""
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize

    parts: Any = layer
    args, weight, kept = parts.quantization_scheme.weights, parts.weight, parts.weight_scale
    zero, shared = (getattr(layer, _HELD[part], None) for part in ("zero", "shared"))
    floats = args.type == "float"
    codes = quantize(
        weight, kept, zero, args, torch.float8_e4m3fn if floats else torch.int8, global_scale=shared
    )
    decoded = dequantize(codes, kept, zero, args, global_scale=shared).float()
    scale = kept.reshape(-1, 1).float()
    return Quantized(
        codes.view(torch.int8) if floats else codes,
        scale if shared is None else scale / shared,
        None if floats or args.symmetric or zero is None else zero.reshape(-1, 1).float(),
        decoded,
        shared,
    )
