"""What methods read, as values: which text, said by which model, and what of it. No torch."""

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, get_args

from remnant.errors import UserError, unknown

Who = Literal["policy", "reference", "reinforced"]
What = Literal["view", "logp", "hidden", "norm"]


class Side(NamedTuple):
    """One kind of training text.

    ``split``: the part of the corpus that it is made from, or whose questions it answers
    otherwise. ``paired_with``: the side beside whose examples its own stand in every batch.
    """

    split: Literal["forget", "retain"]
    paired_with: str | None = None


SIDES: Mapping[str, Side] = {
    "forget": Side("forget"),
    "retain": Side("retain"),
    "alternative": Side("forget", paired_with="forget"),
    "retain_alternative": Side("retain", paired_with="retain"),
}


def leader(side: str) -> str:
    """The side that draws the batches of this one: its partner, or itself."""
    return SIDES[side].paired_with or side


class Reading(NamedTuple):
    """What one model says of a batch of one side.

    ``what``: "view", a View; "logp", the log-likelihood of each text ([B], nats); "hidden", a
    Hidden, what block ``layer`` gives (the first block is 0); "norm", the mean Euclidean norm of
    that over all text of the side (one number). Likelihoods and norms are of the reference alone:
    of the policy a View or a Hidden says them. ``model``: the one in training, the target, or the
    target trained once more on the forget text, of which a View of that is all that is read.
    """

    side: str
    model: Who
    what: What
    layer: int | None = None

    @property
    def path(self) -> str:
        """The reading as it is written in a spec: "policy.forget.hidden[7]"."""
        layer = "" if self.layer is None else f"[{self.layer}]"
        return f"{self.model}.{self.side}.{self.what}{layer}"


OF_POLICY: tuple[What, ...] = ("view", "hidden")
OF_LAYERS: tuple[What, ...] = ("hidden", "norm")


_BEFORE: Mapping[Who, str] = {"policy": "", "reference": "ref_", "reinforced": "reinforced_"}
_SAID: Mapping[Who, tuple[What, ...]] = {"policy": OF_POLICY, "reference": get_args(What)}
_REINFORCED = Reading("forget", "reinforced", "view")


def _name(side: str, model: Who, what: What) -> str:
    """The parameter by which a loss asks for a reading: "forget", "ref_forget_logp"."""
    return f"{_BEFORE[model]}{side}{'' if what == 'view' else f'_{what}'}"


LOSS_READINGS: Mapping[str, Reading] = {
    _name(side, model, what): Reading(side, model, what)
    for side in SIDES
    for model, own in _SAID.items()
    for what in own
} | {_name(*_REINFORCED[:3]): _REINFORCED}

_PATH = re.compile(r"(\w+)\.(\w+)\.(\w+)(?:\[([0-9]{1,4})\])?")


def reading_of(path: str) -> Reading:
    """The reading that a spec names by its path.

    Raises:
        UserError: it is no path, or its model, side or kind is unknown.

    >>> reading_of("policy.forget.hidden[7]")
    Reading(side='forget', model='policy', what='hidden', layer=7)
    """
    match = _PATH.fullmatch(path)
    if not match:
        raise UserError(
            f"'{path}' is no reading.",
            'Write it as "policy.forget.hidden[7]" or "reference.retain.view".',
        )
    known = {r.path: r for r in LOSS_READINGS.values()}
    plain = ".".join(match.group(1, 2, 3))
    if plain not in known:
        raise unknown("reading", plain, known)
    found = known[plain]._replace(layer=None if match[4] is None else int(match[4]))
    if found.layer is not None and found.what not in OF_LAYERS:
        raise UserError(f"'{path}' names a layer, but a {found.what} has none.", "Leave it out.")
    return found


def readings_of(
    use: str, names: Iterable[str], given: Mapping[str, str], layer: object
) -> tuple[Reading, ...]:
    """What a loss reads, in the order of its parameters.

    Args:
        use: the loss, for messages.
        names: its parameters, each in ``LOSS_READINGS`` or in ``given``.
        given: paths that a spec writes for some of them.
        layer: the value of its keyword ``layer``, if it has one: the layer of every reading that
            wants one and names none.

    Raises:
        UserError: a path that is none, a parameter that is not there, or hidden states of no layer.
    """
    names = tuple(names)
    if foreign := [name for name in given if name not in names]:
        raise unknown(f"parameter of loss '{use}' under reads", foreign[0], names)
    found = []
    for name in names:
        reading = reading_of(given[name]) if name in given else LOSS_READINGS[name]
        if reading.what in OF_LAYERS and reading.layer is None:
            if not isinstance(layer, int) or layer < 0:
                raise UserError(
                    f"The loss '{use}' reads '{name}' of no layer.",
                    f"Give it a keyword layer from 0, or a path: reads = "
                    f'{{{name} = "{reading.path}[7]"}}.',
                )
            reading = reading._replace(layer=layer)
        found.append(reading)
    return tuple(found)


class ItemReading(NamedTuple):
    """What a metric reads of one item.

    ``model``: who is asked, the measured model or the reference. ``what``: "given", texts of the
    item; "writing", what is written; "tokens", what is said of every token of a text; "gradient",
    a norm; "view", whole logits. ``of``: the reading of the measured model that it is made from.
    """

    model: Who
    what: Literal["given", "writing", "tokens", "gradient", "view"]
    of: str | None = None


METRIC_READINGS: Mapping[str, ItemReading] = {
    "view": ItemReading("policy", "view"),
    "prompt": ItemReading("policy", "given"),
    "truth": ItemReading("policy", "given"),
    "answers": ItemReading("policy", "given"),
    "text": ItemReading("policy", "given"),
    "generated": ItemReading("policy", "writing"),
    "samples": ItemReading("policy", "writing"),
    "tokens": ItemReading("policy", "tokens"),
    "lowercased": ItemReading("policy", "tokens"),
    "behind_prefix": ItemReading("policy", "tokens"),
    "paraphrased": ItemReading("policy", "tokens"),
    "wrong": ItemReading("policy", "tokens"),
    "choices": ItemReading("policy", "tokens"),
    "right": ItemReading("policy", "given"),
    "grad_norm": ItemReading("policy", "gradient"),
    "reference": ItemReading("reference", "tokens"),
    "reference_on_generated": ItemReading("reference", "tokens", of="generated"),
}


def by_reference(names: Iterable[str]) -> tuple[str, ...]:
    """Those among some readings that the reference model is asked for."""
    return tuple(name for name in names if METRIC_READINGS[name].model == "reference")


def of_measured(names: Iterable[str]) -> tuple[str, ...]:
    """What the measured model is asked for, for some readings: its own, and what the reference
    reads of it; sorted, each once.
    """
    asked = {
        METRIC_READINGS[name].of if METRIC_READINGS[name].model == "reference" else name
        for name in names
    }
    return tuple(sorted(name for name in asked if name))
