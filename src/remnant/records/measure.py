"""What is measured of a model, and the rows that come of it."""

from typing import Annotated, Any, Literal

from pydantic import Field

from remnant.records.base import Dtype, Half, OwnRole, Positive, Record, circumstance
from remnant.secrecy import Address

CheckName = Literal[
    "loaded whole",
    "weights",
    "logits",
    "ids",
    "special tokens",
    "end tokens",
    "texts",
    "answers",
    "server",
]


class MetricSpec(Record):
    """One metric of the user's: a function and the set of items it is measured on.

    ``role``: what it counts as in a verdict, where each item must be a share, 0 to 1, high where
    the model knows the text of the items; nothing by default.
    """

    use: str
    on: str = "verbmem"
    role: OwnRole | None = None
    params: dict[str, Any] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """What its rows are called: the function alone."""
        return self.use.rsplit(":", 1)[-1]


class EndpointSpec(Record):
    """A server that speaks OpenAI's completions protocol, for a model that cannot be opened.

    ``url`` ends before /completions; user, password and query are used, not kept. ``again``: raise
    it to ask anew. A key is taken from REMNANT_API_KEY. A request ends after ``timeout`` s,
    whatever arrives; one answer takes at most attempts x (timeout + 30) s.
    """

    url: Address
    model: str = "default"
    again: Annotated[int, Field(ge=0)] = 0
    concurrency: Annotated[int, Field(gt=0, le=256)] = circumstance(4)
    attempts: Annotated[int, Field(gt=0, le=100)] = circumstance(6)
    timeout: Annotated[float, Field(gt=0, le=86400)] = circumstance(120.0)


class MeasureSpec(Record):
    """Which metrics (or groups of them) are measured on which half of the items.

    By default all that a verdict rests on.

    ``samples`` at ``temperature`` are drawn for metrics that read several answers. ``ability``:
    tasks of lm-evaluation-harness, by the name that it knows them by (from the hub), or of a folder
    of its task files (``ability_tasks``), or "choice", which is made of the corpus and needs no
    network. ``form``: in which questions are asked (``corpus.forms``); by default the one in
    which the target knows most. ``system``: what a conversation is told first. ``engine``: who
    computes; transformers by default, or vLLM. ``dtype``: in which weights are held and passes
    computed ("stored": that of the files), float32 where none is said; sums of losses are taken in
    float32 in any. ``batch_tokens``: padded tokens per batch; without it by the free memory.
    """

    metrics: tuple[str, ...] = ("muse", "tests")
    extra: tuple[MetricSpec, ...] = ()
    half: Half = "all"
    decoding: Literal["greedy", "paper-code"] = "greedy"
    seed: int = 0
    samples: Positive = 4
    temperature: Annotated[float, Field(gt=0)] = 0.8
    form: str = "best"
    system: str = ""
    endpoint: EndpointSpec | None = None
    dtype: Dtype = None
    engine: Literal["vllm"] | None = None
    ability: tuple[str, ...] = ()
    ability_tasks: str | None = None
    batch_tokens: Positive | None = circumstance(None)


class Row(Record):
    """One item of one metric.

    ``value`` is None where ``status`` is not "ok"; ``half`` is its half of the items.
    """

    metric: str
    split: str = ""
    id: str
    half: Literal["dev", "test"]
    value: float | None
    status: str = "ok"


class Check(Record):
    """One check of a measurement.

    ``said``: what was found, one sentence, with the remedy where it failed. ``metrics``: the
    metrics that a failure concerns; none means all. ``count`` of ``total``: how often it was found,
    where that can be counted (texts cut, answers empty).
    """

    name: CheckName
    ok: bool
    said: str
    metrics: tuple[str, ...] = ()
    count: int = 0
    total: int = 0


class MeasureResult(Record):
    """What a measurement came to, beside its rows.

    ``absent``: metric -> why it was not measured. ``signs``: of collapse, as
    ``functional.text.Signs`` defines them; None where nothing was written. ``form``: in which
    questions were asked.
    """

    absent: dict[str, str]
    rows: int
    signs: dict[str, float] | None
    half: Half
    decoding: str
    form: str
    checks: tuple[Check, ...]
