"""What is searched of each method, and within which bounds, as a table. No torch."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from remnant.catalog import METHODS
from remnant.errors import UserError
from remnant.methods import reads_reinforced, sides_read
from remnant.readings import SIDES
from remnant.records import UnlearnSpec


class Span(NamedTuple):
    """Between which values something is searched, evenly on a logarithmic scale, both included.

    ``whole``: whole numbers alone.
    """

    low: float
    high: float
    whole: bool = False

    @property
    def middle(self) -> float:
        """The value half-way between.

        >>> Span(1e-5, 1e-3).middle
        0.0001
        """
        return self.told((self.low * self.high) ** 0.5)

    def told(self, value: float) -> float:
        """A value as settings name it: by few digits, so that the same run has the same name.

        >>> Span(1, 9).told(2.3456), Span(1, 9, whole=True).told(2.3456)
        (2.35, 2)
        """
        return round(value) if self.whole else float(f"{value:.3g}")


Space = Mapping[str, Span]

# The field takes 1e-5 to 5e-5 for pretrained models of billions of weights (docs/methods.md); small
# ones, and those trained from scratch, bear and want a hundred times that.
RATES = Span(1e-6, 1e-3)
# An adapter of low rank wants ten times the rate of whole weights (arXiv 2602.13151).
RATES_OF_ADAPTERS = Span(1e-5, 1e-2)
# A run keeps its best step, so that too many cost time and no quality.
STEPS = Span(50, 200, whole=True)
# Forget and retain terms are both in nats per token; published weights are 1 to 10, and the lab
# wants up to 80 for the terms that vanish (design/008-why-and-predict.md).
ALPHA = Span(0.1, 100.0)
# By forget term where its scale is another: squared logits (published 50 and 100), and distances of
# hidden states (published 20 to 1200).
ALPHAS: Space = {
    "logit_margin": Span(1.0, 300.0),
    "rmu": Span(1.0, 1200.0),
    "adaptive_rmu": Span(1.0, 1200.0),
}
# Settings of a forget term that no published value carries over to another model: how far out its
# hidden states lie. (Published: 2 to 300.)
OWN: Mapping[str, Space] = {"rmu": {"scale": Span(2.0, 500.0)}}
# Settings that are whole numbers.
WHOLE = ("steps", "layer")
# Forget terms that read hidden states of one block.
BY_BLOCK = ("rmu", "adaptive_rmu")
# The part of the blocks in which that one is looked for: published is 7 of 32; of the last ones
# little of the model would be moved past.
MIDDLE = (0.2, 0.75)


def fixed(settings: Mapping[str, Any]) -> set[str]:
    """The names under which settings that are given would be searched.

    >>> sorted(fixed({"lr": 1e-4, "params": {"beta": 0.1}}))
    ['lr', 'params', 'params.beta']
    """
    params = settings.get("params")
    own = params if isinstance(params, dict) else {}
    return settings.keys() | {f"params.{name}" for name in own}


def space_of(
    method: str, settings: Mapping[str, Any], blocks: int | None = None
) -> dict[str, Span]:
    """What is searched of a method: field of ``UnlearnSpec``, or "params.NAME" -> its bounds.

    Args:
        method: of the catalogue.
        settings: fields that are given, which are not searched.
        blocks: of the model; without them a block is not searched.
    """
    recipe = METHODS[method]
    train = settings.get("train")
    adapters = isinstance(train, dict) and "lora" in train
    found = {"lr": RATES_OF_ADAPTERS if adapters else RATES, "steps": STEPS}
    if recipe.retain:
        found["alpha"] = next((ALPHAS[use] for use in recipe.forget if use in ALPHAS), ALPHA)
    for use in recipe.forget:
        found |= {f"params.{name}": span for name, span in OWN.get(use, {}).items()}
    if blocks and blocks > 2 and any(use in BY_BLOCK for use in recipe.forget):
        low, high = (max(1, round(share * blocks)) for share in MIDDLE)
        found["params.layer"] = Span(low, min(high, blocks - 1), whole=True)
    return {name: span for name, span in found.items() if name not in fixed(settings)}


def spans_of(texts: Iterable[str]) -> dict[str, Span]:
    """Bounds as a user gives them, NAME=LOW:HIGH.

    >>> spans_of(("lr=1e-5:1e-3", "steps=20:60"))
    {'lr': Span(low=1e-05, high=0.001, whole=False), 'steps': Span(low=20.0, high=60.0, whole=True)}

    Raises:
        UserError: of another form, not above 0, or the wrong way round.
    """
    found = {}
    for text in texts:
        name, _, bounds = text.partition("=")
        parts = bounds.split(":")
        try:
            low, high = map(float, parts)
        except ValueError:
            low = high = 0.0
        if not 0 < low <= high < float("inf") or not re.fullmatch(r"[a-z][\w.]*", name):
            raise UserError(
                f"'{text}' gives no bounds.", "Write NAME=LOW:HIGH, above 0, as in lr=1e-5:1e-3."
            )
        found[name] = Span(low, high, name.endswith(WHOLE))
    return found


def wants_alternatives(method: str) -> bool:
    """Whether a method reads other answers to the questions.

    >>> wants_alternatives("idk_dpo_klr"), wants_alternatives("npo_klr")
    (True, False)
    """
    sides = sides_read(UnlearnSpec(method=method))
    return any(SIDES[side].paired_with for side in sides)


def wants_reinforced(method: str) -> bool:
    """Whether a method reads the target trained once more on the forget text.

    >>> wants_reinforced("whp_gdr"), wants_reinforced("npo_klr")
    (True, False)
    """
    return reads_reinforced(UnlearnSpec(method=method))
