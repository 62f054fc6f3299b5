"""Records that cross a stage or touch the disk: what a user may write (specs) and what a run leaves behind.

A field marked ``circumstance`` says how a result is computed, not what it is, and does not enter the identity of an artefact.
"""

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from remnant.names import Name
from remnant.secrecy import Address, without_secrets

SCHEMA = 1
Weights = Literal["fp32", "bf16", "bf16-stochastic-rounding"]
Stage = Literal["prepare", "train", "unlearn", "perturb", "measure", "explain", "judge", "deploy"]
Half = Literal["all", "dev", "test"]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def circumstance(default: Any) -> Any:
    """A field that does not enter the identity of an artefact."""
    return Field(default=default, json_schema_extra={"circumstance": True})


class Record(BaseModel):
    """Base of all records: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def identity(self) -> dict[str, Any]:
        """The fields that decide what the result is, ready for hashing.

        None is left out, so that an optional field that is added later leaves the keys of what was made before as they are.
        """
        dropped = {n for n, f in type(self).model_fields.items() if isinstance(f.json_schema_extra, dict) and f.json_schema_extra}
        return dict(without_secrets(self.model_dump(mode="json", exclude=dropped, exclude_none=True)))


class PrepareSpec(Record):
    """A corpus in MUSE's layout: from the lab, from the user's texts, from a MUSE or TOFU folder or from a hub data set.

    ``tofu_retain``: at most so many of TOFU's retain questions, those that utility is measured on first.
    """

    lab: Literal["news", "books"] | None = None
    forget: tuple[str, ...] = circumstance(())
    retain: tuple[str, ...] = circumstance(())
    holdout: tuple[str, ...] = circumstance(())
    folder: str | None = circumstance(None)
    tofu: str | None = circumstance(None)
    tofu_split: Literal["forget01", "forget05", "forget10"] = "forget10"
    tofu_retain: Positive | None = None
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

    @model_validator(mode="after")
    def _one_source(self) -> "PrepareSpec":
        sources = [bool(self.lab), bool(self.forget), bool(self.folder), bool(self.tofu), bool(self.hub)]
        if sum(sources) != 1:
            raise ValueError("give exactly one source: lab, forget (with retain), folder, tofu or hub")
        if self.forget and not self.retain:
            raise ValueError("forget text needs retain text beside it")
        return self


class OptimSpec(Record):
    """How weights are moved: the same fields for training and unlearning."""

    steps: Positive = 100
    batch_size: Positive = 8
    accumulate: Positive = 1
    lr: Annotated[float, Field(gt=0)] = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    clip: Annotated[float, Field(gt=0)] | None = None
    weights: Weights = "fp32"
    compute: Literal["fp32"] | None = None
    count_lost: bool = False
    train_only: Literal["all", "matrices"] = "all"
    seed: int = 0


class TrainSpec(OptimSpec):
    """A model from scratch (or from ``base``) on some splits of a corpus, in blocks of packed documents."""

    steps: Positive = 600
    batch_size: Positive = 6
    lr: Annotated[float, Field(gt=0)] = 6e-3
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 30
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    splits: tuple[Literal["forget", "retain1", "retain2"], ...] = ("forget", "retain1", "retain2")
    block_tokens: Positive = 384
    base: str | None = None
    architecture: str = "llama"
    hidden: Positive = 128
    layers: Positive = 4
    heads: Positive = 4
    kv_heads: Positive = 4
    intermediate: Positive = 384
    context: Positive = 512
    init_std: Annotated[float, Field(gt=0)] | None = None


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
        return {k: v for k, v in data.items() if k in own} | {"params": {k: v for k, v in data.items() if k not in own}}


class SureSpec(Record):
    """SURE: only the units most salient for the forget text move. Source: arXiv 2410.16454, eqs. 4-6.

    ``renew_every``: choose again every so many steps, with a fresh optimiser; without it once, at the target, as in the paper.
    ``variant``: the released code, for comparison only. "paper-code" counts the forget gradient twice and never applies its mask;
    "paper-code-masked" also sets the gradient of the less salient rows of each batch to zero, which momentum and weight decay ignore.
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
            raise ValueError(f"the variant {self.variant} chooses rows for every batch; give it a percentile only")
        return self


class UnlearnSpec(OptimSpec):
    """One unlearning run: a method (or own terms), when to stop, what to keep. ``retain``: splits that retain terms read (retain1)."""

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


class PerturbSpec(Record):
    """One quantization of a model to a dense copy with recorded codes."""

    use: str
    params: dict[str, Any] = Field(default_factory=dict)
    skip: tuple[str, ...] = ("lm_head", "embedding", "norm", "router", "conv", "state", "bias")
    source_dtype: Literal["float32", "bfloat16"] = "float32"
    calibration_samples: Positive = 32
    calibration_tokens: Positive = 256
    seed: int = 0


class ExplainSpec(Record):
    """What a quantizer left of an update: nothing to choose."""


class MetricSpec(Record):
    """One metric of the user's: a function and the set of items it is measured on."""

    use: str
    on: str = "verbmem"
    params: dict[str, Any] = Field(default_factory=dict)


