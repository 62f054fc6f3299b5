"""A promise: the update of a run is moved into few weights, each of which crosses into another cell
of every promised grid with half a cell to spare, and what came of it is certified.

Every other weight that a quantizer touches goes back to the target's value. So no part of the edit
is such as one grid keeps and another erases, and block scales stay what they are.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.context import Progress
from remnant.errors import UserError
from remnant.functional.cells import crossing
from remnant.methods import Step, grid, levels
from remnant.model.load import Matrix, matrices
from remnant.model.rounding import check_rounds, on_grid, replaced, rounded
from remnant.ranks import count
from remnant.records import FULL, Certificate, Kept, PromiseSpec, UnlearnSpec
from remnant.runtimes.same_grid import LIBRARIES, decoded_by

CERTIFICATE = "certificate.json"
# The first number of weights that is tried, as a share; then twice as many, and so on.
FIRST = 0.0005
# How often the step from too few to enough is halved: the number is then within 5 %.
HALVINGS = 4
CLAIM = (
    "{edited} of {weights} weights ({share:.2%}) were edited, and {every} of them have another "
    "code than the target's under every promised grid. {short}This is about the edit: what the "
    "model still tells under each grid has to be measured."
)
SHORT = (
    "They do not bring the forget loss to the {level:.3f} nats per token that the run had reached: "
    "it is {low:.3f} {where}. "
)
BUDGET = (
    "the weights that the run moved farthest, in the distances that each has to go; as few of them "
    "as bring the forget loss to {level:.3f} nats per token in full precision and under every "
    "promised grid, within 5 %, at most {most:.2%}"
)


class Edit(NamedTuple):
    """What may become of one weight. ``target``: its values before the run. ``value``: those behind
    the crossing, the target's where there is none. ``score``: how far the run moved a weight, over
    how far it has to go; 0 where it may not. All [..., out, in].
    """

    matrix: Matrix
    target: Tensor
    value: Tensor
    score: Tensor

    def edited(self, chosen: Tensor) -> Tensor:
        """The values where some weights [chosen], by their places, are edited, and no others."""
        values = self.target.clone().flatten()
        values[chosen] = self.value.flatten()[chosen]
        return values.view(self.target.shape)


class Given(NamedTuple):
    """What a promise is kept with. ``target``: the model before the run, in the dtype in which the
    run keeps its weights. ``forget_loss``: of the model as it is, in nats per token.
    """

    model: PreTrainedModel
    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    forget_loss: Callable[[], float]


def check_promise(spec: UnlearnSpec, model: PreTrainedModel) -> None:
    """See before the first step that a promise can be kept.

    Raises:
        UserError: the weights lie in shards, or a grid rounds none of them.
    """
    if spec.promise is None:
        return
    if count() > 1:
        raise UserError("A promise is made on one device.", "Leave promise out, or devices.")
    check_rounds(model, {use: grid(use) for use in spec.promise.use})


@torch.no_grad()
def keep(spec: PromiseSpec, given: Given, dtype: torch.dtype, progress: Progress) -> Certificate:
    """Edit the model in place so that the promise holds, and certify it.

    Args:
        spec: which grids, and how many weights at most.
        given: models and forget loss.
        dtype: in which weights are stored.
        progress: is told what is tried.

    Raises:
        UserError: a grid whose cells are not known, or no weight that can cross.
    """
    grids = {use: grid(use) for use in spec.use}
    level = given.forget_loss()
    edits = edits_of(given, [*grids.values()], dtype)
    scores = torch.cat([e.score.flatten() for e in edits])
    weights = len(scores)
    able, allowed = int((scores > 0).sum()), int(spec.most * weights)
    most = min(able, allowed)
    # Of equal scores, which a run in bfloat16 has many of, the first ones in the model's order.
    order = scores.sort(descending=True, stable=True).indices[:most]
    if not allowed:
        raise UserError(f"most = {spec.most:g} of {weights} weights is none.", "Raise most.")
    if not able:
        raise UserError(
            "No weight that the run moved can cross into another cell of every promised grid.",
            "Raise the learning rate, or promise fewer grids.",
        )

    def enough(number: int) -> bool:
        with replaced(edited(edits, order[:number])):
            # What is below ends the look, so that too few weights cost little.
            low = next((loss for _, loss in losses_of(given, grids) if not loss >= level), level)
        progress(number, most, f"{number} weights, forget loss {low:.3f} of {level:.3f}")
        return low >= level

    chosen = fewest(enough, max(1, int(FIRST * weights)), most)
    for matrix, values in edited(edits, order[:chosen]):
        matrix.write(values)
    return certificate(spec, given, grids, edits, level)


def edits_of(given: Given, grids: Sequence[Step], dtype: torch.dtype) -> list[Edit]:
    """What may become of every weight that a quantizer touches."""
    before = {m.name: m.read().float() for m in matrices(given.target)}
    found = []
    for matrix in matrices(given.model):
        target = before[matrix.name]
        update = matrix.read().float() - target
        rounded = [(on_grid(matrix, target, by), levels(by)) for by in grids]
        on = [(q, table) for q, table in rounded if q is not None]
        value, can = crossing(target, update, on, dtype)
        able = can if on else torch.zeros_like(can)
        score = torch.where(able, update.abs() / (value - target).abs(), 0.0)
        found.append(Edit(matrix, target, value, score))
    return found


def edited(edits: Sequence[Edit], chosen: Tensor) -> list[tuple[Matrix, Tensor]]:
    """Every weight's values where some are edited, by their places in the order of all weights."""
    found, start = [], 0
    for e in edits:
        end = start + e.target.numel()
        own = chosen[(chosen >= start) & (chosen < end)] - start
        found.append((e.matrix, e.edited(own)))
        start = end
    return found


