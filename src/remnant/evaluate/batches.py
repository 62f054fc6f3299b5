"""Which requests are computed side by side: sorted by length, packed by padded tokens, those with
one context together. No torch.
"""

from collections.abc import Sequence

# Below this the cache of a shared beginning costs more than it saves.
WORTH_SHARING = 8


def packed(lengths: Sequence[int], budget: int, most: int) -> list[list[int]]:
    """Places in batches of at most ``budget`` padded tokens and ``most`` rows, the longest first.

    A too long one stands alone.
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        last = batches[-1] if batches else []
        if last and (len(last) + 1) * lengths[last[0]] <= budget and len(last) < most:
            last.append(place)
        else:
            batches.append([place])
    return batches


def shared(ids: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with, leaving at least one to each."""
    if len(ids) < 2:
        return 0
    shortest = min(len(i) for i in ids) - 1
    first = ids[0]

    def parts(n: int) -> bool:
        return any(i[n] != first[n] for i in ids)

    common = next(filter(parts, range(shortest)), max(shortest, 0))
    return common if common >= WORTH_SHARING else 0