class EndpointSpec(Record):
    """A server that speaks OpenAI's completions protocol, for a model that cannot be opened.

    ``url`` ends before /completions; user, password and query are used, not kept. ``again``: raise it to ask anew. A key is taken from
    REMNANT_API_KEY. A request ends after ``timeout`` s, whatever arrives; one answer takes at most attempts x (timeout + 30) s.
    """

    url: Address
    model: str = "default"
    again: Annotated[int, Field(ge=0)] = 0
    concurrency: Annotated[int, Field(gt=0, le=256)] = circumstance(4)
    attempts: Annotated[int, Field(gt=0, le=100)] = circumstance(6)
    timeout: Annotated[float, Field(gt=0, le=86400)] = circumstance(120.0)


class MeasureSpec(Record):
    """Which metrics (or groups of them) are measured on which half of the items; by default all that a verdict rests on.

    ``samples`` at ``temperature`` are drawn for metrics that read several answers. ``ability``: tasks of lm-evaluation-harness, by the name
    that it knows them by (from the hub), or of a folder of its task files (``ability_tasks``), or "choice", which is made of the corpus and
    needs no network. ``engine``: who computes; transformers by default, or vLLM. ``batch_tokens``: padded tokens per batch; without it
    by the free memory.
    """

    metrics: tuple[str, ...] = ("muse", "tests")
    extra: tuple[MetricSpec, ...] = ()
    half: Half = "all"
    decoding: Literal["greedy", "paper-code"] = "greedy"
    seed: int = 0
    samples: Positive = 4
    temperature: Annotated[float, Field(gt=0)] = 0.8
    endpoint: EndpointSpec | None = None
    engine: Literal["vllm"] | None = None
    ability: tuple[str, ...] = ()
    ability_tasks: str | None = None
    batch_tokens: Positive | None = circumstance(None)


class Rule(Record):
    """The rule of the verdict, fixed before the run. Shares are of the way from a model that never read the text to the target.

    ``utility_floor``: least share of the target's utility. ``max_retained``: most knowledge that plain asking may find.
    ``max_recovery``: most that a form may bring back. ``max_told``: most that a stronger test may tell. ``min_gap``: points (of 100)
    between target and unread model below which a number says nothing. ``min_items``: fewest items, ``max_unscorable``: largest share of
    them without a number. ``word_for_word``: ROUGE from which one text counts as written out.
    """

    utility_floor: Share = 0.8
    max_retained: Share = 0.35
    max_recovery: Share = 0.2
    max_told: Share = 0.2
    min_gap: Annotated[float, Field(ge=0)] = 5.0
    min_items: Positive = 10
    max_unscorable: Share = 0.2
    word_for_word: Share = 0.9
    resamples: Positive = 2000
    seed: int = 0


class CastMember(Record):
    """What a measured model is, for the judge and the report."""

    corpus: str
    model: str
    method: str | None
    weights: str | None
    quantizer: str
    seed: int | None


class JudgeSpec(Record):
    """The rule, and who is who among the measured models."""

    rule: Rule = Rule()
    cast: dict[str, CastMember]


class RunSpec(UnlearnSpec):
    """An unlearning run inside a sweep, with the name that the report shows."""

    name: Name | None = None


class CorpusSpec(PrepareSpec):
    """A corpus inside a sweep, with the name that the report shows."""

    name: Name | None = None


class SweepSpec(Record):
    """Corpora x seeds x models x quantizers, measured and judged. Of ``packed`` formats the runtime's own kernels are measured too."""

    name: Name
    title: str = ""
    seeds: tuple[int, ...] = (0,)
    corpus: tuple[CorpusSpec, ...]
    train: TrainSpec = TrainSpec()
    target: str | None = None
    retrain: str | None = None
    unlearn: tuple[RunSpec, ...]
    quantizers: tuple[str | PerturbSpec, ...] = ("int8", "int4", "nf4")
    packed: tuple[str, ...] = ()
    perturb: dict[str, Any] = Field(default_factory=dict)
    measure: MeasureSpec = MeasureSpec()
    judge: Rule = Rule()
    study: bool = False


class FileRecord(Record):
    """One file of an artefact."""

    sha256: str
    bytes: int


class Manifest(Record):
    """What an artefact is, what it was made from (``inputs`` for people, ``sources`` by digest) and how; ``seal``: sha256 of the rest."""

    schema_version: int = SCHEMA
    key: str
    digest: str
    stage: Stage
    stage_version: int
    spec: dict[str, Any]
    inputs: dict[str, str]
    sources: dict[str, str] = {}
    methods: dict[str, str]
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


class Piece(Record):
    """One piece of work of a run, as its name is kept: enough to find its artefact and to say what it is."""

    name: str
    stage: Stage
    label: dict[str, Any]


class Row(Record):
    """One item of one metric. ``value`` is None where ``status`` is not "ok"; ``half`` is its half of the items."""

    metric: str
    split: str = ""
    id: str
    half: Literal["dev", "test"]
    value: float | None
    status: str = "ok"


class Cell(Record):
    """One number of a summary: a metric of one model under one quantizer, x100, with a 95 % bootstrap interval."""

    model: str
    method: str | None
    weights: str | None
    quantizer: str
    metric: str
    seed: int | None
    value: float | None
    low: float | None
    high: float | None
    n: int
    status: str
    corpus: str | None = None


def status_of(scored: bool, lost: Counter[str] | None) -> str:
    """What a cell says of its items: whether any was scorable, how many were not, and the commonest reason."""
    count, reason = (lost.total(), f" ({lost.most_common(1)[0][0]})") if lost else (0, "")
    if not scored:
        return f"no scorable item{reason}"
    return f"ok, {count} unscorable{reason}" if count else "ok"
