"""Whether two models are of one family, how far apart they are, and which of the two came first:
pure functions of their windows.

Nothing is concluded from names. What a step leaves in the weights tells its direction: rounding
loses values, pruning makes zeros, a cast loses digits, an adapter and noise are independent of the
weights that they were added to. A training leaves no such trace, and then none is told.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from remnant.ancestry.windows import Sample

Array = NDArray[np.float32]
Step = Literal[
    "same weights",
    "cast",
    "quantized",
    "pruned",
    "adapter merged",
    "noise",
    "merged",
    "trained",
    "none",
]
# Least median cosine of matrices in one place. Two versions of one model had 0.76 to 1.00 (a
# never-read model of the same initialisation 0.79, int4 per tensor 0.98, half pruned 0.96), and
# matrices of other layers, and models of other seeds, at most 0.04.
LEAST_COSINE = 0.2
# And at least so many times what matrices of one kind in different layers have at most: a model all
# of whose matrices look alike tells nothing.
OVER_CHANCE = 3.0
# Least correlation of how alike tokens are to each other in a model and in what was made of it:
# those of one beginning had 0.73 to 1.00, models of other seeds on the same text 0.08 at most.
LEAST_TURNED = 0.5
# Least share of the matrices of both that the two must have in common by name and shape.
LEAST_SHARED = 0.5
# Pairs of equal values among 32 neighbours, zeros left out. float32 has none, bfloat16 0.001 to
# 0.002, Q8_0 0.005, int8 per row 0.008, FP8 0.03, int4 0.14 to 0.21.
ROUNDED = 0.003
# Blocks that are looked at of one model, and of two that are compared code by code.
BLOCK, MOST_BLOCKS, BLOCKS_OF_TWO = 32, 4096, 1024
# A grid may come from one that has this many times fewer such pairs: int4 of int8, not of int4.
COARSER = 4.0
# What rounding leaves is spread over half a step, 0.29 of it root mean square, or more where steps
# differ. A model nearer to the grid than this began there and was trained.
NEAR_GRID = 0.15
# Share of zeros by which a pruned model exceeds its parent, and share of the weights it kept that
# are still the parent's.
MORE_ZEROS, KEPT = 0.02, 0.95
# Of a model trained on after pruning: what stands at the zeros, over what was kept.
REGROWN = 0.05
# An adapter's update has at most a quarter of the ranks that a window can tell, and holds nearly
# all of the difference.
LOW_RANK, OF_THE_DIFFERENCE = 0.25, 0.9
# Largest singular value over that of independent noise, s (sqrt m + sqrt n): Marchenko and Pastur.
# A window of 64 x 64 exceeds it by 2 % in one of a hundred draws, a training by half and more.
FLAT = 1.1
# Where the difference lies between orthogonal to the one (0) and to the other (1).
TELLING = 0.25
# Matrices whose singular values are looked at, evenly many of all that differ: a hundred cost a
# second, and one that is no adapter's decides.
LOOKED_AT = 8
# A merged adapter is its update but for a tenth of it: bfloat16 rounds the sum.
OFF_UPDATE = 0.1
# Of a merge a hundredth of the way between its parents may be left over (squared here), more than
# bfloat16 rounds where they are apart; and it holds at least so much of either.
LEFT_OVER, LEAST_MIX = 1e-4, 0.02
# Share of entries that are the other model's in a narrower dtype: ties may be rounded otherwise.
_EXACT = 0.999


class Kin(NamedTuple):
    """What two models, a and b, are to each other.

    ``distance``: |a - b|^2 over |a| |b|. ``step``: what lies between them. ``a_first``,
    ``b_first``: whether a may be the parent of b, and b of a; both where nothing tells, neither of
    siblings. ``fit``: share of the child's weights, of ``looked``, that are what the step makes of
    the parent's: the code that they are rounded to, or kept as they were; None where no step can
    be checked so. ``rank``: of a merged adapter.
    """

    distance: float
    cosine: float
    step: Step
    a_first: bool
    b_first: bool
    fit: float | None = None
    looked: int = 0
    rank: int | None = None

    @property
    def misfits(self) -> float:
        """How many of the weights that were looked at are not what the step makes."""
        return self.looked * (1 - (1.0 if self.fit is None else self.fit))

    @property
    def cost(self) -> float:
        """How unlikely it is that the one was made of the other in one step.

        A step that leaves a trace explains itself, whatever it moved; how far is a tie-breaker.
        Everything else is as unlikely as the two are far apart.
        """
        if self.step in ("trained", "none"):
            return self.distance
        return 1 - (1.0 if self.fit is None else self.fit) + 1e-9 * self.distance

    @property
    def told(self) -> bool:
        """Whether the weights tell which of the two came first."""
        return self.a_first != self.b_first

    @property
    def turned(self) -> "Kin":
        """The same, seen from b."""
        return self._replace(a_first=self.b_first, b_first=self.a_first)


class Traits(NamedTuple):
    """What one model's weights show of what was done to it.

    ``repeats``: pairs of equal values (``ROUNDED``). ``zeros``: their share.
    """

    repeats: float
    zeros: float

    @property
    def rounded(self) -> bool:
        """Whether the weights lie on a grid that is coarser than bfloat16."""
        return self.repeats > ROUNDED


def shared(a: Sample, b: Sample) -> list[str]:
    """The matrices that two models have in common; none where they are too few to compare."""
    names = [n for n, shape in a.shapes.items() if b.shapes.get(n) == shape]
    most = max(len(a.shapes), len(b.shapes))
    return sorted(names) if len(names) >= LEAST_SHARED * most else []


def cosine(x: Array, y: Array) -> float:
    """Of two windows; 0 where one is nothing but zeros.

    >>> cosine(np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]]))
    0.96
    """
    length = float(np.linalg.norm(x)) * float(np.linalg.norm(y))
    return float(np.vdot(x, y)) / length if length else 0.0


def turned(a: Array, b: Array) -> float:
    """How alike tokens are to each other in two models, whatever the coordinates: 1 where the
    embeddings [tokens, width] of one are those of the other permuted, turned or scaled.

    The correlation of the cosines of all pairs of tokens; 0 where they are not as many.

    >>> x = np.array([[1.0, 0, 0], [1, 1, 0], [0, 1, 2], [3, 0, 1]], np.float32)
    >>> round(turned(x, 2 * x[:, ::-1]), 6)
    1.0
    """
    if len(a) != len(b):
        return 0.0
    pairs = np.triu_indices(len(a), 1)
    found = []
    for rows in (a, b):
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        found.append((unit @ unit.T)[pairs])
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.nan_to_num(np.corrcoef(found)[0, 1]))


def alike(a: Sample, b: Sample, names: Sequence[str]) -> tuple[float, float]:
    """Median cosine of matrices in one place, and the largest of matrices of one kind in different
    layers: what models that have nothing to do with each other may have.
    """
    matched = float(np.median([cosine(a.windows[n], b.windows[n]) for n in names]))
    kinds: dict[tuple[str, tuple[int, int]], list[str]] = {}
    for name in names:
        kinds.setdefault((re.sub(r"\d+", "", name), a.shapes[name]), []).append(name)
    chance = [0.0]
    for layers in kinds.values():
        pairs = zip(layers, layers[1:] + layers[:1], strict=True) if len(layers) > 1 else ()
        chance += [abs(cosine(a.windows[one], b.windows[other])) for one, other in pairs]
    return matched, max(chance)


def traits(model: Sample) -> Traits:
    """What a model's weights show.

    A sample of the blocks of 32 neighbours, evenly spread over its matrices.
    """
    blocks = _blocks(list(model.windows.values()))
    there = blocks != 0
    pairs = (blocks[:, :, None] == blocks[:, None, :]) & there[:, :, None]
    count = there.sum(1)
    equal, all_pairs = int(pairs.sum() - count.sum()), int((count * (count - 1)).sum())
    return Traits(equal / max(all_pairs, 1), float(1 - there.mean()))


def kin(a: Sample, b: Sample, of_a: Traits, of_b: Traits) -> Kin | None:
    """What two models are to each other; None where they are not of one family."""
    names = shared(a, b)
    if not names:
        return None
    matched, chance = alike(a, b, names)
    if matched < max(LEAST_COSINE, OVER_CHANCE * chance):
        return None
    x, y = flattened(a, names), flattened(b, names)
    apart = float(np.sum((x - y) ** 2, dtype=np.float64))
    distance = apart / (float(np.linalg.norm(x)) * float(np.linalg.norm(y)))
    found = Kin(distance, matched, "trained", True, True)
    if not apart:
        return found._replace(step="same weights")
    if _is_cast(x, y):
        return found._replace(step="cast", b_first=False)
    if _is_cast(y, x):
        return found._replace(step="cast", a_first=False)
    if of_a.rounded or of_b.rounded:
        return _by_grid(found, a, b, (of_a, of_b))
    if abs(of_a.zeros - of_b.zeros) > MORE_ZEROS:
        first = of_a.zeros < of_b.zeros
        step = _by_zeros(found, x, y) if first else _by_zeros(found, y, x)
        return step if first else step.turned
    windows = [(a.windows[n], b.windows[n]) for n in names]
    return _by_difference(found, [(p, q) for p, q in windows if not np.array_equal(p, q)], (x, y))


def off_update(adapter: Sample, before: Sample, after: Sample) -> float:
    """How far the difference of two models is from an adapter's update, over the update: 0 where
    the one is the other with the adapter merged into it.
    """
    own = adapter.shapes
    names = [n for n in own if before.shapes.get(n) == own[n] == after.shapes.get(n)]
    if len(names) < len(own):
        return float("inf")
    added = np.concatenate([adapter.windows[n].ravel() for n in names])
    seen = [(after.windows[n] - before.windows[n]).ravel() for n in names]
    length = float(np.linalg.norm(added))
    return float(np.linalg.norm(np.concatenate(seen) - added)) / length if length else float("inf")


def _blocks(windows: Sequence[Array], most: int = MOST_BLOCKS) -> Array:
    """[blocks, 32] runs of neighbours in rows, evenly many of every window."""
    each = max(1, most // len(windows))
    found = []
    for window in windows:
        columns = window.shape[1] // BLOCK * BLOCK
        runs = window[:, :columns].reshape(-1, BLOCK)
        found.append(runs[:: max(1, len(runs) // each)])
    return np.concatenate(found)


def _is_cast(x: Array, y: Array) -> bool:
    """Whether y is x in bfloat16 or float16."""
    bits = x.view(np.uint32).astype(np.uint64)
    near = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    with np.errstate(over="ignore"):
        casts = (near.astype(np.uint32).view(np.float32), x.astype(np.float16).astype(np.float32))
    return any(float(np.mean(cast == y)) > _EXACT for cast in casts)


def _by_grid(found: Kin, a: Sample, b: Sample, own: tuple[Traits, Traits]) -> Kin:
    """Of two models of which one or both lie on a grid."""
    if own[0].repeats > own[1].repeats:
        return _by_grid(found.turned, b, a, own[::-1]).turned
    if own[0].rounded and own[0].repeats * COARSER > own[1].repeats:
        return found._replace(step="none", a_first=False, b_first=False)
    names = shared(a, b)
    x = _blocks([a.windows[n] for n in names], BLOCKS_OF_TWO)
    y = _blocks([b.windows[n] for n in names], BLOCKS_OF_TWO)
    if _off_grid(x, y) < NEAR_GRID:
        return found._replace(step="trained", a_first=False)
    return found._replace(step="quantized", b_first=False, fit=codes(x, y), looked=x.size)


def codes(x: Array, y: Array) -> float:
    """Share of the entries of x, blocks of 32, that lie nearest to their own level of y's grid.

    Levels are those that occur in the block, so no format need be known. Without a relation it is
    what chance gives; rounding to the nearest gives 1.

    >>> codes(np.array([[0.1, 0.9, 2.2]]), np.array([[0.0, 1.0, 2.0]]))
    1.0
    """
    nearest = np.abs(x[:, :, None] - y[:, None, :]).argmin(-1)
    return float(np.mean(np.take_along_axis(y, nearest, 1) == y))


def _off_grid(x: Array, y: Array) -> float:
    """Root mean square of x - y over the smallest step between levels of y in the same block."""
    steps = np.diff(np.sort(y, 1), axis=1)
    steps[steps <= 1e-4 * np.abs(y).max(1, keepdims=True)] = np.inf
    step = steps.min(1)
    usable = np.isfinite(step)
    error = np.sqrt(np.mean((x - y) ** 2, 1))
    return float(np.median(error[usable] / step[usable])) if usable.any() else np.inf


def _by_zeros(found: Kin, x: Array, y: Array) -> Kin:
    """Of x and of y, which has more zeros: pruned, or x was trained on from a pruned model."""
    kept = y != 0
    same = float(np.mean(x[kept] == y[kept]))
    regrown = float(np.sqrt(np.mean(x[~kept] ** 2)) / np.sqrt(np.mean(y[kept] ** 2)))
    if same < KEPT and regrown < REGROWN:
        return found._replace(step="trained", a_first=False)
    looked = int(kept.sum())
    return found._replace(step="pruned", b_first=False, fit=same, looked=looked)


def _by_difference(
    found: Kin, pairs: Sequence[tuple[Array, Array]], whole: tuple[Array, Array]
) -> Kin:
    """Of two models that lie on no grid, by what the difference looks like."""
    some = pairs[:: max(1, len(pairs) // LOOKED_AT)][:LOOKED_AT]
    ranks = [_rank(*pair) for pair in some]
    step: Step = "trained"
    if all(ranks):
        step = "adapter merged"
    elif all(_is_flat(y - x) for x, y in some):
        step = "noise"
    if step == "trained":
        return found
    x, y = whole
    difference = (y - x).astype(np.float64)
    place = -float(np.vdot(x, difference)) / float(np.vdot(difference, difference))
    return found._replace(
        step=step,
        a_first=place < 1 - TELLING,
        b_first=place > TELLING,
        rank=max(ranks) if step == "adapter merged" else None,
    )


def _rank(x: Array, y: Array) -> int:
    """Rank of a difference above what rounding leaves; 0 where it is no adapter's."""
    values = np.linalg.svd(y - x, compute_uv=False)
    # A dtype's rounding, half a unit in the last place: 2^-9 of bfloat16, 2^-24 of float32, summed.
    digits = 2.0**-9 if _has_few_digits(x) or _has_few_digits(y) else 2.0**-22
    spread = digits * float(np.sqrt(np.mean(x**2)))
    edge = max(spread * sum(np.sqrt(x.shape)), 1e-5 * values[0])
    above = values[values > edge]
    held = float(np.sum(above**2) / np.sum(values**2))
    small = len(above) <= LOW_RANK * min(x.shape)
    return len(above) if small and held > OF_THE_DIFFERENCE else 0


