"""One model over several processes (ranks): its weights in shards, and what is gathered of them.

Every rank does the same work in the same order. Only two things are divided: the weights, by rows
of every parameter, and the texts whose losses are taken. With replicas the ranks hold several
copies of the model, each divided among neighbouring ranks; texts are divided among all. In one
process every function here gives back what it was given.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")
N = TypeVar("N", int, float)
M = TypeVar("M", bound=nn.Module)
# Ranks wait for the first while it decodes a model or saves one, which takes its time. One that
# has died is noticed at once.
PATIENCE = timedelta(hours=12)
# The variable that says of how many copies of the model the ranks hold the shards.
REPLICAS = "REMNANT_REPLICAS"


class Given(Exception):
    """Raised by a rank other than the first when it has given what it holds, and is done."""


def join(device: str) -> None:
    """Meet the other ranks, as torchrun's environment says, and those with which this one shares a
    copy of the model.
    """
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    _sharers()


def count() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first() -> bool:
    """Whether this is the rank that writes."""
    return rank() == 0


def replicas() -> int:
    """How many copies of the model the ranks hold."""
    return int(os.environ.get(REPLICAS, 1)) if count() > 1 else 1


def sharing() -> int:
    """Among how many ranks one copy of the model is divided."""
    return count() // replicas()


def share_here() -> float:
    """How much of a model in shards this machine's ranks hold: a part of 1, or some copies."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count())) / sharing()


def rank() -> int:
    """Which of the ranks this is, from 0 on."""
    return dist.get_rank() if count() > 1 else 0


def shard() -> int:
    """Which of the shards of its copy of the model this rank holds, from 0 on."""
    return rank() % sharing()


def in_first_replica() -> bool:
    """Whether this rank's shards are those that are written; other copies are equal to them."""
    return rank() < sharing()


