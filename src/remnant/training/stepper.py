"""One step of the optimiser in one of three regimes of weights, moving parts of parameters."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from remnant.errors import UserError
from remnant.functional.survival import FEW
from remnant.functional.weights import movable, stochastic_round
from remnant.model.heap import give_back
from remnant.model.load import in_dtype, open_model
from remnant.model.spread import open_spread
from remnant.ranks import Rows, average, count, local, rows_of, told, total
from remnant.records import OptimSpec, SignSpec, Weights, ZerothSpec, packs
from remnant.trainable.parts import Part
from remnant.trainable.trainable import Trainable
from remnant.training.moments import adamw, narrow, widen

# From so many numbers on float32 is stepped by torch's fused kernel: a fifth of the time, but
# other last bits. Results of smaller models, the laboratory's, were made by the plain one and stay.
FUSED_FROM = 1 << 22
# A part of so many numbers, whose copies take 32 MB each and are the peak of a step, is not stepped
# beside the holes that smaller ones have left.
LARGE = 1 << 23


@dataclass
class Stepper:
    """Moves parts of parameters by AdamW in one of three regimes, one part after the other; by
    plain descent, along the gradient or its sign, where ``spec.update`` says so.

    Everything else stays as it is, bit for bit.

    ``fp32``: weights and state are float32. ``bf16``: weights and state are bfloat16, as in the
    paper's code; updates below half a unit in the last place are lost.
    ``bf16-stochastic-rounding``: stored in bfloat16, each step taken in float32 from the stored
    values and rounded stochastically.

    A part that is not a whole parameter, and every part that is stepped in another dtype than its
    parameter has, is moved as a copy and written back, so that neither optimiser state nor any
    update exists outside the parts, and no more than one copy at a time. With ``compute = fp32``
    the parameters are float32 tensors that hold bfloat16 values: the forward pass is exact,
    gradients are rounded, and the step is the same. ``weights``: the regime, where it is not the
    spec's.

    Of parameters in shards every rank moves what it holds; the state is that of one process.
    Moments may be kept in less than float32 (``training.moments``).
    """

    parts: list[Part]
    spec: OptimSpec
    weights: Weights | None = None
    optimizers: list[torch.optim.Optimizer] = field(init=False)
    noise: torch.Generator = field(init=False)
    lost: float = field(init=False, default=0.0)
    _rows: list[Rows] = field(init=False)

    def __post_init__(self) -> None:
        self._rows = rows_of([p.read() for p in self.parts]) if self._sharded else []
        size = self._total(sum(p.size() for p in self.parts))
        fused = self._dtype == torch.float32 and size >= FUSED_FROM
        self.optimizers = [self._optimizer(part, fused) for part in self.parts]
        where = self.parts[0].parameter.device
        self.noise = torch.Generator(device=where).manual_seed(self.spec.seed)

    def _optimizer(self, part: Part, fused: bool) -> torch.optim.Optimizer:
        """The optimiser of one part, so that it can be stepped while no other is copied."""
        empty = torch.empty(0, dtype=self._dtype, device=part.parameter.device)
        apart = self._copied(part) or self._sharded
        moved = nn.Parameter(empty) if apart else part.parameter
        if isinstance(self.spec.update, SignSpec | ZerothSpec):
            # Without momentum its weight decay is AdamW's: w - lr (g + decay w).
            return torch.optim.SGD([moved], lr=self.spec.lr, weight_decay=self.spec.weight_decay)
        return adamw(moved, self.spec, fused)

    @property
    def _sharded(self) -> bool:
        """Whether the ranks hold different rows of what moves."""
        parameter = self.parts[0].parameter
        return local(parameter) is not parameter

    def _total(self, value: float) -> float:
        """A number over all that moves from that of this rank."""
        return total(value) if self._sharded else value

    @property
    def _regime(self) -> Weights:
        return self.weights or self.spec.weights

    @property
    def _stochastic(self) -> bool:
        return self._regime == "bf16-stochastic-rounding"

    def _copied(self, part: Part) -> bool:
        rounded = self._stochastic or part.parameter.dtype != self._dtype
        return rounded or self.spec.count_lost or part.index is not None

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype in which steps are taken."""
        return torch.bfloat16 if self._regime == "bf16" else torch.float32

    def step(self, lr: float) -> None:
        """Apply the gathered gradients and clear them."""
        shrink = self._shrink()
        stayed = due = 0
        for place, (part, optimizer) in enumerate(zip(self.parts, self.optimizers, strict=True)):
            gradient = self._gradient(part)
            if gradient is None:
                continue
            if shrink is not None:
                gradient.mul_(shrink)
            if isinstance(self.spec.update, SignSpec):
                gradient = gradient.sign()
            if self.spec.moments == "bf16":
                widen(optimizer)
            own = self._step(part, optimizer, lr, gradient)
            if self.spec.moments == "bf16":
                narrow(optimizer, partial(self._rounded, place=place))
            if not self._copied(part):
                continue
            stepped = self._rounded(own, place) if self._stochastic else own
            if self.spec.count_lost:
                wanted = gradient != 0
                due += int(wanted.sum())
                stayed += int((wanted & (stepped == part.read())).sum())
            part.write(stepped)
        due, stayed = (int(self._total(n)) for n in (due, stayed))
        self.lost = stayed / due if due else 0.0
        for part in self.parts:
            part.parameter.grad = None

    def _gradient(self, part: Part) -> Tensor | None:
        """The gradient of a part in the dtype of the step; None where there is none."""
        found = part.gradient()
        if found is None:
            return None
        if part.size() >= LARGE:
            give_back()
        return found.to(self._dtype)

    def _step(
        self, part: Part, optimizer: torch.optim.Optimizer, lr: float, gradient: Tensor
    ) -> Tensor:
        """The values of a part behind its step: its own, or a copy's."""
        (group,) = optimizer.param_groups
        group["lr"] = lr
        (moved,) = group["params"]
        if not self._copied(part) and not self._sharded:
            part.parameter.grad = gradient
            optimizer.step()
            return part.parameter.data
        moved.data = part.read().to(self._dtype, copy=self._copied(part))
        moved.grad = gradient
        optimizer.step()
        values: Tensor = moved.data
        moved.data, moved.grad = values.new_empty(0), None
        return values

    def _rounded(self, values: Tensor, place: int) -> Tensor:
        """The values of one part in bfloat16; random bits are drawn for all ranks' rows."""
        if not self._sharded:
            return stochastic_round(values, self.noise)
        rows = self._rows[place]
        return stochastic_round(values, self.noise, (rows.all, rows.here))

    def _shrink(self) -> Tensor | None:
        """What the gradients are multiplied by, so that their common norm is at most ``clip``: as
        torch's ``clip_grad_norm_``, with one part in the dtype of the step at a time.
        """
        if self.spec.clip is None:
            return None
        norms = [torch.linalg.vector_norm(g.to(self._dtype)) for g in self.gradients()]
        if not norms:
            return None
        norm = torch.linalg.vector_norm(torch.stack(norms))
        if self._sharded:
            norm = norm.new_tensor(total(float(norm) ** 2) ** 0.5)
        return torch.clamp(self.spec.clip / (norm + 1e-6), max=1.0)

    def gather(self) -> None:
        """Make the gradients those of all ranks' texts; those of shards are so already."""
        if count() > 1 and not self._sharded:
            average(self.gradients())

    def gradients(self) -> Iterator[Tensor]:
        """The gradients of all parts that have one."""
        return (g for p in self.parts if (g := p.gradient()) is not None)

    def state(self) -> dict[str, object]:
        """Everything but the weights that the next step depends on, of shards this rank's rows."""
        return {
            "optimizer": [optimizer.state_dict() for optimizer in self.optimizers],
            "noise": self.noise.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``: whole, and the first rank's where there are several."""
        given = state.get("optimizer") or [None] * len(self.parts)
        for place, (optimizer, whole) in enumerate(zip(self.optimizers, given, strict=True)):
            self._load(optimizer, self._here(told(whole), place))
        self.noise.set_state(told(state.get("noise", self.noise.get_state())))

    def take(self, state: dict[str, Any], read: Callable[[str, slice], Tensor]) -> None:
        """The inverse of ``state`` where the moments are read apart, None standing for each.

        Args:
            state: the same on all ranks.
            read: gives some rows of a ``moment``.
        """
        for place, (optimizer, given) in enumerate(
            zip(self.optimizers, state["optimizer"], strict=True)
        ):
            known = given["state"].get(0, {})
            values = {
                name: read(moment(place, name), self._here_of(place)) if value is None else value
                for name, value in known.items()
            }
            self._load(optimizer, given | {"state": {0: values} if values else {}})
        self.noise.set_state(state["noise"])

    def _load(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        optimizer.load_state_dict(state)
        if self.spec.moments == "bf16":
            # torch makes them as wide as the weights; they are numbers of bfloat16 still.
            narrow(optimizer, Tensor.bfloat16)

    def _here_of(self, place: int) -> slice:
        """Which rows of a part this rank moves, among those of all ranks."""
        return self._rows[place].here if self._sharded else slice(None)

    def _here(self, whole: Any, place: int) -> dict[str, Any]:
        """What this rank holds of the state of one part's optimiser."""
        found: dict[str, Any] = whole
        if not self._sharded or not found["state"]:
            return found
        here = self._here_of(place)
        cut = {n: v[here] if v.ndim else v for n, v in found["state"][0].items()}
        return found | {"state": {0: cut}}


def moment(place: int, name: str) -> str:
    """What a moment of a part is called where it is kept apart.

    >>> moment(3, "exp_avg")
    'moments.3.exp_avg'
    """
    return f"moments.{place}.{name}"


def opened(source: str, device: str, spec: OptimSpec) -> tuple[PreTrainedModel, Callable[[], None]]:
    """A model to be trained, divided among the ranks, in the regime of the spec.

    Returns:
        The model, and what makes it a plain one on the first rank (``ranks.spread``).

    Raises:
        UserError: as ``open_spread``; packed layers on several ranks.
    """
    dtype = storage_dtype(spec.weights)
    if packs(spec.train):
        if count() > 1:
            raise UserError("Packed layers are not divided.", "Leave base out, or devices.")
        return open_model(source, device, dtype=dtype, pack=True), lambda: None
    model, collect = open_spread(source, device, dtype)
    return in_regime(model, spec), collect


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
    moved = sum(int(movable(v, rate).sum()) for v in values)
    return total(moved) / total(sum(v.numel() for v in values))


def warning_of_rate(moving: Trainable, spec: OptimSpec, share: float) -> str:
    """What to say before the first step where the rate moves too little; "" where it does not.

    >>> warning_of_rate(Trainable(*[None] * 5), OptimSpec(), 1.0)
    ''
    """
    # How far a step along a random direction goes is not told by its rate.
    if share >= FEW or isinstance(spec.update, ZerothSpec):
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
