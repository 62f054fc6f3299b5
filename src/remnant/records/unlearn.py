"""What is unlearned, by which loss terms, and which weights may move."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from remnant.records.base import Positive, Record, Share
from remnant.records.train import OptimSpec


class TermSpec(Record):
    """One loss term of a method: the function, its weight in the sum and its own parameters."""

    use: str
    weight: float = 1.0
    params: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "params" in data:
            return data
        own = {"use", "weight"}
        return {k: v for k, v in data.items() if k in own} | {
            "params": {k: v for k, v in data.items() if k not in own}
        }


class SureSpec(Record):
    """SURE: only the units most salient for the forget text move.

    Source: arXiv 2410.16454, eqs. 4-6.

    ``renew_every``: choose again every so many steps, with a fresh optimiser; without it once, at
    the target, as in the paper. ``variant``: the released code, for comparison only. "paper-code"
    counts the forget gradient twice and never applies its mask; "paper-code-masked" also sets the
    gradient of the less salient rows of each batch to zero, which momentum and weight decay ignore.
    """

    percentile: Annotated[float, Field(ge=0, le=100)] = 90.0
    unit: Literal["module", "layer", "row", "weight"] = "module"
    scaled: bool = False
    also: tuple[Literal["lm_head", "embedding", "norm"], ...] = ()
    renew_every: Positive | None = None
    variant: Literal["paper-code", "paper-code-masked"] | None = None

    @model_validator(mode="after")
    def _variant_alone(self) -> "SureSpec":
        if self.variant and (self.renew_every or self.unit != "module" or self.scaled or self.also):
            raise ValueError(
                f"the variant {self.variant} chooses rows for every batch; give it a "
                "percentile only"
            )
        return self


class UnlearnSpec(OptimSpec):
    """One unlearning run: a method (or own terms), when to stop, what to keep.

    ``retain``: splits that retain terms read (retain1).
    """

    method: str | None = None
    terms: tuple[TermSpec, ...] = ()
    alpha: Annotated[float, Field(ge=0)] = 1.0
    beta: Annotated[float, Field(gt=0)] | None = None
    sure: SureSpec | None = None
    retain: tuple[Literal["retain1", "retain2"], ...] | None = None
    max_tokens: Positive = 2048
    pack_tokens: Positive | None = None
    probe_every: Positive = 5
    select: Literal["best", "last"] = "best"
    utility_floor: Share = 0.95
    stop_forget: Share = 0.0
    stop_utility: Share = 0.5
    stop_forget_loss: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _method_or_terms(self) -> "UnlearnSpec":
        if bool(self.method) == bool(self.terms):
            raise ValueError("give either a method or a list of terms")
        return self


class Probed(Record):
    """A look at a model while it unlearns: shares of right greedy tokens on the development half.

    ``forget``: low is forgotten. ``retain``: high is useful. Both 0 to 1.
    """

    step: int
    forget: float
    retain: float


class SureResult(Record):
    """Which units move. ``percentile`` of the units' saliencies is the ``threshold``.

    ``most_salient``: names and saliencies, the largest first; none where units are single weights.
    """

    unit: str
    percentile: float
    units: int
    moving_units: int
    moving_weights: int
    share_of_weights: float
    most_salient: tuple[tuple[str, float], ...] = ()


class UnlearnResult(Record):
    """What unlearning came to.

    ``kept_step``: the step whose weights are kept. ``chosen``: its probe; None where nothing was
    probed. ``share_changed``: of the
    numbers in the weights, by a sample, 0 to 1. ``ended``: how it went, in a sentence.
    ``lost_updates``: share of the updates that rounding lost; None where they were not counted.
    ``rule``: how the checkpoint was chosen.
    """

    steps: int
    stopped: str
    kept_step: int
    chosen: Probed | None
    share_changed: float
    ended: str
    rule: str
    probes: tuple[Probed, ...]
    lost_updates: float | None = None
    sure: SureResult | None = None
