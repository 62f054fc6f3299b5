"""How a step is made of the loss, where it is not AdamW along its gradient."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from remnant.records.base import Record


class SamSpec(Record):
    """Sharpness-aware: the gradient is taken ``radius`` up the loss, of all that moves together.

    Unlearning looks up the forget terms alone; the other terms stay at the weights themselves.
    """

    use: Literal["sam"] = "sam"
    radius: Annotated[float, Field(gt=0)] = 0.01


class SignSpec(Record):
    """Every weight moves by the rate itself, in the direction of the gradient's sign."""

    use: Literal["sign"] = "sign"


class ZerothSpec(Record):
    """Plain descent along one random direction a step, by the loss at two points, ``spread`` times
    the direction to either side. Nothing is sent back.
    """

    use: Literal["zeroth"] = "zeroth"
    spread: Annotated[float, Field(gt=0)] = 1e-3


class RectifiedSpec(Record):
    """The forget terms' gradient without what goes against that of the retain terms."""

    use: Literal["rectified"] = "rectified"


_RECORDS = {"sam": SamSpec, "sign": SignSpec, "zeroth": ZerothSpec, "rectified": RectifiedSpec}


def _by_name(value: Any) -> Any:
    return {"use": value} if isinstance(value, str) else value


def _kind(value: Any) -> str | None:
    """The tag of what was written; parts of a place that end in Spec are not shown to users."""
    use = value.get("use") if isinstance(value, dict) else getattr(value, "use", None)
    return _RECORDS[use].__name__ if isinstance(use, str) and use in _RECORDS else None


Update = Annotated[
    Annotated[SamSpec, Tag("SamSpec")]
    | Annotated[SignSpec, Tag("SignSpec")]
    | Annotated[ZerothSpec, Tag("ZerothSpec")]
    | Annotated[RectifiedSpec, Tag("RectifiedSpec")],
    Discriminator(
        _kind,
        custom_error_type="what_update",
        custom_error_message=f"Write one of {', '.join(_RECORDS)}; none of them is AdamW",
    ),
    BeforeValidator(_by_name),
]


def fault_of_update(update: Any, clip: float | None, beta2: bool) -> str | None:
    """Why a way of stepping does not go with clipping, or with a beta2 that was set; None where it
    does.
    """
    if isinstance(update, SignSpec) and clip is not None:
        return "a step by the sign is as large whatever the gradient's norm is; leave clip out"
    if isinstance(update, SignSpec | ZerothSpec) and beta2:
        return f"update = {update.use} keeps no moments; leave beta2 out"
    return None


def fault_of_grids(update: Any, grids: Any) -> str | None:
    """Why a way of stepping does not go with training on grids; None where it does."""
    if grids and isinstance(update, SamSpec | ZerothSpec):
        return (
            f"grids and update = {update.use} both look at other weights than the model's, one of "
            "them rounded; leave one out"
        )
    return None