def _has_few_digits(x: Array) -> bool:
    return not bool(np.any(x.view(np.uint32) & 0x1FFF))


def _is_flat(difference: Array) -> bool:
    """Whether a difference has the singular values of independent noise."""
    largest = float(np.linalg.norm(difference, 2))
    spread = float(np.sqrt(np.mean(difference**2)))
    return largest < FLAT * spread * float(sum(np.sqrt(difference.shape)))


def nearest(child: Array, first: Array, other: Array) -> float:
    """By how many standard errors a child is nearer to the first of two models than to the other.

    Paired over the entries of their windows: what the two have in common cancels out.
    """
    gap = (child - other).astype(np.float64) ** 2 - (child - first).astype(np.float64) ** 2
    spread = float(gap.std())
    return float(gap.mean()) / spread * np.sqrt(gap.size) if spread else 0.0


def fits_better(first: Kin, other: Kin) -> float:
    """By how many standard errors the child fits one parent better than another one: McNemar's
    test, with every misfit counted as one that the other has not.

    >>> first = Kin(0, 1, "pruned", True, False, fit=1.0, looked=100)
    >>> fits_better(first, first._replace(fit=0.91))
    3.0
    """
    both = first.misfits + other.misfits
    return round((other.misfits - first.misfits) / both**0.5, 6) if both else 0.0


def mix(model: Array, one: Array, other: Array) -> tuple[float, float]:
    """The share t of the other with which a model is nearest to (1 - t) one + t other, and what is
    left over, squared, of the way between the two.

    >>> one, other = np.zeros(4, np.float32), np.arange(4, dtype=np.float32)
    >>> mix(0.25 * other, one, other)
    (0.25, 0.0)
    """
    way = (other - one).astype(np.float64)
    length = float(np.vdot(way, way))
    if not length:
        return 0.0, 1.0
    moved = (model - one).astype(np.float64)
    share = float(np.vdot(moved, way)) / length
    return share, float(np.sum((moved - share * way) ** 2)) / length


def flattened(model: Sample, names: Sequence[str]) -> Array:
    """The windows of some matrices behind each other."""
    windows: Mapping[str, Array] = model.windows
    return np.concatenate([windows[name].ravel() for name in names])
