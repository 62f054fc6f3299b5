"""The gradients of a step: those of its loss, or what an option of the optimiser makes of it.

Every option sees the whole step, all of its micro-batches, before it decides anything, so that
accumulated batches are one large batch to it. What it draws is a function of the seed and the step,
so that a run that was cut goes on as it would have.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from remnant.durable import digest_of
from remnant.errors import UserError
from remnant.model.terms import Term, reads_forget_only
from remnant.ranks import count
from remnant.records import ByLoraSpec, OptimSpec, RectifiedSpec, SamSpec, ZerothSpec
from remnant.trainable.parts import Part
from remnant.trainable.trainable import Trainable
from remnant.uninterrupted import uninterrupted

# From a micro-step to its scalar loss and the parts of that for the log.
LossAt = Callable[[int], tuple[Tensor, dict[str, float]]]
# Sends a loss back through a whole step; its parts, as means.
Send = Callable[[LossAt], dict[str, float]]
# Of a look beside the weights, in the log: the share of its numbers that rounding lost, 0 to 1.
LOST = "lost_perturbation"


class Halves(NamedTuple):
    """The loss of a micro-step in two: the terms that read forget text only, and the others, None
    where there are none.
    """

    forget: LossAt
    rest: LossAt | None = None


def losses_of(
    spec: OptimSpec, terms: list[Term], make: Callable[[list[Term]], LossAt]
) -> LossAt | Halves:
    """The loss of a run, in two where its way of stepping tells them apart (``make`` makes the loss
    of some terms).
    """
    if not isinstance(spec.update, SamSpec | RectifiedSpec):
        return make(terms)
    forget = [term for term in terms if reads_forget_only(term)]
    rest = [term for term in terms if not reads_forget_only(term)]
    return Halves(make(forget), make(rest) if rest else None)


def check_steps(spec: OptimSpec) -> None:
    """See before the first step that it can be made.

    Raises:
        UserError: several devices, whose result would not be that of one: an option looks at all
            gradients or weights, and rounding turns the signs of small ones; blocks of moments.
    """
    if spec.update and count() > 1:
        raise UserError(
            f"update = {spec.update.use} is made on one device.", "Leave it out, or devices."
        )
    if spec.moments == "8bit" and count() > 1 and not isinstance(spec.train, ByLoraSpec):
        raise UserError(
            "Moments of 8 bits have a scale for every 256 numbers, and shards end within them.",
            "Use moments = bf16, or one device.",
        )


def gather(
    moving: Trainable, parts: list[Part], spec: OptimSpec, loss: LossAt | Halves, step: int
) -> dict[str, float]:
    """Gather the gradients of a step in the parameters of what moves now.

    Returns:
        The parts of the loss at the weights themselves (of "zeroth" at both points together), as
        means, and what there is to say of the option.
    """
    send = partial(_sent_back, moving, spec, step)
    match spec.update:
        case SamSpec(radius=radius):
            return sharpness_aware(send, parts, _halves(loss), radius)
        case RectifiedSpec():
            return rectified(send, parts, _halves(loss))
        case ZerothSpec(spread=spread):
            seen = partial(_seen, spec, step)
            return two_point(seen, parts, drawn(parts, spec.seed, step), _whole(loss), spread)
        case _:
            return send(_whole(loss))


def _halves(loss: LossAt | Halves) -> Halves:
    return loss if isinstance(loss, Halves) else Halves(loss)


def _whole(loss: LossAt | Halves) -> LossAt:
    assert not isinstance(loss, Halves), "only made where the option tells the halves apart"
    return loss


def _sent_back(moving: Trainable, spec: OptimSpec, step: int, loss_at: LossAt) -> dict[str, float]:
    """Add the gradients of a loss; its parts, as means over the versions of the weights that the
    step looks at. Both passes of a version stand within it.
    """
    sums: dict[str, float] = {}
    versions = moving.versions(step)
    number = spec.accumulate * len(versions)
    for version in versions:
        with version:
            for micro in range(spec.accumulate):
                loss, parts = loss_at(step * spec.accumulate + micro)
                (loss / number).backward()
                for name, value in parts.items():
                    sums[name] = sums.get(name, 0.0) + value / number
    return sums


@torch.no_grad()
def _seen(spec: OptimSpec, step: int, loss_at: LossAt) -> tuple[float, dict[str, float]]:
    """The loss of a step and its parts, nothing sent back."""
    whole, sums = 0.0, dict[str, float]()
    for micro in range(spec.accumulate):
        loss, parts = loss_at(step * spec.accumulate + micro)
        whole += loss.item() / spec.accumulate
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value / spec.accumulate
    return whole, sums


@contextmanager
def moved_by(parts: Sequence[Part], steps: Iterable[Tensor]) -> Iterator[float]:
    """The model with its parts moved until the end of the context, then the same bits as before.

    Gives the share of the moved numbers that stay what they were, since the dtype of the weights
    has nothing in between; 0 to 1.
    """
    kept = [part.read().clone() for part in parts]
    wanted = stayed = 0
    try:
        with torch.no_grad():
            for part, before, step in zip(parts, kept, steps, strict=True):
                part.write(before.to(step.dtype) + step)
                moved = step != 0
                wanted += int(moved.sum())
                stayed += int((moved & (part.read() == before)).sum())
        yield stayed / wanted if wanted else 0.0
    finally:
        with torch.no_grad(), uninterrupted():
            for part, before in zip(parts, kept, strict=True):
                part.write(before)


def sharpness_aware(
    send: Send, parts: Sequence[Part], loss: Halves, radius: float
) -> dict[str, float]:
    """The gradient of the forget loss at w + r g / |g|, g its gradient at w and |g| the norm over
    all that moves, plus that of the rest at w.

    Source: Foret et al. 2021 (arXiv 2010.01412), eq. 2 and 3; of the forget loss alone Fan et al.
    2025 (arXiv 2502.05374). *Differs from the code of the second in*: micro-batches are added, both
    where the direction is taken and behind it; there each overwrites the one before.
    """
    said = send(loss.forget)
    with moved_by(parts, _uphill(parts, radius)) as lost:
        send(loss.forget)
    rest = send(loss.rest) if loss.rest else {}
    return said | rest | {LOST: lost}


def _uphill(parts: Sequence[Part], radius: float) -> list[Tensor]:
    """How far every part moves for all of them to move by the radius along their gradients, which
    are cleared.
    """
    slopes = _taken(parts)
    norm = sum(float(slope.double().square().sum()) for slope in slopes) ** 0.5
    # Where there is no slope there is no direction either.
    return [slope * (radius / norm if norm else 0.0) for slope in slopes]


def _taken(parts: Sequence[Part]) -> list[Tensor]:
    """The gradients of parts, in float32 or wider, out of their parameters."""
    slopes = [_wide(part.slope()).clone() for part in parts]
    for part in parts:
        part.parameter.grad = None
    return slopes


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def rectified(send: Send, parts: Sequence[Part], loss: Halves) -> dict[str, float]:
    """The sum f' + r, f' the forget gradient f without what goes against the retain gradient r: f
    where <f, r> is not below 0, else f - <f, r> / |r|^2 r, which is orthogonal to r. Over all that
    moves.

    Source: Wang et al. 2025 (arXiv 2503.09117), "GRU". *Differs from the source in*: r is that of
    the step, without a moving mean over steps, and is itself descended along; there it only guards.
    """
    assert loss.rest is not None, "checked where the run is planned"
    said = send(loss.rest)
    retain = _taken(parts)
    said |= send(loss.forget)
    forget = _taken(parts)
    dot, of_forget, of_retain = (
        _dot(one, other) for one, other in ((forget, retain), (forget, forget), (retain, retain))
    )
    against = min(dot, 0.0) / of_retain if of_retain else 0.0
    for part, own, other in zip(parts, forget, retain, strict=True):
        part.write_gradient(own + (1.0 - against) * other)
    norms = (of_forget * of_retain) ** 0.5
    return said | {"cosine": dot / norms if norms else 0.0}


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    pairs = zip(one, other, strict=True)
    return sum(float((a.double() * b.double()).sum()) for a, b in pairs)


def drawn(parts: Sequence[Part], seed: int, step: int) -> list[Tensor]:
    """A random direction of a step, standard normal in every number, the same on every device."""
    own = torch.Generator().manual_seed(int(digest_of([seed, step])[:15], 16))
    found = []
    for part in parts:
        like = _wide(part.read())
        found.append(torch.randn(like.shape, generator=own, dtype=like.dtype).to(like.device))
    return found


def two_point(
    seen: Callable[[LossAt], tuple[float, dict[str, float]]],
    parts: Sequence[Part],
    direction: Sequence[Tensor],
    loss_at: LossAt,
    spread: float,
) -> dict[str, float]:
    """(L(w + s z) - L(w - s z)) / 2s z, z the direction and s the spread: in the mean over
    directions the gradient, as s goes to 0.

    Source: Malladi et al. 2023 (arXiv 2305.17333), definition 1, one direction a step. *Differs
    from the source in*: the direction is held, not drawn twice, so a gradient's memory is taken,
    and weights go back to their own bits.
    """
    looks, lost = [], 0.0
    for far in (spread, -spread):
        with moved_by(parts, (far * z for z in direction)) as own:
            looks.append(seen(loss_at))
        lost += own / 2
    (ahead, said), (behind, other) = looks
    slope = (ahead - behind) / (2 * spread)
    for part, z in zip(parts, direction, strict=True):
        part.write_gradient(slope * z)
    return {name: (value + other[name]) / 2 for name, value in said.items()} | {LOST: lost}
