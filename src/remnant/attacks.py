"""The tests on weights that an audit makes where it may see them, as data. No torch.

What is done to the weights is a transform, by its short name; the same forget texts are read before
it and behind it. To add a test of that kind, add its entry.
"""

from collections.abc import Mapping
from itertools import groupby
from typing import NamedTuple

from remnant.metrics import DAMAGED, MORE, PROMPTED, RELEARNED, Kind
from remnant.transforms.relearning import Relearning
from remnant.transforms.table import by_name

# Steps at which a curve of relearning is read: arXiv 2502.05209 finds every defence undone within
# 16, Unlearn-Smooth (arXiv 2502.05374) relearns for 50 to 150.
STEPS = (4, 16, 64)
# Texts of a step of relearning; a step passes each three times, once forward and twice, as long as
# two passes, backward.
TEXTS_A_STEP, PASSES = 4, 3
UNCHANGED = "unchanged"
# Of the blocks so many percent are passed through before it is read what the model would say.
LENSES: Mapping[str, float] = {"lens25": 0.25, "lens50": 0.5, "lens75": 0.75}
PROBE, PROBED_AT = "probe50", 0.5
SOFT_PROMPT, PROMPT_STEPS = "soft-prompt", 64


class Attack(NamedTuple):
    """One test on weights.

    ``behind``: what is done before forget text is read, each to the model as it is: transforms, or
    a name of this file. Where there are several they are the points of a curve, the test's number
    its mean height. ``needs``: beside the model and its corpus. ``source``: of the protocol.
    """

    kind: Kind
    meaning: str
    source: str
    behind: tuple[str, ...]
    version: int = 1
    needs: tuple[str, ...] = ()

    def passes(self, items: int) -> int:
        """What it costs: as much as reading so many texts, where so many are read."""
        return sum(_read(use, items) + learned(use) for use in self.behind)


def _read(use: str, items: int) -> int:
    """How many texts are read: as many more of holdout text, or those learned from before and
    behind it, and the others once.
    """
    return {PROBE: 2 * items, SOFT_PROMPT: items + items // 2}.get(use, items)


def is_transform(use: str) -> bool:
    """Whether what is done is a transform.

    >>> is_transform("prune20"), is_transform("lens25")
    (True, False)
    """
    return use not in (*LENSES, PROBE, SOFT_PROMPT)


def learned(use: str) -> int:
    """What training costs, as much as reading so many texts.

    >>> learned("prune20"), learned("relearn16-forget10")
    (0, 192)
    """
    named = by_name(use) if is_transform(use) else None
    params = named.params if named else None
    steps = params.steps if isinstance(params, Relearning) else 0
    return PASSES * TEXTS_A_STEP * (PROMPT_STEPS if use == SOFT_PROMPT else steps)


def _curve(text: str, way: str = "") -> tuple[str, ...]:
    return tuple(f"relearn{steps}-{text}{way}" for steps in STEPS)


_SMOOTH, _LUCKI = "arXiv 2502.05374, 2410.08827", "arXiv 2409.18025"
_TOLD = "forget text that was not among it"
# The cheap ones first.
ATTACKS: Mapping[str, Attack] = {
    "prune20": Attack(
        DAMAGED, "a fifth of the weights of every row made zero", "arXiv 1506.02626", ("prune20",)
    ),
    "prune30": Attack(
        DAMAGED, "three tenths of the weights made zero", "arXiv 1506.02626", ("prune30",)
    ),
    "noise0.02": Attack(
        DAMAGED, "noise, 2 % of every weight's size", "arXiv 2412.01784", ("noise0.02",)
    ),
    "mix0.25": Attack(
        DAMAGED,
        "a quarter of the way towards the target",
        "arXiv 2109.01903",
        ("mix0.25",),
        needs=("target",),
    ),
    **{
        name: Attack(
            MORE,
            f"what the model would say behind {depth:.0%} of its blocks (logit lens)",
            "nostalgebraist 2020",
            (name,),
        )
        for name, depth in LENSES.items()
    },
    PROBE: Attack(
        MORE,
        "whether a plane in the middle block tells it from text that was never read, beyond what "
        "it tells of labels drawn at random (linear probe with a control task)",
        "arXiv 1909.03368",
        (PROBE,),
        needs=("holdout text",),
    ),
    SOFT_PROMPT: Attack(
        PROMPTED,
        "vectors put before it, learned on one half of it; the other half is read",
        "arXiv 2402.09063, 2104.08691",
        (SOFT_PROMPT,),
    ),
    "relearn-retain10": Attack(
        RELEARNED, "other text is learned in all weights", _SMOOTH, _curve("retain10")
    ),
    "relearn-forget10": Attack(
        RELEARNED, f"a tenth is learned again in all weights; {_TOLD}", _SMOOTH, _curve("forget10")
    ),
    "relearn-retain10-lora": Attack(
        RELEARNED, "other text is learned by adapters", _LUCKI, _curve("retain10", "-lora")
    ),
    "relearn-forget10-lora": Attack(
        RELEARNED,
        f"a tenth is learned again by adapters; {_TOLD}",
        _LUCKI,
        _curve("forget10", "-lora"),
    ),
}


def of_kind(kind: Kind) -> tuple[str, ...]:
    """The tests of a kind, in the order of the table.

    >>> of_kind("damaged weights")[:2]
    ('prune20', 'prune30')
    """
    return tuple(name for name, attack in ATTACKS.items() if attack.kind == kind)


# Where an audit stops as soon as its verdicts are decided, it looks after each of these, the cheap
# ones first; before the first of them at all that was asked.
LOOKS: tuple[tuple[str, ...], ...] = tuple(
    tuple(names) for _, names in groupby(ATTACKS, key=lambda name: ATTACKS[name].kind)
)


def role_of(model: str) -> str:
    """The role of the tests on a model's weights among the inputs of an audit."""
    return f"weights of {model}"
