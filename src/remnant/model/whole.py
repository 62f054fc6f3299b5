"""Whether an opened model is all that its files hold and nothing else, and all of it finite."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError, some
from remnant.ranks import in_shards, local, of_all
from remnant.weightfiles import WRAPPERS

# Buffers that older versions saved and that every model computes anew.
_HARMLESS = re.compile(
    r"(rotary\w*|rotary_emb|rotary_pos_emb)\.(inv_freq|cos_cached|sin_cached|original_inv_freq)$|(^|\.)position_ids$|masked_bias$"
    r"|(^|\.)(attn|attention|self_attn|self_attention)\.bias$|num_batches_tracked$"
)
DIVERGED = "It diverged in its last step: lower the learning rate, or clip the gradient."
_WRAPPED = re.compile(
    "|".join(rf"(?:(?<=\.)|^){re.escape(w)}" for w in sorted(WRAPPERS, key=len, reverse=True))
)


def check_whole(info: Mapping[str, Any], source: str) -> None:
    """Compare what was expected with what was found.

    Args:
        info: ``missing_keys``, ``unexpected_keys``, ``mismatched_keys`` (name, stored shape,
            expected shape) and ``error_msgs``, as transformers gives them: tied weights and what an
            architecture ignores are left out already.
        source: the folder or hub id.

    Raises:
        UserError: a weight is missing, surplus, of another shape, or could not be converted.
    """
    missing = sorted(info.get("missing_keys", ()))
    surplus = sorted(n for n in info.get("unexpected_keys", ()) if not _HARMLESS.search(n))
    shapes = sorted(info.get("mismatched_keys", ()))
    faults = [f"{len(missing)} weights are missing ({some(missing)})"] if missing else []
    faults += (
        [f"{len(surplus)} are in the files and not in the model ({some(surplus)})"]
        if surplus
        else []
    )
    if shapes:
        name, stored, expected = shapes[0][:3]
        faults.append(
            f"{len(shapes)} have another shape ({name} is {tuple(stored)} in the files and "
            f"{tuple(expected)} by config.json)"
        )
    faults += [
        f"a weight could not be converted ({m.splitlines()[0][:200]})"
        for m in list(info.get("error_msgs", ()))[:1]
    ]
    if faults:
        raise UserError(
            f"The model {source} was not loaded whole: {'; '.join(faults)}.",
            remedy(missing, surplus),
        )


def remedy(missing: Iterable[str], surplus: Iterable[str]) -> str:
    """What a user can do about names that do not fit."""
    wanted, found = set(missing), sorted(surplus)
    if any("lora_" in name for name in found):
        return (
            "The files hold an adapter that was not merged: call peft's merge_and_unload, then "
            "save_pretrained."
        )
    if words := sorted(
        {w for name in found for w in _WRAPPED.findall(name) if _WRAPPED.sub("", name) in wanted}
    ):
        return (
            f"The names hold '{words[0]}', as written by {WRAPPERS[words[0]]}: save the model "
            "inside, or take that out of the names."
        )
    for name in found:
        inner = next((w for w in wanted if name.endswith(f".{w}")), None)
        if inner:
            return (
                f"The names begin with '{name.removesuffix(inner)}': save the model inside, or "
                "take that out of the names."
            )
        outer = next((w for w in wanted if w.endswith(f".{name}")), None)
        if outer:
            return (
                f"The names lack '{outer.removesuffix(name)}' at their beginning: save the whole "
                "causal model, or put it there."
            )
    if wanted and all("lm_head" in n or "embed_out" in n for n in wanted):
        return (
            "The head is not in the files: save the causal model, or set tie_word_embeddings "
            "where the embeddings are the head."
        )
    return (
        "The weights and config.json are not of one model, or a file is not complete: save the "
        "model again with save_pretrained."
    )


@torch.no_grad()
def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds an infinity or no number; None where all are finite.

    One pass: a sum per tensor.
    """
    for name, value in named:
        if type(value) not in (Tensor, nn.Parameter):
            continue  # packed weights of a library, which are seen by their logits
        # float8 has neither a sum nor infinities; its numbers are looked at as wider ones.
        wide = value if not value.is_floating_point() or value.element_size() > 1 else value.float()
        if not wide.is_floating_point() or bool(wide.sum(dtype=torch.float32).isfinite()):
            continue
        # A sum may overflow where no number does.
        if not bool(wide.isfinite().all()):
            return name
    return None


def check_finite(
    model: nn.Module,
    source: str,
    remedy: str = "The file is broken, or was saved from a model that had diverged.",
) -> None:
    """Refuse a model with weights or buffers that are not finite.

    Raises:
        UserError: with the name of the first.
    """
    # Of buffers only those that are saved: masks that are computed may hold minus infinity.
    saved = model.state_dict(keep_vars=True)
    named = {
        **dict(model.named_parameters()),
        **{n: t for n, t in model.named_buffers() if n in saved},
    }
    name = first_not_finite((n, local(t.data)) for n, t in named.items())
    if in_shards(model.parameters()):
        name = next(filter(None, of_all(name)), None)
    if name:
        raise UserError(f"The weight {name} of {source} holds values that are not finite.", remedy)


def check_tied(model: PreTrainedModel, source: str) -> None:
    """Refuse a head of its own where the configuration says that the embeddings are the head:
    transformers opens such a model with the one, other runtimes with the other.

    Raises:
        UserError: the two differ.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    one, other = (getattr(end, "weight", None) for end in ends)
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if not tied or one is None or other is None or one is other:
        return
    if one.shape != other.shape or not torch.equal(one, other):
        raise UserError(
            f"The configuration of {source} ties the head to the embeddings, and the files hold "
            "another head: not every runtime would open the same model.",
            "Set tie_word_embeddings to false in config.json, or take the head out.",
        )


def digest_of_weights(model: nn.Module) -> str:
    """sha256 over the names and bits of all weights of a model, tied ones once."""
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        bits = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
        found.update(name.encode())
        found.update(bits.numpy().data)
    return found.hexdigest()


def ids_outside(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, list[tuple[int, str]]]:
    """How many embeddings a model has, and the tokenizer's ids beyond them with their tokens, the
    lowest first.
    """
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    rows = weight.shape[0]
    return rows, sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows)


def check_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with ids that the model has no embedding for.

    Raises:
        UserError: how many, and the first of them.
    """
    rows, outside = ids_outside(model, tokenizer)
    if outside:
        raise UserError(
            (
                f"The tokenizer has {len(outside)} ids outside the model's {rows} embeddings, "
                f"from {outside[0][0]} ({outside[0][1]!r}) on."
            ),
            (
                "Give the tokenizer that was saved with this model, or resize the model's "
                "embeddings to it."
            ),
        )
