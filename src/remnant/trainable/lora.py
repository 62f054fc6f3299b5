"""Adapters of low rank, by peft: in float32 beside the frozen weights."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from remnant.adapterfiles import WEIGHTS
from remnant.errors import UserError
from remnant.functional.patterns import chosen
from remnant.functional.touched import LEFT_ALONE, kind_of
from remnant.model.adapter import peft_library
from remnant.model.heap import give_back
from remnant.model.load import matrices
from remnant.model.nf4 import dense, is_packed, packed, unpack
from remnant.ranks import count, fill, local, span, told
from remnant.records import LoraResult, LoraSpec
from remnant.trainable.parts import Part
from remnant.trainable.trainable import State, Trainable, release

NAME = "default"  # peft's own for the only adapter of a model
DROPOUT = "dropout"


def adapted(model: PreTrainedModel, spec: LoraSpec, seed: int) -> Trainable:
    """A model with fresh adapters, which change nothing until they are trained.

    Args:
        model: changed in place: its linear layers are wrapped until it is settled.
        spec: rank, alpha, which layers, dropout, what is saved.
        seed: of the factor A and of dropout; B is zero.

    Raises:
        UserError: peft is missing, a pattern fits no linear layer, or dropout is asked for on
            several ranks.

    Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1; A uniform as in peft.
    """
    peft = peft_library()
    if spec.dropout and count() > 1:
        raise UserError(
            "Dropout of adapters is drawn for all texts of a step by one process.",
            "Set dropout to 0, or run it on one device.",
        )
    targets = linear_layers(model, spec.targets)
    config = peft.LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        target_modules=targets,
        lora_dropout=spec.dropout,
        fan_in_fan_out=isinstance(model.get_submodule(targets[0]), Conv1D),
        task_type="CAUSAL_LM",
    )
    wrapped = peft.get_peft_model(model, config)
    layers = [model.get_submodule(name) for name in targets]
    noise = torch.Generator(model.device).manual_seed(seed)
    _begin(layers, spec, torch.Generator().manual_seed(seed), noise)
    factors = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    parts = [Part(parameter) for parameter in factors.values()]
    release(model, parts)
    base = "nf4" if packed(model) else None

    def state() -> State:
        return {name: p.detach() for name, p in factors.items()} | {DROPOUT: noise.get_state()}

    @torch.no_grad()
    def restore(state: State) -> None:
        before = told(state.get(DROPOUT))
        assert before is not None
        noise.set_state(before.cpu())
        for name, parameter in factors.items():
            fill(parameter, state.get(name))

    def settle() -> PreTrainedModel:
        if base and spec.save == "adapter":
            return model
        for layer in layers:
            _merge(layer)
            give_back()
        merged: PreTrainedModel = wrapped.unload()
        unpack(merged)
        return merged

    size = sum(p.numel() for p in factors.values())
    found = LoraResult(layers=len(layers), parameters=size, base=base)
    apart = (lambda out: write(wrapped, out)) if spec.save == "adapter" else None
    return Trainable(model, parts, state, restore, settle, None, found, "fp32", apart)


def linear_layers(model: PreTrainedModel, patterns: Iterable[str] = ()) -> list[str]:
    """Names of the linear layers that patterns fit; without any of all but the output head.

    Raises:
        UserError: a pattern fits none, or there is none.
    """
    named = list(patterns)
    skip = tuple({*LEFT_ALONE} - {"lm_head"}) if named else LEFT_ALONE
    sizes = {name: (m.out_features, m.in_features) for name, m in packed(model).items()}
    names = [name for name, size in sizes.items() if kind_of(f"{name}.weight", size) not in skip]
    names += [
        matrix.name.removesuffix(".weight")
        for matrix in matrices(model, skip)
        if matrix.name.endswith(".weight") and matrix.parameter.ndim == 2
    ]
    found = chosen(named, names) if named else names
    if not found:
        raise UserError("The model has no linear layer for an adapter.", "Train its weights.")
    return found


def _begin(
    layers: Iterable[Any], spec: LoraSpec, start: torch.Generator, noise: torch.Generator
) -> None:
    """Give A its random numbers and dropout its own, the same on every device."""
    for layer in layers:
        down = layer.lora_A[NAME].weight
        values = torch.empty(down.shape)
        nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=start)
        down.data.copy_(values)
        _heighten(layer)
        if spec.dropout:
            layer.lora_dropout[NAME] = Dropout(spec.dropout, noise)


def _heighten(layer: Any) -> None:
    """Give B all rows of the weight under it. Of several copies on some ranks peft makes as many as
    one rank holds: it takes that for layers that compute with their own rows alone.
    """
    base, up = layer.get_base_layer(), layer.lora_B[NAME]
    if isinstance(base, nn.Linear) and up.out_features < base.out_features:
        up.out_features = base.out_features
        up.weight = nn.Parameter(up.weight.new_zeros(up.out_features, up.in_features))


@torch.no_grad()
def _merge(layer: Any) -> None:
    """Add an adapter to the weight under it: in float32, rounded once, one layer at a time; where
    that is packed to what it is decoded to, where it is in shards to the rows that this rank holds.

    In the memory that it has: a weight of another dtype would lie beside the file that it is a view
    of, which goes when the last of them does.
    """
    if is_packed(layer.get_base_layer().weight):
        layer.base_layer = dense(layer.get_base_layer())
    weight = layer.get_base_layer().weight
    own = local(weight.data)
    own.copy_(own.float() + layer.get_delta_weight(NAME)[span(weight)])


def adapters_apart(moving: Trainable) -> nn.Module | None:
    """The adapters of a run that saves them alone beside packed layers, which are never merged;
    None for any other.
    """
    if moving.apart is None or not packed(moving.model):
        return None
    return nn.ParameterList(part.parameter for part in moving.parts)


class Dropout(nn.Module):
    """Dropout by a generator of its own, whose state a checkpoint holds.

    Models are trained in evaluation mode here, so it is at work where gradients are taken.
    """

    def __init__(self, share: float, noise: torch.Generator) -> None:
        super().__init__()
        self.share = share
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        """Each entry zero with the probability ``share``, the others larger by as much."""
        if not torch.is_grad_enabled():
            return x
        kept = torch.rand(x.shape, generator=self.noise, device=x.device) >= self.share
        return x * kept / (1 - self.share)


def write(wrapped: Any, out: Path) -> None:
    """The adapter's folder in peft's form, with the place of its model."""
    peft = peft_library()
    state = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    save_file({name: value.cpu().contiguous() for name, value in state.items()}, out / WEIGHTS)
    config = wrapped.peft_config[NAME]
    base = wrapped.get_base_model().name_or_path
    config.base_model_name_or_path = str(Path(base).resolve()) if Path(base).exists() else base
    config.target_modules = sorted(config.target_modules)
    config.inference_mode = True
    config.save_pretrained(out)
