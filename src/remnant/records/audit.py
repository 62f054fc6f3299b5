"""The rule of the verdict, who is judged, and what a audit consists of."""

from collections import Counter
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, model_validator

from remnant.metrics import Access
from remnant.records.base import Dtype, OwnRole, Positive, Record, Share
from remnant.records.variant import Variant

Outcome = Literal["gone", "hidden", "came back", "known", "broken", "unclear", "not measured"]
Says = Literal["silent", "tells", "undecided", "no power", "not measured", "lost", "not run"]
# What is said of a test that was left out because the verdict was decided before it.
NOT_RUN: Says = "not run"
Shares = tuple[float, float, float]


class Rule(Record):
    """The rule of the verdict, fixed before the run.

    Shares are of the way from a model that never read the text to the target.

    ``utility_floor``: least share of the target's utility. ``max_retained``: most knowledge that
    plain asking may find. ``max_recovery``: most that a form may bring back. ``max_told``: most
    that a stronger test may tell. ``min_gap``: points (of 100) between target and unread model
    below which a number says nothing. ``access``: "text" where only what a model writes is seen, so
    that no test of probabilities or membership is asked for, and the verdict says so; "weights"
    where weights are changed and the model is asked again. ``dtype``: in which all models are
    measured, as a measurement's.
    ``min_items``: fewest items, ``max_unscorable``: largest share of them without a number.
    ``word_for_word``: ROUGE from which one text counts as written out. ``stop``: tests on weights
    are made kind by kind, the cheap ones first, until every verdict is decided; only *gone* needs
    all of them.
    """

    access: Access = "probabilities"
    dtype: Dtype = None
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
    stop: Annotated[bool | None, AfterValidator(lambda stop: stop or None)] = None

    @model_validator(mode="after")
    def _something_to_stop(self) -> "Rule":
        if self.stop and self.access != "weights":
            raise ValueError(
                "stop is about the tests on weights, all else is asked at once; "
                "leave it out, or set access to weights"
            )
        return self

    @property
    def least(self) -> float:
        """``min_gap`` as a share, 0 to 1: what a target shows less of says nothing."""
        return self.min_gap / 100

    def told(self) -> dict[str, JsonValue]:
        """As it stands in summaries and statements: without what is not set."""
        return self.model_dump(mode="json", exclude_none=True)


class AuditSpec(Record):
    """The rule, who is who among the measured models, and what the user's metrics count as.

    ``not_run``: under a rule that stops, the tests on weights that were not made.
    """

    rule: Rule = Rule()
    members: dict[str, Variant]
    roles: dict[str, OwnRole] = Field(default_factory=dict)
    not_run: tuple[str, ...] | None = None


class Cell(Variant):
    """One number of a summary: a metric of one variant of a model, x100, with a 95 % bootstrap
    interval.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    status: str


def status_of(scored: bool, lost: Counter[str] | None) -> str:
    """What a cell says of its items: whether any was scorable, how many were not, and the commonest
    reason.
    """
    count, reason = (lost.total(), f" ({lost.most_common(1)[0][0]})") if lost else (0, "")
    if not scored:
        return f"no scorable item{reason}"
    return f"ok, {count} unscorable{reason}" if count else "ok"


class Recovery(Variant):
    """How much of one kind of knowledge one form brings back.

    Shares, not x100; None where undefined (see ``status``).
    """

    metric: str
    retained: Shares | None
    retained_of_full_target: Shares | None
    recovery: Shares | None
    recovery_over_retrain: Shares | None
    status: str


class Evidence(Variant):
    """What one test that is stronger than plain asking says of one variant of a model.

    ``kind``: given beginning, samples, probability per token, membership, answers, or a kind of
    test on weights. ``left``:
    value and 95 % interval on the way from the model that never read the text (0) to the
    target (1); None where the test was not measured or has no power. ``said``: the same in words,
    or what is missing. ``items``: how many it was measured on. ``would_decide``: how many might,
    where it is undecided. "lost": it was measured, but not rightly in all models; "not measured":
    in none; "not run": left out, as the verdict was decided before.
    """

    kind: str
    test: str
    says: Says
    left: Shares | None
    said: str
    items: int = 0
    would_decide: int | None = None


class Verdict(Variant):
    """The audit on one unlearned model in one form, in one word and one sentence.

    "gone": no test tells it from a model that never read the text, with all intervals below their
    limits; only this is a pass. "hidden": plain asking finds nothing and a stronger test still
    tells; ``reason`` names it. "known": plain asking finds it in full precision. "came back": only
    in this form. "broken": too little utility is left for anything to be said. "not measured": a
    number, a test or a check of the instrument is missing, or it has no power. "unclear": all is
    measured and an interval lies across its limit; ``reason`` says how many items would decide.
    """

    outcome: Outcome
    reason: str


class AuditResult(Record):
    """What a audit came to: the retrain model's raw AUC, and how often each outcome."""

    auc_retrain: float | None
    outcomes: dict[Outcome, int]
