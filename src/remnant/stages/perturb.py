"""perturb: a model -> its dense quantized copy, with the codes beside it."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.corpus.prepared import raw_texts
from remnant.errors import UserError
from remnant.functional.quantized import Indivisible, Quantized
from remnant.functional.segments import Known, repeated
from remnant.lineage import Lineage
from remnant.methods import quantizer
from remnant.model.data import encode
from remnant.model.door import check_plain
from remnant.model.held import keep, take, version
from remnant.model.load import Matrix, in_dtype, matrices, open_tokenizer
from remnant.model.saving import LEFT_BY_MODELS, check_saving, save
from remnant.model.whole import check_finite, check_ids, first_not_finite
from remnant.records import Calibration, PerturbResult, PerturbSpec

# Texts are often a little shorter than asked for; with less than a quarter the sample is no longer
# the one that was asked for.
ENOUGH = 0.25
LEAVES = (*LEFT_BY_MODELS, "codes.safetensors")


def run(
    spec: PerturbSpec,
    inputs: Mapping[str, Path],
    out: Path,
    report: Callable[[int, int, str], None],
    known: Mapping[str, Lineage] | None = None,
) -> PerturbResult:
    """Quantize, save model and codes; the result says what was quantized and what was left.

    Args:
        spec: the quantizer.
        inputs: the model, and the corpus for calibration text.
        out: receives the copy.
        report: called with (done, total, note).
        known: what the model and the copy ("self") are; a copy of the model that is in memory is
            then not opened anew.

    Raises:
        UserError: the model is quantized already, no weight is left to quantize, or one is not
            finite before or after.
    """
    known = known or {}
    method = quantizer(spec).method
    check_plain(str(inputs["model"]), "quantized again")
    tokenizer = open_tokenizer(str(inputs["model"]))
    source = take(inputs["model"], known.get("model"))
    model = source.model
    check_saving(model, tokenizer)
    chosen = list(matrices(model, spec.skip))
    if not chosen:
        raise UserError("No weight is left to quantize.", "Skip fewer kinds of weights.")
    others = {
        n: p.detach().clone()
        for n, p in model.named_parameters()
        if n not in {m.name for m in chosen}
    }
    if spec.source_dtype == "bfloat16":
        in_dtype(in_dtype(model, torch.bfloat16), torch.float32)
    function = method.load()
    offered: dict[str, Any] = {
        "model": model,
        "tokenizer": tokenizer,
        "names": [m.name for m in chosen],
    }
    sample: Calibration | None = None
    left_out: list[str] = []
    if "batches" in method.reads:
        check_ids(model, tokenizer)
        offered["batches"], sample = calibration(spec, inputs["corpus"], tokenizer)
    if "weight" in method.reads:
        found, left_out = _each(chosen, function, method.params, report)
        chosen = [m for m in chosen if m.name in found]
    else:
        report(0, 1, spec.use)
        found = function(*(offered[name] for name in method.reads), **method.params)
        # Formats of whole files give no codes.
        left_out = [m.name for m in chosen if m.name not in found] if found else []
        report(1, 1, spec.use)
    _check_result(spec, model, found)
    save(model, tokenizer, out)
    _save_codes(found, out / "codes.safetensors")
    now = dict(model.named_parameters())
    changed = [
        *(m.name for m in chosen),
        *(n for n, before in others.items() if not torch.equal(before, now[n])),
    ]
    keep(version(source, out, changed, known.get("self")))
    quantized = sum(q.weight.numel() for q in found.values())
    parameters = sum(p.numel() for p in model.parameters())
    return PerturbResult(
        quantizer=spec.use,
        params=dict(method.params),
        quantized_weights=quantized,
        parameters=parameters,
        share_quantized=quantized / parameters,
        changed=tuple(changed),
        left_out=tuple(left_out),
        calibration=sample,
    )


def _each(
    chosen: list[Matrix],
    function: Callable[..., Any],
    params: Mapping[str, Any],
    report: Callable[[int, int, str], None],
) -> tuple[dict[str, Quantized], list[str]]:
    """Every weight by itself.

    And the names of those that stay as they are, since the blocks do not divide their rows.
    """
    found: dict[str, Quantized] = {}
    left_out: list[str] = []
    reason = ""
    for i, matrix in enumerate(chosen):
        try:
            found[matrix.name] = _one(matrix, function, params)
        except Indivisible as error:
            reason = str(error)
            left_out.append(matrix.name)
        report(i + 1, len(chosen), matrix.name)
    if not found:
        raise UserError(
            f"No weight can be quantized: {reason}.", "Choose a group size that divides the rows."
        )
    return found, left_out


def _one(matrix: Matrix, function: Callable[..., Any], params: Mapping[str, Any]) -> Quantized:
    weight = matrix.read().float()
    try:
        found = function(weight if weight.ndim > 1 else weight[None], **params)
    except Indivisible:
        raise
    except ValueError as error:
        raise UserError(
            f"The weight {matrix.name} of shape {tuple(weight.shape)} cannot be quantized: {error}."
        ) from error
    if isinstance(found, dict):
        found = Quantized(**found)
    quantized: Quantized = found
    matrix.write(quantized.weight.reshape(weight.shape).to(matrix.parameter.dtype))
    return quantized


def _check_result(
    spec: PerturbSpec, model: PreTrainedModel, found: Mapping[str, Quantized]
) -> None:
    """Refuse a copy with values that are not finite, whoever made it."""
    remedy = f"{spec.use} failed on it; quantize to another format."
    name = first_not_finite(
        (n, t)
        for n, q in found.items()
        for t in (q.weight, q.scale, *([] if q.zero is None else [q.zero]))
    )
    if name:
        raise UserError(
            f"The weight {name} quantized by {spec.use} holds values that are not finite.", remedy
        )
    check_finite(model, f"the copy by {spec.use}", remedy)


def calibration(
    spec: PerturbSpec, corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Tensor], Calibration]:
    """Seeded calibration texts from the retain split, none of them sharing a long run of words with
    forget text.

    Returns:
        Token ids, each [1, T], and what the manifest says of them.
    """
    forget = Known(raw_texts(corpus, "forget"))
    texts = raw_texts(corpus, "retain1")
    clean = [t for t in texts if not forget.share(t)]
    examples = encode(tokenizer, clean, spec.calibration_tokens)
    if not examples:
        raise UserError(
            "There is no calibration text without forget text in it.",
            "Give retain text that does not repeat forget text.",
        )
    longest = sorted(examples, key=len, reverse=True)[
        : max(4 * spec.calibration_samples, len(examples) // 4)
    ]
    chosen = random.Random(spec.seed).sample(longest, min(spec.calibration_samples, len(longest)))
    tokens, twice = sum(len(c) for c in chosen), repeated(clean)
    about = Calibration(
        split="retain1",
        samples=len(chosen),
        tokens=tokens,
        texts_left_out_for_overlap=len(texts) - len(clean),
        warnings=tuple(_doubts(spec, tokens, twice)),
    )
    return [torch.tensor([ids]) for ids in chosen], about


def _doubts(spec: PerturbSpec, tokens: int, twice: int) -> list[str]:
    """What makes calibration text a poor sample."""
    wanted = spec.calibration_samples * spec.calibration_tokens
    few = (
        f"there are only {tokens} tokens of calibration text where up to {wanted} are asked for; "
        "the result may be worse than it need be"
    )
    same = f"{twice} calibration texts say what another one says"
    return [few] * (tokens < ENOUGH * wanted) + [same] * bool(twice)


def _save_codes(found: Mapping[str, Quantized], path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for name, q in found.items():
        tensors[f"{name}.codes"] = q.codes.contiguous()
        tensors[f"{name}.scale"] = q.scale.contiguous()
        for part, held in (("zero", q.zero), ("shared", q.shared)):
            if held is not None:
                tensors[f"{name}.{part}"] = held.contiguous()
    save_file(tensors, path)
