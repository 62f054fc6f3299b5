"""The training loop: a loss per micro-step -> weights. Used to train targets and to unlearn."""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from remnant.durable import digest_of, tell
from remnant.errors import Interrupted, UserError
from remnant.functional.weights import stochastic_round
from remnant.model import kept
from remnant.model.load import in_dtype, matrices
from remnant.model.parts import Part
from remnant.records import OptimSpec

Report = Callable[[int, int, str], None]
SAVE_SECONDS = 30.0


class Renewal(NamedTuple):
    """Choosing the moving parts again, every so many steps."""

    every: int
    choose: Callable[[], list[Part]]


@dataclass
class Stepper:
    """Moves parts of parameters by AdamW in one of three regimes.

    Everything else stays as it is, bit for bit.

    ``fp32``: weights and state are float32. ``bf16``: weights and state are bfloat16, as in the
    paper's code; updates below half a unit in the last place are lost.
    ``bf16-stochastic-rounding``: stored in bfloat16, each step taken in float32 from the stored
    values and rounded stochastically.

    A part that is not a whole parameter, and every part that is stepped in another dtype than its
    parameter has, is moved as a copy and written back, so that neither optimiser state nor any
    update exists outside the parts. With ``compute = fp32`` the parameters are float32 tensors that
    hold bfloat16 values: the forward pass is exact, gradients are rounded, and the step is the
    same.
    """

    parts: list[Part]
    spec: OptimSpec
    moved: list[nn.Parameter] = field(init=False)
    optimizer: torch.optim.AdamW = field(init=False)
    noise: torch.Generator = field(init=False)
    lost: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.moved = [
            nn.Parameter(self._working(p)) if self._copied(p) else p.parameter for p in self.parts
        ]
        betas = (0.9, self.spec.beta2)
        self.optimizer = torch.optim.AdamW(
            self.moved, lr=self.spec.lr, weight_decay=self.spec.weight_decay, betas=betas
        )
        self.noise = torch.Generator(device=self.moved[0].device).manual_seed(self.spec.seed)

    @property
    def _stochastic(self) -> bool:
        return self.spec.weights == "bf16-stochastic-rounding"

    def _copied(self, part: Part) -> bool:
        return self.spec.count_lost or part.index is not None or part.parameter.dtype != self._dtype

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype in which steps are taken."""
        return torch.bfloat16 if self.spec.weights == "bf16" else torch.float32

    def _working(self, part: Part) -> Tensor:
        return part.read().to(self._dtype, copy=True)

    def step(self, lr: float) -> None:
        """Apply the gathered gradients and clear them."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        copies = [
            (own, part)
            for own, part in zip(self.moved, self.parts, strict=True)
            if self._copied(part)
        ]
        for own, part in copies:
            own.data.copy_(part.read())
            grad = part.gradient()
            own.grad = None if grad is None else grad.to(own.dtype)
        if self.spec.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.moved, self.spec.clip)
        self.optimizer.step()
        stayed = due = 0
        for own, part in copies:
            stepped = stochastic_round(own.data, self.noise) if self._stochastic else own.data
            if self.spec.count_lost and own.grad is not None:
                wanted = own.grad != 0
                due += int(wanted.sum())
                stayed += int((wanted & (stepped == part.read())).sum())
            part.write(stepped)
            part.parameter.grad = own.grad = None
        self.lost = stayed / due if due else 0.0
        for own in self.moved:
            own.grad = None

    def gradients(self) -> list[Tensor]:
        """The gradients of all parts that have one."""
        return [g for g in (p.gradient() for p in self.parts) if g is not None]

    def state(self) -> dict[str, Any]:
        """Everything but the weights that the next step depends on."""
        return {"optimizer": self.optimizer.state_dict(), "noise": self.noise.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.noise.set_state(state["noise"])


def in_regime(model: PreTrainedModel, spec: OptimSpec) -> PreTrainedModel:
    """The model with its weights rounded to the dtype in which they are kept, in the dtype in which
    it computes.
    """
    in_dtype(model, storage_dtype(spec.weights))
    return model.float() if spec.compute == "fp32" else model


def storage_dtype(weights: str) -> torch.dtype:
    """The dtype in which a regime keeps its weights."""
    return torch.float32 if weights == "fp32" else torch.bfloat16


def everything(model: PreTrainedModel, which: str) -> list[Part]:
    """All parameters, or the matrices that a quantizer would touch, as parts that may move."""
    chosen = (
        [m.parameter for m in matrices(model)] if which == "matrices" else list(model.parameters())
    )
    return [Part(parameter) for parameter in chosen]


def _release(model: nn.Module, parts: list[Part]) -> None:
    """Gradients for the parameters that parts belong to, and for no others."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for part in parts:
        part.parameter.requires_grad_(True)


def rate(spec: OptimSpec, step: int) -> float:
    """Learning rate of a step: linear warm-up, then constant or a cosine down to zero."""
    if step < spec.warmup:
        return spec.lr * (step + 1) / spec.warmup
    if spec.schedule == "constant":
        return spec.lr
    progress = (step - spec.warmup) / max(1, spec.steps - spec.warmup)
    return spec.lr * 0.5 * (1 + math.cos(math.pi * progress))


def fit(
    model: PreTrainedModel,
    spec: OptimSpec,
    loss_at: Callable[[int], tuple[Tensor, dict[str, float]]],
    folder: Path,
    report: Report,
    after_step: Callable[
        [int, dict[str, float], dict[str, Any]], bool
    ] = lambda step, parts, memory: False,
    moving: list[Part] | None = None,
    renew: Renewal | None = None,
    on_gradients: Callable[[], None] = lambda: None,
) -> tuple[int, dict[str, Any]]:
    """Run the steps, resuming from ``folder`` where an earlier call was cut off.

    Args:
        model: trained in place, in the dtype of ``spec.weights``.
        spec: the optimiser's settings.
        loss_at: micro-step -> (scalar loss, its parts for the log).
        folder: receives steps.jsonl, and resume.pt, from which a call that follows goes on; also
            behind the last step, so that a model that could not be saved costs no steps. Whoever
            seals the folder leaves it out.
        report: called with (steps done, steps in all, note).
        after_step: called with the step, its parts and a JSON-like memory that is kept across
            resumption; True stops.
        moving: the parts that may move; by default what ``spec.train_only`` says.
        renew: how and how often the moving parts are chosen again. Such a run resumes from its last
            choice.
        on_gradients: called before every step, when all gradients are there.

    Returns:
        Steps done and the memory.

    Raises:
        UserError: the loss or a gradient is not finite; the weights keep their last finite values
            in resume.pt.
        Interrupted: Ctrl-C; the state is saved.
    """
    parts_that_move = everything(model, spec.train_only) if moving is None else moving
    _release(model, parts_that_move)
    stepper = Stepper(parts_that_move, spec)
    resume, log = folder / "resume.pt", folder / "steps.jsonl"
    own = _fingerprint(model, spec)
    step, memory, stopped = _load(resume, log, model, stepper, own)
    begun, saved = step, time.monotonic()

    def keep() -> None:
        if renew is None:
            _save(resume, log, own, model, stepper, step, memory, stopped)

    try:
        while step < spec.steps and not stopped:
            if renew is not None and step and step % renew.every == 0:
                _save(resume, log, own, model, None, step, memory, stopped)
                chosen = renew.choose()
                _release(model, chosen)
                stepper = Stepper(chosen, spec)
            parts = _gradients(spec, loss_at, step)
            on_gradients()
            if not _finite(parts, stepper):
                keep()
                raise _not_finite(parts, step)
            stepper.step(rate(spec, step))
            step += 1
            _append(
                log,
                {"step": step, "lr": rate(spec, step - 1), **parts}
                | ({"lost": stepper.lost} if spec.count_lost else {}),
            )
            stopped = after_step(step, parts, memory)
            report(step, spec.steps, " ".join(f"{k} {v:.3f}" for k, v in parts.items()))
            if time.monotonic() - saved > SAVE_SECONDS:
                keep()
                saved = time.monotonic()
    except KeyboardInterrupt as error:
        keep()
        raise Interrupted(
            f"Interrupted at step {step} of {spec.steps}.", "The same command goes on from there."
        ) from error
    if step > begun or not resume.is_file():
        _save(resume, log, own, model, None, step, memory, stopped)
    return step, memory


def _gradients(
    spec: OptimSpec, loss_at: Callable[[int], tuple[Tensor, dict[str, float]]], step: int
) -> dict[str, float]:
    sums: dict[str, float] = {}
    for micro in range(spec.accumulate):
        loss, parts = loss_at(step * spec.accumulate + micro)
        (loss / spec.accumulate).backward()
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value / spec.accumulate
    return sums


def _finite(parts: dict[str, float], stepper: Stepper) -> bool:
    return all(math.isfinite(v) for v in parts.values()) and all(
        bool(g.isfinite().all()) for g in stepper.gradients()
    )


def _not_finite(parts: dict[str, float], step: int) -> UserError:
    shown = ", ".join(f"{k} {v:.4g}" for k, v in parts.items())
    return UserError(
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


def _lines(log: Path, most: int) -> bytes:
    """The first lines of the step log."""
    return b"".join(log.read_bytes().splitlines(keepends=True)[:most]) if log.is_file() else b""


def _fingerprint(model: nn.Module, spec: OptimSpec) -> str:
    """What steps belong to: the settings and the weights before the first one (sums of their bytes,
    the same in any order).
    """
    sums = [
        (name, int(p.detach().reshape(-1).view(torch.uint8).sum(dtype=torch.int64)))
        for name, p in model.named_parameters()
    ]
    return digest_of([spec.model_dump(mode="json"), sums])


def _save(
    resume: Path,
    log: Path,
    own: str,
    model: nn.Module,
    stepper: Stepper | None,
    step: int,
    memory: dict[str, Any],
    stopped: bool,
) -> None:
    """Write everything that the next step depends on; without a stepper it starts afresh."""
    told = hashlib.sha256(_lines(log, step)).hexdigest()
    state = {
        "model": model.state_dict(),
        "step": step,
        "memory": memory,
        "stopped": stopped,
        "log": told,
        "of": own,
    }
    kept.save(state | (stepper.state() if stepper else {}), resume)


def _load(
    resume: Path, log: Path, model: nn.Module, stepper: Stepper, own: str
) -> tuple[int, dict[str, Any], bool]:
    """What was saved, the log cut back to it.

    The beginning where nothing was, or what is there is damaged or another run's.
    """
    state = kept.load(resume)
    lines = _lines(log, state["step"]) if state else b""
    if state and state["of"] != own:
        state = None
    if state and hashlib.sha256(lines).hexdigest() != state["log"]:
        tell(f"{log} is damaged; the steps are done again.")
        state = None
    if state is None:
        for path in (resume, log):
            path.unlink(missing_ok=True)
        return 0, {}, False
    model.load_state_dict(state["model"])
    if "optimizer" in state:
        stepper.restore(state)
    log.write_bytes(lines)
    return state["step"], state["memory"], state["stopped"]
