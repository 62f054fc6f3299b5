"""transform: a model -> its dense quantized copy, with the codes beside it."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.context import Context, Opened, Progress
from remnant.corpus.prepared import raw_texts
from remnant.durable import digest_of
from remnant.errors import UserError
from remnant.functional.quantized import Indivisible, Quantized
from remnant.functional.segments import Known, repeated
from remnant.methods import BY_WEIGHT, step
from remnant.model.activations import input_norms
from remnant.model.data import encode
from remnant.model.door import check_plain
from remnant.model.load import Matrix, in_dtype, matrices, open_model, open_tokenizer
from remnant.model.rounding import changed_by
from remnant.model.saving import LEFT_BY_MODELS, check_saving, save, save_about
from remnant.model.versions import opened, version
from remnant.model.whole import check_finite, check_ids, digest_of_weights, first_not_finite
from remnant.records import Calibration, TransformResult, TransformSpec
from remnant.resolve import Method
from remnant.training.checkpoints import LEFT
from remnant.training.loop import Loop
from remnant.transforms.base import Transform

# Texts are often a little shorter than asked for; with less than a quarter the sample is no longer
# the one that was asked for.
ENOUGH = 0.25
LEAVES = (*LEFT_BY_MODELS, "codes.safetensors", "steps.jsonl")
GOES_ON_FROM = (*LEFT, "steps.jsonl")


def run(
    spec: TransformSpec,
    inputs: Mapping[str, Path],
    out: Path,
    work: Context,
) -> TransformResult:
    """Do it, save the model, and codes where there are any; the result says what was changed and
    what was left. Where ``work.weights`` is False only what is about the weights is saved.

    Args:
        spec: of the transform.
        inputs: the model, and what the transform needs of corpus and target.
        out: receives the copy.
        work: a version of the model that is in memory is not opened anew.

    Raises:
        UserError: the model is quantized already, no weight is left to change, or one is not
            finite before or after.
    """
    by = step(spec)
    check_plain(str(inputs["model"]), "quantizing it again would round twice")
    tokenizer = open_tokenizer(str(inputs["model"]))
    source = opened(inputs["model"], work)
    model = source.model
    check_saving(model, tokenizer)
    everything = isinstance(by.kind, Transform) and by.kind.everything
    chosen = list(matrices(model, by.spec.skip, biases=everything))
    if not chosen:
        raise UserError("No weight is left to quantize.", "Skip fewer kinds of weights.")
    names = {m.name for m in chosen}
    others = {n: p.detach().clone() for n, p in model.named_parameters() if n not in names}
    if spec.source_dtype == "bfloat16":
        in_dtype(in_dtype(model, torch.bfloat16), torch.float32)
    function = by.method.load()
    given = Given(spec, inputs, tokenizer, source, chosen, Loop(out, work, spec.seed), [])
    offered = {name: OFFERED[name](given) for name in by.method.reads if name in OFFERED}
    sample = given.sample[0] if given.sample else None
    left_out: list[str] = []
    if "weight" in by.method.reads:
        found, left_out = _each(chosen, by.method, function, offered, work.progress)
        chosen = [m for m in chosen if m.name not in left_out]
    else:
        work.progress(0, 1, spec.use)
        found = function(*(offered[name] for name in by.method.reads), **by.method.params) or {}
        # Formats of whole files give no codes.
        left_out = [m.name for m in chosen if m.name not in found] if found else []
        work.progress(1, 1, spec.use)
    _check_result(spec, model, found)
    if work.weights:
        save(model, tokenizer, out)
        _save_codes(found, out / "codes.safetensors")
    else:
        save_about(model, tokenizer, out)
    now = dict(model.named_parameters())
    changed = [
        *(m.name for m in chosen),
        *(n for n, before in others.items() if not torch.equal(before, now[n])),
    ]
    work.models.put(version(source, out, changed, work))
    quantized = sum(q.weight.numel() for q in found.values())
    parameters = sum(p.numel() for p in model.parameters())
    return TransformResult(
        use=spec.use,
        params=dict(by.method.params),
        quantized_weights=quantized,
        parameters=parameters,
        share_quantized=quantized / parameters,
        changed=tuple(changed),
        left_out=tuple(left_out),
        calibration=sample,
        weights=digest_of_weights(model),
    )


class Given(NamedTuple):
    """All that the readings of a transform are made from."""

    spec: TransformSpec
    inputs: Mapping[str, Path]
    tokenizer: PreTrainedTokenizerBase
    source: Opened
    chosen: list[Matrix]
    loop: Loop
    sample: list[Calibration]


def _batches(given: Given) -> list[Tensor]:
    """Calibration text; what it is goes to ``given.sample``."""
    check_ids(given.source.model, given.tokenizer)
    batches, sample = calibration(given.spec, given.inputs["corpus"], given.tokenizer)
    given.sample.append(sample)
    return batches


def _generators(given: Given) -> dict[str, torch.Generator]:
    """For every weight a generator of its own, which no other weight and no device changes."""
    return {
        m.name: torch.Generator().manual_seed(int(digest_of([given.spec.seed, m.name])[:15], 16))
        for m in given.chosen
    }


def _target(given: Given) -> dict[str, Tensor]:
    """The weights of the target [..., out, in], by the names and on the device of the model's.

    Raises:
        UserError: it is not of the same shape.
    """
    check_plain(str(given.inputs["target"]), "packed weights cannot be mixed with others")
    other = open_model(str(given.inputs["target"]))
    found = {m.name: m.read().float() for m in matrices(other, (), biases=True)}
    for m in given.chosen:
        if m.name not in found or found[m.name].shape != m.read().shape:
            raise UserError(
                f"The target has no weight {m.name} of shape {tuple(m.read().shape)}.",
                "Give the model that this one was unlearned from.",
            )
    return {m.name: _as_rows(found[m.name].to(m.parameter.device)) for m in given.chosen}


def _as_rows(weight: Tensor) -> Tensor:
    """A weight as functions take it: a vector is one row."""
    return weight if weight.ndim > 1 else weight[None]


# What a transform may read of the whole model, and the values of every weight by its name.
OFFERED: Mapping[str, Callable[[Given], Any]] = {
    "model": lambda given: given.source.model,
    "tokenizer": lambda given: given.tokenizer,
    "names": lambda given: [m.name for m in given.chosen],
    "batches": _batches,
    "norms": lambda given: input_norms(
        given.source.model, [m.name for m in given.chosen], _batches(given)
    ),
    "generator": _generators,
    "target": _target,
    "corpus": lambda given: given.inputs["corpus"],
    "loop": lambda given: given.loop,
}


def _each(
    chosen: list[Matrix],
    method: Method,
    function: Callable[..., Any],
    offered: Mapping[str, Any],
    progress: Progress,
) -> tuple[dict[str, Quantized], list[str]]:
    """Every weight by itself: the codes of those that have some.

    And the names of those that stay as they are, since the blocks do not divide their rows.
    """
    found: dict[str, Quantized] = {}
    left_out: list[str] = []
    reason = ""
    for i, matrix in enumerate(chosen):
        own = {name: of[matrix.name] for name, of in offered.items() if name in BY_WEIGHT}
        try:
            codes = _one(matrix, method, function, {**offered, **own})
            found |= {matrix.name: codes} if codes is not None else {}
        except Indivisible as error:
            reason = str(error)
            left_out.append(matrix.name)
        progress(i + 1, len(chosen), matrix.name)
    if len(left_out) == len(chosen):
        raise UserError(
            f"No weight can be quantized: {reason}.", "Choose a group size that divides the rows."
        )
    return found, left_out


def _one(
    matrix: Matrix, method: Method, function: Callable[..., Any], offered: Mapping[str, Any]
) -> Quantized | None:
    """Change one weight; its codes, if the function gives any."""
    found = changed_by(matrix, matrix.read(), method, function, offered)
    codes = None if isinstance(found, Tensor) else found
    changed = found if isinstance(found, Tensor) else found.weight
    matrix.write(changed.reshape(matrix.read().shape).to(matrix.parameter.dtype))
    return codes


def _check_result(
    spec: TransformSpec, model: PreTrainedModel, found: Mapping[str, Quantized]
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
    spec: TransformSpec, corpus: Path, tokenizer: PreTrainedTokenizerBase
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


def _doubts(spec: TransformSpec, tokens: int, twice: int) -> list[str]:
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