def fewest(enough: Callable[[int], bool], first: int, most: int) -> int:
    """The smallest number that is enough, within 5 %; the largest one where none is.

    >>> fewest(lambda number: number >= 100, 7, 10000) in range(100, 106)
    True
    >>> fewest(lambda number: False, 7, 50)
    50
    """
    few, many = 0, min(first, most)
    while not enough(many):
        if many == most:
            return most
        few, many = many, min(2 * many, most)
    for _ in range(HALVINGS if few else 0):
        middle = round((few * many) ** 0.5)
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many


def losses_of(given: Given, grids: Mapping[str, Step]) -> Iterator[tuple[str, float]]:
    """The forget loss of the model as it is and rounded to one grid after the other."""
    yield FULL, given.forget_loss()
    for use, by in grids.items():
        with rounded(given.model, by):
            found = given.forget_loss()
        yield use, found


def certificate(
    spec: PromiseSpec,
    given: Given,
    grids: Mapping[str, Step],
    edits: Sequence[Edit],
    level: float,
) -> Certificate:
    """What holds of an edited model, by rounding it and the target again."""
    changed = {e.matrix.name: e.matrix.read().float() != e.target for e in edits}
    number = sum(int(mask.sum()) for mask in changed.values())
    weights = sum(mask.numel() for mask in changed.values())
    losses = dict(losses_of(given, grids))
    formats = []
    every = list(changed.values())
    for use, by in grids.items():
        differ = [_apart(e, by) for e in edits]
        pairs = zip(differ, edits, strict=True)
        among = sum(int((d & changed[e.matrix.name]).sum()) for d, e in pairs)
        every = [so_far & d for so_far, d in zip(every, differ, strict=True)]
        everywhere = sum(int(d.sum()) for d in differ)
        library, by_library = _by_library(use, given, changed)
        formats.append(
            Kept(
                format=use,
                differ=among,
                elsewhere=everywhere - among,
                forget_loss=losses[use],
                library=library,
                differ_by_library=by_library,
            )
        )
    share = number / weights
    both = sum(int(mask.sum()) for mask in every)
    short = _short(losses, level)
    return Certificate(
        claim=CLAIM.format(edited=number, weights=weights, share=share, every=both, short=short),
        budget=BUDGET.format(level=level, most=spec.most),
        weights=weights,
        edited=number,
        share=share,
        level=level,
        forget_loss=losses[FULL],
        reached=not short,
        formats=tuple(formats),
    )


def _short(losses: Mapping[str, float], level: float) -> str:
    """Where the forget loss stays below a level most, in words; "" where it is reached."""
    low = [(loss, use) for use, loss in losses.items() if not loss >= level]
    if not low:
        return ""
    loss, use = min(low)
    where = "in full precision" if use == FULL else f"under {use}"
    return SHORT.format(level=level, low=loss, where=where)


def write_certificate(found: Certificate, folder: Path) -> None:
    """The certificate as a file of its own beside the model."""
    text = json.dumps(found.model_dump(mode="json"), indent=1)
    (folder / CERTIFICATE).write_text(text + "\n", encoding="utf-8")


def _apart(edit: Edit, by: Step) -> Tensor:
    """Where the codes of the edited weight and of the target's differ."""
    before, after = (on_grid(edit.matrix, w, by) for w in (edit.target, edit.matrix.read()))
    if before is None or after is None:
        return torch.zeros_like(edit.target, dtype=torch.bool)
    return (before.codes != after.codes).view(edit.target.shape)


def _by_library(use: str, given: Given, changed: Mapping[str, Tensor]) -> tuple[str, int | None]:
    """Who else has a grid, and how many edited weights it decodes to another value than the
    target's; nobody where no library has it or it is missing.
    """
    library = LIBRARIES.get(use, "")
    if not library:
        return "", None
    try:
        before, after = (
            decoded_by(library, m, given.tokenizer) for m in (given.target, given.model)
        )
    except UserError:
        return "", None
    found = {name: before[name] != after[name] for name in changed if name in before}
    return library, sum(int((changed[name] & apart).sum()) for name, apart in found.items())
