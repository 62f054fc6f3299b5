"""What is unlearned, by which loss terms, and when it stops."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from remnant.records.base import Positive, Record, Share, circumstance
from remnant.records.lasting import (
    Certificate,
    Grids,
    Promise,
    fault_of_lasting,
    fault_of_perturbed,
)
from remnant.records.train import OptimSpec
from remnant.records.trainable import Chosen, LoraResult
from remnant.records.update import fault_of_grids

# Of a look beside the weights: what less than this share of it loses in rounding is as asked for.
LOST_LITTLE = 0.05
BESIDE_PACKED = (
    " Adapters were trained beside the target in {base}: merged ones stand in decoded weights, and "
    "beside the target's own they were not tried."
)
LOST_LOOK = (
    "Of what weights were moved by to look beside them {lost:.0%} was lost in rounding; compute in "
    "float32 (compute = fp32) to look where it was asked for."
)


class TermSpec(Record):
    """One loss term of a method: the function, its weight in the sum and its own parameters.

    ``reads``: paths of readings for some of its parameters ("policy.forget.hidden[7]"), where
    their names do not say what is meant.
    """

    use: str
    weight: float = 1.0
    reads: dict[str, str] = Field(default_factory=dict)
    params: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "params" in data:
            return data
        own = {"use", "weight", "reads"}
        return {k: v for k, v in data.items() if k in own} | {
            "params": {k: v for k, v in data.items() if k not in own}
        }


class DualSpec(Record):
    """How retain losses are held under a bound: the target's own plus ``margin`` (in the unit of
    the loss). From ``warmup`` steps on, a term's weight rises by ``size`` times what its loss is
    above the bound, and falls below it, down to 0.
    """

    margin: Annotated[float, Field(ge=0)] = 0.3
    size: Annotated[float, Field(gt=0)] = 5.0
    warmup: Annotated[int, Field(ge=0)] = 0


class UnlearnSpec(OptimSpec):
    """One unlearning run: a method (or own terms), when to stop, what to keep.

    ``params``: settings of a named method by name, each for every term that has it; ``beta`` is
    the one of NPO. ``retain``: splits that retain terms read (retain1).

    ``examples``: what is trained on, the documents of the corpus or its questions with their
    answers. ``loss_on``: all tokens of an example, or those of the answer alone. ``alternatives``:
    a file of other answers to the forget questions, for terms that read them. ``token_weights``: a
    file that says how much each token of the forget text counts, in every term that sums tokens.
    ``reinforced``: the target trained once more on the forget text, for terms that read it.

    ``form``: of asking (``corpus.forms``), in which questions are trained on and probed; by default
    the one in which the target knows most, or in a sweep the one that its measurements name.
    ``system``: what a conversation is told first.

    ``dual``: the retain terms are held under bounds, and alpha is what their weights begin with;
    the method ``pdu`` always is. ``robust``: of the forget terms not the mean over the batch, but
    one that leans to the texts that are forgotten least (a temperature, in the unit of the loss).

    ``grids``: every step takes the mean of its loss at the weights and at their rounding to one of
    these, retain terms too. ``promise``: at the end the update is moved into few weights, whose
    codes then differ from the target's under all of these, with a certificate (docs/lasting.md).
    ``shrink_perturb``: before the first step the weights that move are shrunk by this share, with
    noise in its place (UNDO, docs/lasting.md); no rule stops such a run. ``reference_gb``: what the
    target says of the texts is kept in memory up to so many GB, the rest in files that are mapped.
    ``batch_tokens``: in the place of ``batch_size``, texts are taken in order while rows times the
    longest of them stay within so many tokens; every text of a step counts alike.
    """

    method: str | None = None
    terms: tuple[TermSpec, ...] = ()
    alpha: Annotated[float, Field(ge=0)] = 1.0
    beta: Annotated[float, Field(gt=0)] | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    examples: Literal["documents", "questions"] = "documents"
    loss_on: Literal["all", "answer"] = "all"
    alternatives: str | None = None
    token_weights: str | None = None
    reinforced: str | None = None
    form: str = "best"
    system: str = ""
    retain: tuple[Literal["retain1", "retain2"], ...] | None = None
    max_tokens: Positive = 2048
    pack_tokens: Positive | None = None
    batch_tokens: Positive | None = None
    probe_every: Positive = 5
    select: Literal["best", "last"] = "best"
    utility_floor: Share = 0.95
    stop_forget: Share = 0.0
    stop_utility: Share = 0.5
    stop_forget_loss: Annotated[float, Field(gt=0)] | None = None
    dual: DualSpec | None = None
    robust: Annotated[float, Field(gt=0)] | None = None
    grids: Grids | None = None
    promise: Promise | None = None
    shrink_perturb: Annotated[float, Field(gt=0, le=1)] | None = None
    reference_gb: Annotated[float, Field(ge=0)] = circumstance(8.0)

    @model_validator(mode="before")
    @classmethod
    def _dual_of_pdu(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("method") == "pdu" and data.get("dual") is None:
            return data | {"dual": {}}
        return data

    @model_validator(mode="after")
    def _whole_batches(self) -> "UnlearnSpec":
        if self.robust is not None and self.accumulate > 1:
            raise ValueError(
                "robust weighs the texts of a batch against each other, which parts of a batch "
                "cannot; leave accumulate at 1 and raise batch_size"
            )
        return self

    @model_validator(mode="after")
    def _by_texts_or_tokens(self) -> "UnlearnSpec":
        usual = type(self).model_fields["batch_size"].default
        if self.batch_tokens and self.batch_size != usual:
            raise ValueError("batches are by texts or by tokens; leave out one of batch_*")
        if self.batch_tokens and self.alternatives:
            raise ValueError("alternatives stand beside a fixed number of texts; set batch_size")
        return self

    @model_validator(mode="after")
    def _lasting(self) -> "UnlearnSpec":
        if fault := fault_of_lasting(self.train, self.grids, self.promise):
            raise ValueError(fault)
        if fault := fault_of_grids(self.update, self.grids):
            raise ValueError(fault)
        if self.shrink_perturb is not None and (
            fault := fault_of_perturbed(self.train, self.promise, self.stop_forget_loss)
        ):
            raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _method_or_terms(self) -> "UnlearnSpec":
        if bool(self.method) == bool(self.terms):
            raise ValueError("give either a method or a list of terms")
        if self.terms and (self.params or self.beta is not None):
            raise ValueError("own terms carry their settings themselves; leave out beta and params")
        if "beta" in self.params and self.beta is not None:
            raise ValueError("beta is given twice, by itself and among params")
        return self

    @model_validator(mode="after")
    def _documents_or_questions(self) -> "UnlearnSpec":
        if self.examples == "documents" and (self.loss_on == "answer" or self.alternatives):
            what = "alternatives" if self.alternatives else 'loss_on = "answer"'
            raise ValueError(f'documents have no answers; {what} needs examples = "questions"')
        if self.token_weights and self.pack_tokens:
            raise ValueError("token_weights are of texts by themselves; leave pack_tokens out")
        if self.examples == "questions" and (self.pack_tokens or self.retain):
            what = "pack_tokens" if self.pack_tokens else "retain"
            raise ValueError(f'{what} is about documents; leave it out, or examples = "questions"')
        return self


class Probed(Record):
    """A look at a model while it unlearns: shares of right greedy tokens on the development half.

    ``forget``: low is forgotten. ``retain``: high is useful. Both 0 to 1.
    """

    step: int
    forget: float
    retain: float


class UnlearnResult(Record):
    """What unlearning came to.

    ``kept_step``: the step whose weights are kept. ``chosen``: its probe; None where nothing was
    probed. ``share_changed``: of the numbers in the weights, by a sample, 0 to 1; of an adapter
    beside packed weights that of its own. ``ended``: how it went, in a sentence.
    ``lost_updates``: share of the updates that rounding lost; None where they were not counted.
    ``movable``: share of what may move that a step of about the rate moves in its dtype, 0 to 1.
    ``rule``: how the checkpoint was chosen. ``moving``: which weights were chosen to move, where
    there was a choice. ``form``: in which questions were trained on and probed. ``certificate``:
    of the promised grids, if there were any. ``lost_perturbation``: of the numbers by which weights
    were moved to look at the loss elsewhere, the share that rounding lost; None where none were.
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
    moving: Chosen | None = None
    movable: float = 1.0
    form: str = "published"
    certificate: Certificate | None = None
    lost_perturbation: float | None = None

    @property
    def said(self) -> str:
        """How it went, in some sentences."""
        asked = f" Questions were asked in the form {self.form}."
        certified = f" {self.certificate.claim}" if self.certificate else ""
        lost = self.lost_perturbation
        unseen = f" {LOST_LOOK.format(lost=lost)}" if lost and lost > LOST_LITTLE else ""
        base = self.moving.base if isinstance(self.moving, LoraResult) else None
        packed = BESIDE_PACKED.format(base=base.upper()) if base else ""
        return (
            f"Stopped after step {self.steps}: {self.stopped}. Kept step {self.kept_step}. "
            f"{self.ended}{'' if self.form == 'published' else asked}{certified}{unseen}{packed}"
        )
