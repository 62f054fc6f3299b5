"""A linear probe: whether something can be read off vectors by a plane, and whether as much can be
read off at random. No torch.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# Weight of the squared norm of the plane, for vectors of unit variance: with fewer vectors than
# entries any labels can be separated, and the plane that does it must not be infinitely steep.
RIDGE = 1.0
# Newton's method is exact to the last bits after about ten steps.
NEWTON = 50
CLOSE = 1e-10


def plane(vectors: Array, labels: Array, ridge: float = RIDGE) -> Array:
    """[1 + entries] the logistic regression of labels on vectors, its offset first.

    Args:
        vectors: [items, entries].
        labels: [items] of 0 and 1.
        ridge: weight of half the squared norm of the plane beside the summed loss; the offset is
            free. Above 0.

    Source: logistic regression with an L2 penalty, by Newton's method; scikit-learn's
    ``LogisticRegression(C=1 / ridge)`` minimizes the same.

    >>> found = plane(np.array([[-1.0], [1.0]]), np.array([0.0, 1.0]))
    >>> bool(abs(found[0]) < 1e-9), bool(found[1] > 0)
    (True, True)
    """
    design = np.concatenate([np.ones((len(vectors), 1)), vectors], axis=1)
    penalty = np.full(design.shape[1], ridge)
    penalty[0] = 0.0
    found = np.zeros(design.shape[1])
    for _ in range(NEWTON):
        chance = _chances(design @ found)
        slope = design.T @ (chance - labels) + penalty * found
        bend = (design * (chance * (1 - chance))[:, None]).T @ design + np.diag(penalty)
        change = np.linalg.lstsq(bend, slope, rcond=None)[0]
        found = found - change
        if np.abs(change).max() < CLOSE:
            break
    return found


def told_apart(vectors: Array, labels: Array, folds: int, seed: int) -> Array:
    """[items] the probability that a plane gives to the true label of every item, 0 to 1, which was
    fitted to the other folds. 0.5 where nothing can be told.

    Args:
        vectors: [items, entries]; brought to unit variance by those of the other folds.
        labels: [items] of 0 and 1, each at least as often as there are folds.
        folds: each with as many of either label as the others, up to one.
        seed: which items stand in which fold.

    Raises ValueError where a label is too rare.

    Source: cross-validation (Stone 1974), stratified.

    >>> line = np.arange(8.0)[:, None]
    >>> bool((told_apart(line, (line[:, 0] > 3).astype(float), 4, 0) > 0.5).all())
    True
    """
    counts = [int((labels == label).sum()) for label in (0, 1)]
    if min(counts) < folds:
        raise ValueError(f"{min(counts)} items of one label for {folds} folds")
    fold = np.zeros(len(labels), dtype=int)
    rng = np.random.default_rng(seed)
    for label, count in zip((0, 1), counts, strict=True):
        fold[labels == label] = rng.permutation(np.arange(count) % folds)
    found = np.zeros(len(labels))
    for number in range(folds):
        rest, own = fold != number, fold == number
        middle, spread = vectors[rest].mean(0), vectors[rest].std(0) + CLOSE
        scaled = (vectors - middle) / spread
        chosen = plane(scaled[rest], labels[rest])
        chance = _chances(chosen[0] + scaled[own] @ chosen[1:])
        found[own] = np.where(labels[own] == 1, chance, 1 - chance)
    return found


def _chances(scores: Array) -> Array:
    found: Array = 1 / (1 + np.exp(-np.clip(scores, -500, 500)))
    return found
