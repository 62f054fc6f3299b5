"""What is promised of a model: the forms it is deployed in, the limits, and the tests that must
have been able to tell. No torch.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from remnant.errors import UserError, some
from remnant.flow.sweepfile import read_toml
from remnant.methods import chain
from remnant.metrics import KINDS_BY, NEEDED_KINDS, WEIGHT_KINDS, Access, Kind
from remnant.parsing import parse
from remnant.records import Record, Rule, Variant
from remnant.records.variant import PACKED
from remnant.stages.evidence import ANSWERS

ASKED_PACKED = f" {PACKED}"
# Which way a limit is stricter: 1 where more is asked, -1 where less is allowed.
STRICTER: Mapping[str, int] = {
    "utility_floor": 1, "max_retained": -1, "max_recovery": -1, "max_told": -1, "min_items": 1,
    "max_unscorable": -1, "word_for_word": -1, "resamples": 1,
}  # fmt: skip
# Neither way is stricter: a small gap lets more tests count, and lets chance count for one.
EQUAL = ("min_gap", "dtype")
# Limits that no model is beyond, not even the target itself or one that is destroyed.
NO_LIMIT: Mapping[str, float] = {
    "utility_floor": 0, "max_retained": 1, "max_recovery": 1, "max_told": 1, "max_unscorable": 1,
}  # fmt: skip
# What makes no pass easier: an audit that stops before the last test never says "gone".
NEITHER = ("access", "seed", "stop")


class Policy(Record):
    """What is promised of a model.

    ``forms``: what it is deployed in, as an audit names them ("full", "int4", "prune20+int4",
    "bnb-nf4 packed"); each must be gone. ``rule``: the limits, and what is seen of the models
    (``access``). ``tests``: kinds of tests that must have power in each form, beside those that
    the access always asks for. ``corpus``: the prepared corpus that must have been asked about, by
    its name in the store (prepare-...) or its digest; without one, any will do.
    """

    forms: Annotated[tuple[str, ...], Field(min_length=1)]
    rule: Rule = Rule()
    tests: tuple[Kind | Literal["answers"], ...] = ()
    corpus: Annotated[str, Field(pattern=r"^(prepare-)?[0-9a-f]{16,64}$")] | None = None

    @field_validator("forms")
    @classmethod
    def _known(cls, forms: tuple[str, ...]) -> tuple[str, ...]:
        faults = list(filter(None, map(_fault, forms)))
        if faults:
            raise ValueError("; ".join(faults))
        return tuple(dict.fromkeys(map(form_of, forms)))

    @model_validator(mode="after")
    def _seen(self) -> "Policy":
        seen = KINDS_BY[self.rule.access]
        needed = (*NEEDED_KINDS, *WEIGHT_KINDS)
        if blind := [k for k in self.tests if k in needed and k not in seen]:
            raise ValueError(
                f"tests: {', '.join(blind)} cannot be made where access is {self.rule.access}"
            )
        return self

    @model_validator(mode="after")
    def _asking(self) -> "Policy":
        if idle := [f"{n} = {v:g}" for n, v in NO_LIMIT.items() if getattr(self.rule, n) == v]:
            raise ValueError(f"rule: {', '.join(idle)} is no limit: every model keeps it")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """The kinds of tests of which one at least must be able to tell."""
        return tuple(dict.fromkeys([*KINDS_BY[self.rule.access], ANSWERS, *self.tests]))


def other_corpora(policy: Policy, asked: Iterable[str]) -> str:
    """Why some corpora, by their digests, are not the one that a policy names; empty where they
    are, or it names none.

    >>> other_corpora(Policy(forms=("full",), corpus="prepare-" + 16 * "a"), [64 * "a"])
    ''
    """
    key = (policy.corpus or "").removeprefix("prepare-")
    other = sorted(d[:16] or "what is not there" for d in asked if not d.startswith(key))
    if not other:
        return ""
    return f"The audit asked about {some(other)}, and the policy names {policy.corpus}."


def form_of(name: str) -> str:
    """A form as tables show it.

    Raises:
        UserError: no format or transform has this name.

    >>> form_of("full"), form_of("prune20+int4"), form_of("bnb-nf4 packed")
    ('full', 'prune20+int4', 'bnb-nf4 packed')
    """
    steps = chain(name.removesuffix(ASKED_PACKED)).names
    return Variant(steps=steps, packed=name.endswith(ASKED_PACKED)).form


def _fault(name: str) -> str:
    try:
        form_of(name)
    except UserError as error:
        return str(error)
    return ""


def read_policy(path: Path) -> Policy:
    """A policy file.

    Raises:
        UserError: there is none, or it has faults; all in one message.
    """
    data = read_toml(path, "policy", "docs/gate.md shows one.")
    return parse(Policy, data, str(path))


def weaker(made: Rule, wanted: Rule) -> list[str]:
    """Where the rule of an audit asks for less than a policy does, in words.

    >>> weaker(Rule(max_told=0.3), Rule())
    ['max_told is 0.3, and the policy asks for 0.2']
    """
    found = [n for n, way in STRICTER.items() if way * (getattr(made, n) - getattr(wanted, n)) < 0]
    found += [n for n in EQUAL if getattr(made, n) != getattr(wanted, n)]
    levels = get_args(Access)
    if levels.index(made.access) < levels.index(wanted.access):
        found.append("access")
    return [
        f"{n} is {made.told().get(n, 'not set')}, and the policy asks for "
        f"{wanted.told().get(n, 'none')}"
        for n in found
    ]