@cache
def _sharers() -> dist.ProcessGroup | None:
    """The ranks that hold the shards of one copy with this one; None where that is all of them.

    Asked for by all ranks at once, the first time.
    """
    if replicas() == 1:
        return None
    size = sharing()
    groups = [dist.new_group([*range(at, at + size)]) for at in range(0, count(), size)]
    own: dist.ProcessGroup = groups[rank() // size]
    return own


def told(value: T) -> T:
    """What the first rank says; its value, whatever the others have."""
    if count() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def totals(values: Sequence[float]) -> list[float]:
    """Numbers summed over the shards of a model."""
    return _summed(values, torch.float64)


def anywhere(found: bool) -> bool:
    """Whether something is so on any rank."""
    if count() == 1:
        return found
    seen = torch.tensor(float(found))
    dist.all_reduce(seen)
    return bool(seen)


def on_all(job: Callable[[], None]) -> None:
    """Do something on the disk on every rank; where it fails on one, it fails on all.

    Raises:
        OSError: of the first rank on which it failed.
    """
    fault = None
    try:
        job()
    except OSError as error:
        fault = error
    found = next(filter(None, of_all(fault)), None)
    if found is not None:
        raise found


def second_group() -> dist.ProcessGroup | None:
    """The same ranks, for threads that talk to each other while the run's own do."""
    return dist.new_group(backend="gloo") if count() > 1 else None


def total(value: float) -> float:
    """A number summed over the shards of a model."""
    return totals([value])[0]


def counts(values: Sequence[int]) -> list[int]:
    """Whole numbers of 64 bits summed over the shards of a model, what flows over being cut off."""
    return _summed(values, torch.int64)


def _summed(values: Sequence[N], dtype: torch.dtype) -> list[N]:
    if count() == 1:
        return list(values)
    summed = torch.tensor(values, dtype=dtype)
    dist.all_reduce(summed, group=_sharers())
    found: list[N] = summed.tolist()
    return found


def of_all(value: T) -> list[T]:
    """What every rank has, in their order, on all of them."""
    if count() == 1:
        return [value]
    said = [value] * count()
    dist.all_gather_object(said, value)
    return said


def own(rows: list[T]) -> list[T]:
    """This rank's share of some rows; the first row where there are fewer than ranks, since a rank
    without any would be missing in the others' passes.
    """
    if count() == 1:
        return rows
    return rows[rank() :: count()] or rows[:1]


def gathered(losses: Tensor, rows: int) -> Tensor:
    """The losses [B] of all rows from those of every rank's ``own``, in the order of the rows.

    Equal on all ranks. The gradient flows through the rank's own rows alone, as many times larger
    as there are ranks, since what is made of all ranks' gradients is their mean.
    """
    if count() == 1:
        return losses
    most, own_rank = -(-rows // count()), rank()
    mine = len(range(own_rank, rows, count()))
    padded = torch.cat([losses.detach(), losses.new_zeros(most)])[:most].contiguous()
    found = [torch.empty_like(padded) for _ in range(count())]
    dist.all_gather(found, padded)
    merged = torch.stack(found, 1).flatten()[:rows]
    scaled = losses * 1.0
    if scaled.requires_grad:
        scaled.register_hook(lambda gradient: gradient * count())
    merged[own_rank :: count()] = scaled[:mine]
    # A rank that has no rows of its own takes part in the backward pass all the same.
    return merged if mine else merged + 0.0 * scaled.sum()


def average(gradients: Iterable[Tensor]) -> None:
    """Gradients of weights that every rank holds whole, averaged in place."""
    for gradient in gradients:
        dist.all_reduce(gradient)
        gradient.div_(count())


def local(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this rank holds, sharing its memory; all where it is no shard."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def in_shards(tensors: Iterable[Tensor]) -> bool:
    """Whether the ranks hold different rows of some tensors."""
    return any(isinstance(t, DTensor) for t in tensors)


def whole(tensor: Tensor) -> Tensor:
    """All rows of a tensor, asked for by all ranks at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor | None) -> None:
    """Write the first rank's whole value into a tensor, on every rank the rows that it holds."""
    given = told(value)
    assert given is not None
    if isinstance(tensor, DTensor):
        given = distribute_tensor(
            given.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None
        ).to_local()
    local(tensor).copy_(given)


def offset(parameter: Tensor) -> int:
    """How many numbers of a parameter stand before those that this rank holds."""
    # A slice of a shard would be gathered first.
    return span(parameter).start * parameter.shape[1:].numel() if parameter.ndim else 0


def span(parameter: Tensor) -> slice:
    """Which rows of a parameter this rank holds."""
    if not isinstance(parameter, DTensor):
        return slice(0, len(parameter))
    size = -(-len(parameter) // sharing())
    start = min(shard() * size, len(parameter))
    return slice(start, start + len(local(parameter)))


class Rows(NamedTuple):
    """Where the rows of a shard stand among those of all that share a copy of the model."""

    sizes: tuple[int, ...]

    @property
    def all(self) -> int:
        """How many there are in all shards."""
        return sum(self.sizes)

    @property
    def here(self) -> slice:
        """This rank's."""
        start = sum(self.sizes[: shard()])
        return slice(start, start + self.sizes[shard()])

    def joined(self, own: Tensor) -> Tensor:
        """The rows of all shards on the first rank; nothing on the others."""
        padding = own.new_zeros(max(self.sizes) - len(own), *own.shape[1:])
        padded = torch.cat([own, padding])
        found = [torch.empty_like(padded) for _ in self.sizes]
        dist.all_gather(found, padded, group=_sharers())
        parts = [f[:size] for f, size in zip(found, self.sizes, strict=True)]
        return torch.cat(parts) if first() else own.new_empty(0)


def rows_of(shards: Iterable[Tensor]) -> list[Rows]:
    """Where the rows of some shards stand, one for each."""
    lengths = torch.tensor([len(s) for s in shards])
    found = [torch.empty_like(lengths) for _ in range(sharing())]
    dist.all_gather(found, lengths, group=_sharers())
    return [Rows(tuple(column)) for column in torch.stack(found, 1).tolist()]


def percentile(scores: Sequence[Tensor], share: float) -> float:
    """A percentile (0 to 100) of numbers that ranks hold shards of, with linear interpolation.

    Args:
        scores: float32, none below zero.
        share: which.

    Found without gathering them: of such numbers the bit patterns are in the order of the
    numbers, so each of the two between which it lies is searched for by halves.
    """
    bits = [s.flatten().view(torch.int32) for s in scores]
    size = int(total(sum(b.numel() for b in bits)))
    place = share / 100 * (size - 1)

    def nth(index: int) -> float:
        low, high = 0, 2**31 - 1
        while low < high:
            middle = (low + high) // 2
            below = total(sum(int((b <= middle).sum()) for b in bits))
            low, high = (low, middle) if below > index else (middle + 1, high)
        return torch.tensor(low, dtype=torch.int32).view(torch.float32).item()

    low, high = nth(int(place)), nth(min(int(place) + 1, size - 1))
    return low + (high - low) * (place - int(place))


def spread(
    model: M, blocks: Callable[[M], Iterable[nn.Module]], device: str | None = None
) -> Callable[[], None]:
    """Divide a model's weights among the ranks, in place, its blocks gathered one at a time; with
    replicas each copy's among its own.

    Args:
        model: the same on all ranks.
        blocks: gives its blocks.
        device: where its weights will be, if they are not read yet.

    Returns:
        What makes it a plain model again on the first rank; the others are done then (``Given``).
    """
    if count() == 1:
        return lambda: None
    from torch.distributed.fsdp import fully_shard

    before = {m: (type(m), [*m._forward_pre_hooks], [*m._forward_hooks]) for m in model.modules()}
    kind = torch.device(device or next(model.parameters()).device).type
    mesh = _mesh(kind)
    parts: list[nn.Module] = [*blocks(model), model]
    for part in parts:
        fully_shard(part, mesh=mesh, reshard_after_forward=True)

    def collect() -> None:
        plain = _plain(model)
        if not first():
            raise Given
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = plain.get(id(parameter), parameter)
        for module, (kind, early, late) in before.items():
            if type(module) is not kind:
                module.__class__ = kind
                _only(module._forward_pre_hooks, early)
                _only(module._forward_hooks, late)

    return collect


def _mesh(kind: str) -> DeviceMesh:
    """The ranks, or of several copies a row of ranks for each."""
    if replicas() == 1:
        return init_device_mesh(kind, (count(),))
    names = ("replicate", "shard")
    return init_device_mesh(kind, (replicas(), sharing()), mesh_dim_names=names)


def _plain(model: nn.Module) -> dict[int, nn.Parameter]:
    """The parameters as the first rank keeps them in the end, whole, by the ids of their shards."""
    found = {}
    for parameter in model.parameters():
        if isinstance(parameter, DTensor):
            value = whole(parameter.detach())
            if first():
                found[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
    return found


def _only(hooks: dict[int, Any], those: Iterable[int]) -> None:
    for key in {*hooks} - {*those}:
        del hooks[key]
