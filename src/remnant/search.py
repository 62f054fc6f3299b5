"""How hard a model has to be pushed until a text is forgotten: tried within a time.

A trial is one unlearning run. Its *reach* is the rate times the steps: AdamW moves a weight by
about the rate a step, so that is about as far as one may go. No torch.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from remnant.errors import Diverged
from remnant.handles import Model
from remnant.records import Rule, UnlearnResult

# The reach of the field's own rate for pretrained models, 1e-5, in the usual number of steps. A
# small model that was trained from scratch wants up to a hundred times that.
STEPS = 200
REACH = 1e-5 * STEPS
# How much farther the next trial goes: where hardly anything was forgotten, and else.
LEAP, STRIDE = 10.0, 3.0
# Two reaches are one if neither is so many times the other.
CLOSE = 1.5
# Beyond this rate AdamW destroys what was trained before, however few the steps.
LARGEST = 3e-3
# Fewer steps read too little of the text for a trial; with fewer than twice ENOUGH one trial gets
# all the time.
FEWEST, ENOUGH = 10, 30
# A tenth less of what is told is within what a few items make, as stages/unlearn.py has it.
HARDLY = 0.9
# Of what a target tells less of than this share nothing is measured, as in a verdict.
LEAST = Rule().least
# A rate is told by so many digits, so that the same one has the same name.
DIGITS = 2
# Of a reach that shrinks by STRIDE each time nothing is left after so many.
MOST = 8


class Trial(NamedTuple):
    """One unlearning run: its rate, the steps that it was given, the model, what it came to, how
    long it took, and the least share of the target's utility.
    """

    rate: float
    steps: int
    model: Model
    result: UnlearnResult
    seconds: float
    floor: float

    @property
    def reach(self) -> float:
        """How far a weight may have gone, about."""
        return self.rate * self.steps

    @property
    def left(self) -> float:
        """Share of forget tokens that are still the greedy choice, on the development half, 0 to 1;
        all where nothing was probed.
        """
        return self.result.chosen.forget if self.result.chosen else 1.0

    @property
    def kept(self) -> float:
        """Share of the target's right retain tokens that are still right; 0 where nothing was
        probed.
        """
        chosen, origin = self.result.chosen, self._origin
        return chosen.retain / origin[1] if chosen and origin and origin[1] else 0.0

    @property
    def said(self) -> str:
        """What is left of forget and of retain text, in words; nothing is said to be left or kept
        of what the target itself hardly tells.
        """
        if (origin := self._origin) is None:
            return "nothing was probed"
        before, useful = origin
        forgotten = (
            f"{self.left:.0%} of the forget tokens are right, {before:.0%} in the target"
            if before >= LEAST
            else f"forgetting not measured (the target has {before:.0%} of the forget tokens right)"
        )
        kept = (
            f"{self.kept:.0%} of the utility is kept"
            if useful >= LEAST
            else f"utility not measured (the target has {useful:.0%} of the retain tokens right)"
        )
        return f"{forgotten}; {kept}"

    @property
    def useful(self) -> bool:
        """Whether what is kept of it is above the floor."""
        return self.kept >= self.floor

    @property
    def hardly(self) -> bool:
        """Whether hardly anything was forgotten."""
        origin = self._origin
        return origin is not None and self.left > HARDLY * origin[0]

    @property
    def too_far(self) -> bool:
        """Whether its last step lies below the floor, as those of a farther trial would."""
        origin, probes = self._origin, self.result.probes
        return origin is not None and probes[-1].retain < self.floor * origin[1]

    @property
    def _origin(self) -> tuple[float, float] | None:
        """What the target tells of forget and of retain text."""
        probes = self.result.probes
        return (probes[0].forget, probes[0].retain) if probes else None


Attempt = Callable[[float, int], Trial]


def best_of(trials: Sequence[Trial]) -> Trial:
    """The trial that tells least of those above the floor; else the one that kept most."""
    return min(trials, key=lambda t: (not t.useful, t.left if t.useful else -t.kept))


def steps_within(seconds: float, pace: float) -> int:
    """Steps for the next trial: the usual number, or what half of the time leaves for, or all of it
    where half is too short for a trial.

    Args:
        seconds: that are left.
        pace: seconds of a step, more than 0.

    >>> steps_within(600, 1), steps_within(100, 1), steps_within(40, 1), steps_within(1, 1)
    (200, 50, 40, 10)
    """
    half, whole = int(seconds / 2 / pace), int(seconds / pace)
    return min(STEPS, max(half if half >= ENOUGH else whole, FEWEST))


def next_reach(trials: Sequence[Trial]) -> float | None:
    """How far the next trial goes: farther until the floor is met, then back in between; None where
    there is nothing to be won.
    """
    if not trials:
        return REACH
    last = trials[-1]
    if not last.too_far:
        farther = last.reach * (LEAP if last.hardly else STRIDE)
        beyond = any(t.too_far and t.reach < CLOSE * farther for t in trials)
        return None if last.left == 0 or beyond else farther
    back = last.reach / STRIDE
    below = max((t.reach for t in trials if not t.too_far), default=0.0)
    return back if back > CLOSE * below else None


def searched(
    attempt: Attempt, seconds: float, pace: float, steps: int | None = None
) -> tuple[Trial, ...]:
    """Trials one after the other while the time lasts; one is always made.

    Args:
        attempt: makes one, of a rate and a number of steps.
        seconds: for all of them.
        pace: seconds of a step, before any trial tells it.
        steps: of every trial; without them as many as there is time for.

    Raises:
        Diverged: the first trial's loss was not finite; a later one ends the search.
    """
    found: list[Trial] = []
    while (reach := next_reach(found)) is not None and len(found) < MOST:
        left = seconds - sum(trial.seconds for trial in found)
        if found:
            pace = found[-1].seconds / max(1, found[-1].result.steps)
            if left < (steps or FEWEST) * pace:
                break
        count = steps or steps_within(left, pace)
        rate = float(f"{reach / count:.{DIGITS - 1}e}")
        if found and rate > LARGEST:
            break
        try:
            found.append(attempt(min(rate, LARGEST), count))
        except Diverged:
            if not found:
                raise
            break
    return tuple(found)
