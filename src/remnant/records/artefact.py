"""What a run leaves behind, beside the files themselves."""

from typing import Any, TypeVar

from pydantic import Field

from remnant.records.base import Record, Stage
from remnant.records.variant import Variant

SCHEMA = 1
Result = TypeVar("Result", bound=Record)


class FileRecord(Record):
    """One file of an artefact."""

    sha256: str
    bytes: int


class Manifest(Record):
    """What an artefact is, what it was made from (``inputs`` for people, ``sources`` by digest) and
    how; ``summary``: the result of its stage as JSON; ``remote_code``: the inputs whose own code
    was run; ``kept``: False of a copy that only other pieces read, whose weights are not there or
    may go; ``seal``: sha256 of the rest.
    """

    schema_version: int = SCHEMA
    key: str
    digest: str
    stage: Stage
    stage_version: int
    spec: dict[str, Any]
    inputs: dict[str, str]
    sources: dict[str, str] = Field(default_factory=dict)
    methods: dict[str, str]
    remote_code: tuple[str, ...] = ()
    kept: bool = True
    files: dict[str, FileRecord]
    summary: dict[str, Any]
    seconds: float
    created: str
    command: str
    packages: dict[str, str]
    commit: str | None
    dirty: bool | None
    device: str
    peak_memory_mb: float
    seal: str = ""

    def of(self, kind: type[Result]) -> Result:
        """What the stage returned, as the record that it returned."""
        return kind.model_validate(self.summary)


class Piece(Record):
    """One piece of work of a run, as its name is kept: enough to find its artefact and to say what
    it is.
    """

    name: str
    stage: Stage
    label: Variant = Variant()
