"""One step of AdamW in one of three regimes of weights, moving parts of parameters."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from remnant.functional.survival import FEW
from remnant.functional.weights import movable, stochastic_round
from remnant.model.load import in_dtype
from remnant.records import OptimSpec, Weights
from remnant.trainable.parts import Part
from remnant.trainable.trainable import Trainable


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
    same. ``weights``: the regime, where it is not the spec's.
    """

    parts: list[Part]
    spec: OptimSpec
    weights: Weights | None = None
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
    def _regime(self) -> Weights:
        return self.weights or self.spec.weights

    @property
    def _stochastic(self) -> bool:
        return self._regime == "bf16-stochastic-rounding"

    def _copied(self, part: Part) -> bool:
        return self.spec.count_lost or part.index is not None or part.parameter.dtype != self._dtype

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype in which steps are taken."""
        return torch.bfloat16 if self._regime == "bf16" else torch.float32

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
        return [g for p in self.parts if (g := p.gradient()) is not None]

    def state(self) -> dict[str, object]:
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


def movable_share(moving: Trainable, spec: OptimSpec, rate: float) -> float:
    """The share of what may move that a step of about the rate moves in its dtype, 0 to 1.

    All of it, unless the weights are kept in plain bfloat16.
    """
    if (moving.weights or spec.weights) != "bf16":
        return 1.0
    values = [part.read() for part in moving.parts]
    return sum(int(movable(v, rate).sum()) for v in values) / sum(v.numel() for v in values)


def warning_of_rate(moving: Trainable, spec: OptimSpec, share: float) -> str:
    """What to say before the first step where the rate moves too little; "" where it does not.

    >>> warning_of_rate(Trainable(*[None] * 5), OptimSpec(), 1.0)
    ''
    """
    if share >= FEW:
        return ""
    enough = spec.lr
    while movable_share(moving, spec, enough) < FEW:
        enough *= 2
    return (
        f"A step of {spec.lr:g} moves {share:.1%} of these weights in bfloat16: little may be "
        "forgotten, and 4-bit quantization may undo it (docs/why.md). Keep the weights in float32 "
        f"or round stochastically (--weights), or raise the rate to about {enough:g}."
    )


def storage_dtype(weights: str) -> torch.dtype:
    """The dtype in which a regime keeps its weights."""
    return torch.float32 if weights == "fp32" else torch.bfloat16
