"""What a corpus is made of."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from remnant.records.base import Positive, Record, Share, circumstance


def _pairs(written: Any) -> Any:
    """A mapping from "name=field,name=field"; anything else as it is."""
    if not isinstance(written, str):
        return written
    parts = [part.partition("=") for part in written.split(",")]
    if not all(name.strip() and field.strip() for name, _, field in parts):
        raise ValueError('write it as "question=FIELD,answer=FIELD"')
    found = {name.strip(): field.strip() for name, _, field in parts}
    if len(found) < len(parts):
        raise ValueError("one of its names stands there twice")
    return found


Columns = Annotated[dict[str, str], BeforeValidator(_pairs)]


# Texts of the lab have 90 to 200 tokens, where MUSE's cuts take more than a thousand.
LAB_LENGTHS = {"prompt_tokens": 128, "answer_tokens": 64, "text_tokens": 256}


class PrepareSpec(Record):
    """A corpus in MUSE's layout: from the lab, from the user's texts, from the download of a
    benchmark in a folder, or from MUSE's data sets on the hub.

    ``benchmark``: what lies in the folder, with its own ``options``. ``columns``: the names of
    fields in the user's files by what they are to be read as, also as "question=Q,answer=A".
    """

    lab: Literal["news", "books"] | None = None
    forget: tuple[str, ...] = circumstance(())
    retain: tuple[str, ...] = circumstance(())
    holdout: tuple[str, ...] = circumstance(())
    columns: Columns | None = None
    folder: str | None = circumstance(None)
    benchmark: str = "muse"
    options: dict[str, Any] = Field(default_factory=dict)
    hub: str | None = None
    revision: str | None = None
    seed: int = 0
    forget_docs: Positive = 30
    retain_docs: Positive = 40
    holdout_docs: Positive = 48
    holdout_share: Share = 0.0
    drop_overlap: bool = False
    max_items: Positive = 100
    tokenizer: str | None = None
    vocab_size: Annotated[int, Field(ge=260)] = 1024
    prompt_tokens: Positive = 1024
    answer_tokens: Positive = 128
    cuts_per_text: Positive = 1
    text_tokens: Positive = 2048

    @model_validator(mode="before")
    @classmethod
    def _lengths_of_the_lab(cls, given: Any) -> Any:
        """Its texts are short; what is not said fits them."""
        lab = isinstance(given, dict) and given.get("lab")
        return LAB_LENGTHS | given if lab else given

    @field_validator("forget", "retain", "holdout", mode="before")
    @classmethod
    def _one_file(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _one_source(self) -> "PrepareSpec":
        alone = [bool(self.lab), bool(self.folder), bool(self.hub)]
        beside = bool(self.forget) and not self.folder
        if sum(alone) + beside != 1:
            raise ValueError("give exactly one source: lab, forget (with retain), folder or hub")
        if self.forget and not self.retain:
            raise ValueError("forget text needs retain text beside it")
        if self.columns and not self.forget:
            raise ValueError("columns name fields of forget and retain files, and none are given")
        return self


class PrepareResult(Record):
    """The card of a corpus, kept as its corpus.json too.

    ``counts``: texts or questions by file. ``absent``: what it lacks, and why. ``repeated``: texts
    that say what another one says. ``skipped``: side -> file -> why it was not read. ``shapes``:
    side -> file -> of what shapes its entries were, with what fields.
    """

    source: str
    answer_tokens: Positive
    counts: dict[str, int]
    overlapping_texts: dict[str, int]
    absent: dict[str, str]
    repeated: dict[str, int]
    skipped: dict[str, dict[str, str]]
    notes: tuple[str, ...]
    shapes: dict[str, dict[str, str]] = Field(default_factory=dict)
