"""The training loop: a loss per micro-step -> weights. Used to train targets and to unlearn."""

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from remnant.context import Context
from remnant.errors import Diverged, Interrupted
from remnant.model.blocks import recomputed
from remnant.model.heap import give_back
from remnant.model.whole import first_not_finite
from remnant.ranks import anywhere, count, told
from remnant.records import OptimSpec
from remnant.trainable.trainable import Trainable
from remnant.training.checkpoints import Checkpoints, Done, Pace, fingerprint, size_of
from remnant.training.gradients import Halves, LossAt, check_steps, gather
from remnant.training.stepper import Stepper
from remnant.uninterrupted import uninterrupted

AfterStep = Callable[[int, dict[str, float], dict[str, Any]], bool]


class Loop(NamedTuple):
    """Where a transform that trains keeps its steps, its context, and its seed."""

    folder: Path
    work: Context
    seed: int


def rate(spec: OptimSpec, step: int) -> float:
    """Learning rate of a step: linear warm-up, then constant or a cosine down to zero."""
    if step < spec.warmup:
        return spec.lr * (step + 1) / spec.warmup
    if spec.schedule == "constant":
        return spec.lr
    progress = (step - spec.warmup) / max(1, spec.steps - spec.warmup)
    return spec.lr * 0.5 * (1 + math.cos(math.pi * progress))


def fit(
    moving: Trainable,
    spec: OptimSpec,
    loss_at: LossAt | Halves,
    folder: Path,
    work: Context,
    after_step: AfterStep = lambda step, parts, memory: False,
) -> tuple[int, dict[str, Any]]:
    """Run the steps, resuming from ``folder`` where an earlier call was cut off.

    Args:
        moving: what is trained in place; its model is in the dtype of ``spec.weights``. Where its
            parts are chosen again, the run resumes from the last choice.
        spec: the optimiser's settings.
        loss_at: micro-step -> (scalar loss, its parts for the log); in two where ``spec.update``
            tells them apart.
        folder: receives steps.jsonl, and checkpoints (``GENERATIONS``), from which a call that
            follows goes on; also behind the last step, so that a model that could not be saved
            costs no steps. Whoever seals the folder leaves them out.
        work: is told (steps done, steps in all, note).
        after_step: called with the step, its parts and a JSON-like memory that is kept across
            resumption; True stops.

    Returns:
        Steps done and the memory.

    Raises:
        Diverged: the loss or a gradient is not finite; the weights keep their last finite values
            in resume.pt.
        Interrupted: Ctrl-C; the state is saved.
        UserError: as ``check_steps``.
    """
    check_steps(spec)
    stepper = Stepper(moving.parts, spec, moving.weights)
    log = folder / "steps.jsonl"
    kept = Checkpoints(folder, log, fingerprint(moving.model, spec))
    done = kept.load(moving, stepper)
    begun = done.step
    renewal = moving.renewal
    pace = Pace(size_of(moving), sum(p.nbytes for p in moving.model.parameters()))

    def keep(stepper: Stepper | None) -> None:
        pace.timed(lambda: kept.save(moving, stepper, done))

    try:
        done = _followed(after_step, done)
        while done.step < spec.steps and not done.stopped:
            if renewal is not None and done.step and done.step % renewal.every == 0:
                keep(None)
                stepper = Stepper(renewal.choose(), spec, moving.weights)
            with recomputed(moving.model) if spec.checkpointing else nullcontext():
                parts = gather(moving, stepper.parts, spec, loss_at, done.step)
            give_back()
            stepper.gather()
            if not _finite(parts, stepper):
                if renewal is None:
                    keep(stepper)
                    kept.settle()
                raise _not_finite(parts, done.step)
            now = rate(spec, done.step)
            with _whole():
                stepper.step(now)
                done = done._replace(step=done.step + 1, due=parts)
                lost = {"lost": stepper.lost} if spec.count_lost else {}
                _append(log, {"step": done.step, "lr": now, **parts, **lost})
            done = _followed(after_step, done)
            note = " ".join(f"{k} {v:.3f}" for k, v in parts.items())
            work.progress(done.step, spec.steps, note)
            if renewal is None and told(pace.due()):
                keep(stepper)
            kept.settle_if_done()
    except KeyboardInterrupt as error:
        # Of several ranks each is somewhere else, so that nothing can be gathered.
        if renewal is None and count() == 1:
            keep(stepper)
        raise Interrupted(
            f"Interrupted at step {done.step} of {spec.steps}.",
            "The same command goes on from there.",
        ) from error
    if done.step > begun or told(not kept.newest.is_file()):
        keep(None)
    kept.settle()
    return done.step, done.memory


def _whole() -> AbstractContextManager[None]:
    """Of several ranks, which save nothing when they are interrupted, none waits for another."""
    return uninterrupted() if count() == 1 else nullcontext()


def _followed(after_step: AfterStep, done: Done) -> Done:
    """What follows a step, whole or not at all: a call that goes on begins with it again."""
    if done.due is None:
        return done
    memory = deepcopy(done.memory)
    stopped = after_step(done.step, done.due, memory)
    return Done(done.step, memory, stopped)


def _finite(parts: dict[str, float], stepper: Stepper) -> bool:
    """Whether everything is finite, on all ranks, so that all stop at the same step."""
    named = (("", gradient) for gradient in stepper.gradients())
    good = all(map(math.isfinite, parts.values())) and first_not_finite(named) is None
    return not anywhere(not good)


def _not_finite(parts: dict[str, float], step: int) -> Diverged:
    shown = ", ".join(f"{k} {v:.4g}" for k, v in parts.items())
    return Diverged(
        (
            f"The loss or its gradient is not finite at step {step + 1} ({shown}); the weights "
            f"after step {step} are kept."
        ),
        "Lower the learning rate, clip the gradient or use a bounded loss.",
    )


def _append(log: Path, record: dict[str, Any]) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def last_of(log: Path, name: str) -> float | None:
    """One entry of the last step in the log; None where no step was done."""
    lines = log.read_text(encoding="utf-8").split("\n")[:-1] if log.is_file() else []
    return float(json.loads(lines[-1])[name]) if lines else None
