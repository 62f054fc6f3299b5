"""What all records are made of: unknown keys are refused, values never change, and every record has
an identity.

A field marked ``circumstance`` says how a result is computed, not what it is, and does not enter
the identity of an artefact.
"""

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from remnant.secrecy import without_secrets

Stage = Literal[
    "prepare",
    "train",
    "unlearn",
    "merge",
    "dequantize",
    "transform",
    "elicit",
    "measure",
    "explain",
    "attack",
    "audit",
    "deploy",
]
OwnHalf = Literal["dev", "test"]
Half = Literal["all", "dev", "test"]
# What a metric of the user's may count as in a verdict.
OwnRole = Literal["knowledge", "utility", "test"]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def none_for_fp32(value: str | None) -> str | None:
    """The default as None, so that who writes it out gets the same artefact."""
    return None if value == "fp32" else value


# In which dtype a model is opened to be asked: None stands for float32 and leaves the identity of
# what was measured before as it is; "stored" for the dtype of its files.
Dtype = Annotated[Literal["fp32", "stored", "bf16"] | None, AfterValidator(none_for_fp32)]

T = TypeVar("T")


def circumstance(default: T) -> T:
    """A field that does not enter the identity of an artefact."""
    return Field(default=default, json_schema_extra={"circumstance": True})


class Record(BaseModel):
    """Base of all records: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def identity(self) -> dict[str, JsonValue]:
        """The fields that decide what the result is, ready for hashing.

        None is left out, so that an optional field that is added later leaves the keys of what was
        made before as they are.
        """
        dropped = {
            n
            for n, f in type(self).model_fields.items()
            if isinstance(f.json_schema_extra, dict) and f.json_schema_extra
        }
        return without_secrets(self.model_dump(mode="json", exclude=dropped, exclude_none=True))
