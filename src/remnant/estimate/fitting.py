"""The cheapest setting of a run that fits a device: as asked, or what changes least. No torch."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from remnant.estimate.memory import Peak, Text, peak
from remnant.estimate.shape import Shape
from remnant.flow.together import ALONE, Spread
from remnant.records import ByLoraSpec, LoraSpec, OptimSpec, SignSpec, ZerothSpec, packs

PACKED = "adapters beside weights in NF4, into which they are merged: another method"


class Choice(NamedTuple):
    """A setting, what it is called on the command line, what it costs, and its peak memory."""

    settings: tuple[str, ...]
    why: str
    spec: OptimSpec
    text: Text
    peak: Peak


def choices(shape: Shape, spec: OptimSpec, text: Text, spread: Spread = ALONE) -> Iterator[Choice]:
    """Ways to run the same steps, each in less memory than those before, or at a greater price;
    what several devices refuse is left out.
    """
    for settings, why, changes in _changes(spec):
        other = spec.model_copy(update=changes)
        if spread.devices > 1 and of_one_device(other):
            continue
        by_tokens = getattr(spec, "batch_tokens", None)
        own = text if by_tokens else text._replace(batch=min(text.batch, other.batch_size))
        yield Choice(settings, why, other, own, peak(shape, other, own, spread.sharing))


def of_one_device(spec: OptimSpec) -> bool:
    """Whether several devices refuse a setting: packed layers, and moments of 8 bits of weights
    that lie in shards.
    """
    return packs(spec.train) or (spec.moments == "8bit" and not isinstance(spec.train, ByLoraSpec))


def _changes(spec: OptimSpec) -> Iterator[tuple[tuple[str, ...], str, dict[str, Any]]]:
    yield (), "as asked", {}
    again: dict[str, Any] = {"checkpointing": True}
    told: tuple[str, ...] = ("checkpointing=true",)
    if not spec.checkpointing:
        yield told, "the same bits; blocks are computed twice, a third more time", again
    divided = getattr(spec, "robust", None) is None and not getattr(spec, "batch_tokens", None)
    if spec.batch_size > 1 and divided:
        size = spec.batch_size * spec.accumulate
        again = again | {"batch_size": 1, "accumulate": size}
        told = (*told, "batch_size=1", f"accumulate={size}")
        yield told, "the same steps up to rounding, a text at a time", again
    if isinstance(spec.train, ByLoraSpec):
        again, told = again | {"weights": "bf16", "compute": None}, (*told, "weights=bf16")
        yield told, "the frozen weights are rounded", again
        packed = spec.train.lora.model_copy(update={"base": "nf4"})
        again = again | {"train": ByLoraSpec(lora=packed)}
        yield (*told, "train.lora.base=nf4"), PACKED, again
        return
    rounded = again | {"weights": "bf16-stochastic-rounding", "compute": None}
    said = (*told, "weights=bf16-stochastic-rounding")
    if spec.weights != "bf16-stochastic-rounding":
        yield said, "weights are kept in bfloat16; no update is lost on average", rounded
    if not isinstance(spec.update, SignSpec | ZerothSpec):
        why = "moments of 8 bits by bitsandbytes, too: other steps, to be measured"
        yield (*said, "moments=8bit"), why, rounded | {"moments": "8bit"}
    adapters = {"train": ByLoraSpec(lora=LoraSpec()), "weights": "bf16", "compute": None}
    why = "adapters beside frozen bfloat16 weights: another method, which is to be measured"
    told = (*told, "train.lora.rank=16", "weights=bf16")
    yield told, why, again | adapters
    adapters |= {"train": ByLoraSpec(lora=LoraSpec(base="nf4"))}
    yield (*told, "train.lora.base=nf4"), PACKED, again | adapters


def cheapest(
    shape: Shape, spec: OptimSpec, text: Text, free: int, spread: Spread = ALONE
) -> Choice | None:
    """The first choice that fits into some free bytes; None where none does."""
    return next((c for c in choices(shape, spec, text, spread) if c.peak.total <= free), None)


def largest_batch(shape: Shape, spec: OptimSpec, text: Text, free: int, shards: int = 1) -> int:
    """The most texts a side that fit on each of some devices; 0 where one does not."""

    def fits(batch: int) -> bool:
        return peak(shape, spec, text._replace(batch=batch), shards).total <= free

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
