"""Records of a judgement: what comes back, what still tells forget text apart, and the verdict. No torch."""

from typing import Literal

from remnant.records import Record

Outcome = Literal["stayed forgotten", "not said", "came back", "not forgotten", "collapsed", "unclear"]
Says = Literal["silent", "tells", "undecided", "no power", "not measured", "lost"]
Shares = tuple[float, float, float]


class Recovery(Record):
    """How much of one kind of knowledge one quantizer brings back. Shares, not x100; None where undefined (see ``status``)."""

    model: str
    quantizer: str
    metric: str
    retained: Shares | None
    retained_of_full_target: Shares | None
    recovery: Shares | None
    recovery_over_retrain: Shares | None
    status: str


class Evidence(Record):
    """What one test that is stronger than plain asking says of one model under one quantizer.

    ``kind``: given beginning, samples, probability per token, membership or answers. ``left``: value and simultaneous interval on the way
    from the model that never read the text (0) to the target (1); None where the test was not measured or has no power. ``said``: the same
    in words, or what is missing. ``items``: how many it was measured on. ``would_decide``: how many might, where it is undecided.
    "lost": it was measured, but not rightly in all models; "not measured": in none.
    """

    model: str
    quantizer: str
    kind: str
    test: str
    says: Says
    left: Shares | None
    said: str
    items: int = 0
    would_decide: int | None = None


class Verdict(Record):
    """The judgement on one unlearned model under one quantizer, in one word and one sentence.

    "not said": plain asking finds nothing and a stronger test still tells; ``reason`` names it. Only "stayed forgotten" is a pass.
    """

    model: str
    quantizer: str
    outcome: Outcome
    reason: str
