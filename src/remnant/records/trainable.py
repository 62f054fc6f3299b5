"""What may move in a model while it is trained: one field, so that two answers cannot be given."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from remnant.errors import unknown
from remnant.records.base import Positive, Record

_RANGE = re.compile(r"(\d+)-(\d+)")
WORDS = ("all", "matrices")
WAYS = ("sure", "lora")


def _pattern(text: str) -> str:
    if not text or not all(text.split(".")):
        raise ValueError(f"'{text}' has an empty part between its dots")
    for part in text.split("."):
        found = _RANGE.fullmatch(part)
        if found and int(found[1]) > int(found[2]):
            raise ValueError(f"the range {part} in '{text}' runs backwards")
    return text


# Parts of a weight's name with globs and ranges: "layers.5-7.mlp.down_proj" (functional/patterns).
Pattern = Annotated[str, AfterValidator(_pattern)]


class SureSpec(Record):
    """SURE: only the units most salient for the forget text move.

    Source: arXiv 2410.16454, eqs. 4-6.

    ``renew_every``: choose again every so many steps, with a fresh optimiser; without it once, at
    the target, as in the paper. ``random``: a control, other units in the place of the salient
    ones, drawn by the run's seed, as many of every size.
    """

    percentile: Annotated[float, Field(ge=0, le=100)] = 90.0
    unit: Literal["module", "layer", "row", "weight"] = "module"
    scaled: bool = False
    also: tuple[Literal["lm_head", "embedding", "norm"], ...] = ()
    renew_every: Positive | None = None
    random: bool | None = None

    @model_validator(mode="after")
    def _once(self) -> "SureSpec":
        if self.random and self.renew_every:
            raise ValueError("random units are drawn once; leave renew_every out")
        return self


class BySureSpec(Record):
    """The units that SURE chooses."""

    sure: SureSpec


class LoraSpec(Record):
    """Adapters of low rank beside the frozen weights, which are merged at the end or saved alone.

    Source: arXiv 2106.09685, section 4.1: W + alpha / rank * B A. ``targets``: patterns of linear
    layers; all of them (but for the output head) where none is given. ``dropout``: of the adapters'
    inputs. ``base``: the model's linear layers but for the output head are packed while they stand
    still, so that they take an eighth of float32; what is merged is merged into decoded weights.
    Source of that: QLoRA (arXiv 2305.14314), without its second quantization.
    """

    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    targets: tuple[Pattern, ...] = ()
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    save: Literal["merged", "adapter"] = "merged"
    base: Literal["nf4"] | None = None


class ByLoraSpec(Record):
    """Adapters, and no weight of the model's own."""

    lora: LoraSpec


def _one_way(value: Any) -> Any:
    """What was written, if it is one of the ways."""
    if isinstance(value, str) and value not in WORDS:
        raise ValueError(
            f"'{value}' is neither {' nor '.join(map(repr, WORDS))}; layers stand in a list: "
            f'train = ["{value}"]'
        )
    if isinstance(value, list | tuple) and not value:
        raise ValueError("the list of layers is empty, so nothing would move")
    if not isinstance(value, dict):
        return value
    if surplus := [name for name in value if name not in WAYS]:
        raise ValueError(str(unknown("way to train", str(surplus[0]), WAYS)))
    if len(value) > 1:
        raise ValueError(
            "SURE and LoRA exclude each other: the one moves the model's own weights, the other "
            "none of them; keep one"
        )
    if not value:
        raise ValueError(f"write one of {{{' = ...}, {'.join(WAYS)} = ...}}")
    return value


def _way(value: Any) -> str | None:
    """The tag of what was written; parts of a place that end in Spec are not shown to users."""
    if isinstance(value, str):
        return "WordSpec"
    if isinstance(value, list | tuple):
        return "LayersSpec"
    ways = value if isinstance(value, dict) else getattr(type(value), "model_fields", ())
    return next((f"By{way.title()}Spec" for way in WAYS if way in ways), None)


# "all": every weight; "matrices": those that a quantizer touches; a list: layers by pattern.
Trains = Annotated[
    Annotated[Literal["all", "matrices"], Tag("WordSpec")]
    | Annotated[tuple[Pattern, ...], Tag("LayersSpec")]
    | Annotated[BySureSpec, Tag("BySureSpec")]
    | Annotated[ByLoraSpec, Tag("ByLoraSpec")],
    Discriminator(
        _way,
        custom_error_type="what_trains",
        custom_error_message='Write "all", "matrices", a list of layers or a table',
    ),
    BeforeValidator(_one_way),
]


def fault_of_weights(train: Any, weights: str) -> str | None:
    """Why a way of training does not go with a regime of weights; None where it does."""
    if isinstance(train, ByLoraSpec) and weights == "bf16-stochastic-rounding":
        return "adapters are stepped in float32; keep the weights in fp32 or bf16"
    return None


def fault_of_base(train: Any, compute: str | None) -> str | None:
    """Why packed layers do not go with a run; None where they do."""
    if packs(train) and compute:
        return "packed layers compute in the dtype of weights; leave compute out"
    return None


def fault_of_training(train: Any, base: str | None) -> str | None:
    """Why a model cannot be trained so where nothing is forgotten; None where it can."""
    if isinstance(train, BySureSpec):
        return "SURE chooses by the forget loss, which only unlearning has"
    if isinstance(train, ByLoraSpec) and not base:
        return "adapters stand beside a trained model; name it as base"
    return "train saves whole models; leave save out" if saves_apart(train) else None


def patterns_in(train: Any) -> tuple[str, ...]:
    """The patterns of layers that a way of training names."""
    if isinstance(train, ByLoraSpec):
        return train.lora.targets
    return train if isinstance(train, tuple) else ()


def packs(train: Any) -> bool:
    """Whether the model's linear layers are packed while adapters are trained."""
    return isinstance(train, ByLoraSpec) and train.lora.base is not None


def saves_apart(train: Any) -> bool:
    """Whether a run leaves an adapter instead of a model."""
    return isinstance(train, ByLoraSpec) and train.lora.save == "adapter"


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


class LayersResult(Record):
    """How many weights the patterns name."""

    weights: int


class LoraResult(Record):
    """How many layers have adapters, how many numbers these hold together, and how the model's own
    linear layers were packed meanwhile, if they were.
    """

    layers: int
    parameters: int
    base: str | None = None


# What was chosen to move, where there was a choice.
Chosen = SureResult | LayersResult | LoraResult
