"""What makes an unlearning run last under grids of fewer bits, and what is certified of it."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from remnant.records.base import Record, Share
from remnant.records.trainable import ByLoraSpec, packs, saves_apart


def _by_names(value: Any) -> Any:
    """Names alone, as a list or with commas between them, stand for the record of them."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    return {"use": value} if isinstance(value, list | tuple) else value


# Grids by their short names: "int4-g128", "nf4".
Names = Annotated[tuple[str, ...], Field(min_length=1)]


class GridsSpec(Record):
    """Grids whose roundings of the weights are trained on, beside the weights themselves.

    At every step one of ``use`` is drawn by the run's seed. ``by``: "straight" looks at the rounded
    weights, "noise" at weights moved at random within the cell of the grid that they lie in.
    """

    use: Names
    by: Literal["straight", "noise"] = "straight"


class PromiseSpec(Record):
    """Grids under which the codes of what is edited must differ from the target's.

    ``most``: of the weights that a quantizer touches, the largest share that may be edited.
    """

    use: Names
    most: Annotated[Share, Field(gt=0)] = 0.05


Grids = Annotated[GridsSpec, BeforeValidator(_by_names)]
Promise = Annotated[PromiseSpec, BeforeValidator(_by_names)]


def fault_of_lasting(train: Any, grids: Any, promise: Any) -> str | None:
    """Why a way of training does not go with grids or a promise; None where it does."""
    if grids and isinstance(train, ByLoraSpec):
        return "grids round the model's own weights, which adapters do not move; leave one out"
    if promise and saves_apart(train):
        return 'a promise is about the weights of a model; merge the adapter (save = "merged")'
    if promise and packs(train):
        return (
            "a promise moves the target's own weights, and packed ones are others; leave base out"
        )
    return None


def fault_of_perturbed(train: Any, promise: Any, forget_loss: float | None) -> str | None:
    """Why a start from weights that are shrunk and perturbed does not go with a run; None where it
    does.
    """
    if forget_loss is not None:
        return "a perturbed model begins above every forget loss; leave stop_forget_loss out"
    if promise:
        return (
            "a promise gives most weights back to the target, from which shrink_perturb takes "
            "them; leave one out"
        )
    if not isinstance(train, str | tuple):
        return (
            "shrink_perturb moves whole weights, and this run parts of them or an adapter; set "
            'train to "matrices" or "all"'
        )
    return None


class Kept(Record):
    """What was checked of one promised grid, by rounding target and result again.

    ``differ``: edited weights whose code is another than the target's. ``elsewhere``: other weights
    whose code is (0 where the target is kept in the dtype of the run). ``forget_loss``: of the
    result rounded to this grid, in nats per token. ``library``: who else rounded it, "" where
    nobody could; ``differ_by_library``: the same number by that.
    """

    format: str
    differ: int
    elsewhere: int
    forget_loss: float
    library: str = ""
    differ_by_library: int | None = None


class Certificate(Record):
    """What is certified of an edit. It says which codes differ, not that anything was forgotten.

    ``edited``: weights that differ from the target's, of ``weights`` that a quantizer touches.
    ``budget``: the rule by which they were chosen. ``level``: the forget loss that the run had
    reached, in nats per token. ``forget_loss``: of the result in full precision. ``reached``:
    whether it and all roundings have the level.
    """

    claim: str
    budget: str
    weights: int
    edited: int
    share: float
    level: float
    forget_loss: float
    reached: bool
    formats: tuple[Kept, ...]
