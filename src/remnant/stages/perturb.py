"""perturb: a model -> its dense quantized copy, with the codes beside it."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.functional.quantizers import Quantized
from remnant.functional.segments import Known, repeated
from remnant.methods import quantizer
from remnant.model.data import encode, raw_texts
from remnant.model.held import keep, take, version
from remnant.model.load import Matrix, matrices, open_tokenizer, save_model
from remnant.records import PerturbSpec

# Texts are often a little shorter than asked for; with less than a quarter the sample is no longer the one that was asked for.
ENOUGH = 0.25


def run(spec: PerturbSpec, inputs: Mapping[str, Path], out: Path, report: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Quantize, save model and codes; the summary says what was quantized and what was left."""
    method = quantizer(spec)
    tokenizer = open_tokenizer(str(inputs["model"]))
    source = take(inputs["model"])
    model = source.model
    chosen = list(matrices(model, spec.skip))
    if not chosen:
        raise UserError("No weight is left to quantize.", "Skip fewer kinds of weights.")
    others = {n: p.detach().clone() for n, p in model.named_parameters() if n not in {m.name for m in chosen}}
    if spec.source_dtype == "bfloat16":
        model.to(torch.bfloat16).to(torch.float32)  # type: ignore[arg-type]
    function = method.load()
    offered: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "names": [m.name for m in chosen]}
    summary: dict[str, Any] = {}
    if "batches" in method.reads:
        offered["batches"], summary["calibration"] = calibration(spec, inputs["corpus"], tokenizer)
    if "weight" in method.reads:
        found = {m.name: _one(m, function, method.params, report, i, len(chosen)) for i, m in enumerate(chosen)}
    else:
        report(0, 1, spec.use)
        found = function(*(offered[name] for name in method.reads), **method.params)
        report(1, 1, spec.use)
    save_model(model, tokenizer, out)
    _save_codes(found, out / "codes.safetensors")
    now = dict(model.named_parameters())
    changed = [*(m.name for m in chosen), *(n for n, before in others.items() if not torch.equal(before, now[n]))]
    keep(version(source, out, changed))
    quantized = sum(q.weight.numel() for q in found.values())
    parameters = sum(p.numel() for p in model.parameters())
    return summary | {
        "quantizer": spec.use,
        "params": dict(method.params),
        "quantized_weights": quantized,
        "parameters": parameters,
        "share_quantized": quantized / parameters,
        "changed": changed,
    }


def _one(
    matrix: Matrix, function: Callable[..., Any], params: Mapping[str, Any], report: Callable[[int, int, str], None], i: int, total: int
) -> Quantized:
    weight = matrix.read().float()
    try:
        found = function(weight if weight.ndim > 1 else weight[None], **params)
    except ValueError as error:
        raise UserError(f"The weight {matrix.name} of shape {tuple(weight.shape)} cannot be quantized: {error}.") from error
    if isinstance(found, dict):
        found = Quantized(**found)
    quantized: Quantized = found
    matrix.write(quantized.weight.reshape(weight.shape).to(matrix.parameter.dtype))
    report(i + 1, total, matrix.name)
    return quantized


def calibration(spec: PerturbSpec, corpus: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Tensor], dict[str, Any]]:
    """Seeded calibration texts from the retain split, none of them sharing a long run of words with forget text.

    Returns:
        Token ids, each [1, T], and what the manifest says of them.
    """
    forget = Known(raw_texts(corpus, "forget"))
    texts = raw_texts(corpus, "retain1")
    clean = [t for t in texts if not forget.share(t)]
    examples = encode(tokenizer, clean, spec.calibration_tokens)
    if not examples:
        raise UserError("There is no calibration text without forget text in it.", "Give retain text that does not repeat forget text.")
    longest = sorted(examples, key=len, reverse=True)[: max(4 * spec.calibration_samples, len(examples) // 4)]
    chosen = random.Random(spec.seed).sample(longest, min(spec.calibration_samples, len(longest)))
    tokens, twice = sum(len(c) for c in chosen), repeated(clean)
    about = {
        "split": "retain1",
        "samples": len(chosen),
        "tokens": tokens,
        "texts_left_out_for_overlap": len(texts) - len(clean),
        "warnings": _doubts(spec, tokens, twice),
    }
    return [torch.tensor([ids]) for ids in chosen], about


def _doubts(spec: PerturbSpec, tokens: int, twice: int) -> list[str]:
    """What makes calibration text a poor sample."""
    wanted = spec.calibration_samples * spec.calibration_tokens
    few = f"there are only {tokens} tokens of calibration text where up to {wanted} are asked for; the result may be worse than it need be"
    same = f"{twice} calibration texts say what another one says"
    return [few] * (tokens < ENOUGH * wanted) + [same] * bool(twice)


def _save_codes(found: Mapping[str, Quantized], path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for name, q in found.items():
        tensors[f"{name}.codes"] = q.codes.contiguous()
        tensors[f"{name}.scale"] = q.scale.contiguous()
        if q.zero is not None:
            tensors[f"{name}.zero"] = q.zero.contiguous()
    save_file(tensors, path)
