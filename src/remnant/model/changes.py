"""Whether the weights of a model are others than before, and how many of them, without a copy."""

import torch
from torch import Tensor, nn

from remnant.model.nf4 import values
from remnant.ranks import counts, in_shards, local, offset, rows_of

# How many numbers of a weight are looked at, about.
SAMPLED = 4096


def prints(model: nn.Module) -> list[int]:
    """Two numbers per weight that tell whether it is the same to the bit: the sums of all its bit
    patterns and of every second one; of weights in shards those of all ranks together.
    """
    kinds = {4: torch.int32, 2: torch.int16}
    found = []
    for value in values(model):
        bits = local(value).flatten().view(kinds[value.element_size()])
        second = bits[offset(value) % 2 :: 2]
        found += [int(b.sum(dtype=torch.int64)) for b in (bits, second)]
    return counts(found) if in_shards(model.parameters()) else found


def sampled(model: nn.Module) -> list[Tensor]:
    """Some numbers of every weight, spread evenly: at most about ``SAMPLED`` of each; of weights in
    shards all ranks' on the first one.
    """
    found = []
    for value in values(model):
        every = max(1, value.numel() // SAMPLED)
        first_of_all = -offset(value) % every
        found.append(local(value).flatten()[first_of_all::every].clone())
    if not in_shards(model.parameters()):
        return found
    rows = rows_of(found)
    return [own.joined(values) for own, values in zip(rows, found, strict=True)]


def share_changed(before: list[Tensor], after: list[Tensor]) -> float:
    """The share of sampled numbers that are others than before, every weight counting by its
    sample, 0 to 1; 0 on ranks that have none.
    """
    changed = sum(int((a != b).sum()) for a, b in zip(before, after, strict=True))
    return changed / max(1, sum(a.numel() for a in before))
