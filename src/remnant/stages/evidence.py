"""What is asked more strongly than by plain asking, and whether it still tells forget text apart. No torch.

Every test compares three models on the same items: the target (1), one that never read the text (0), and the one that is judged. A test
counts only where target and never-read model differ (it has power). It is silent where its 95 % interval lies within the limit: as
every test must be silent for a pass, no correction is needed for that. It tells where an interval that is simultaneous over all tests
(Bonferroni) excludes the never-read model: as one telling test is enough, that one is corrected.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from remnant.catalog import METRICS, PLAIN, TESTS
from remnant.functional.segments import words
from remnant.functional.stats import Interval, auc_draws, interval
from remnant.records import Rule
from remnant.stages.cells import MEMBERS, OTHERS, Sheet
from remnant.stages.checks import commonest_opening
from remnant.stages.lineup import Trio, aligned, gap, lacking, left
from remnant.verdicts import Evidence, Says

CHANCE = 0.5
# An answer of fewer words is an early ending.
SHORT = 2
# So much more often than in the other models, of 1, makes an early ending or a phrase a habit.
HABIT = 0.2
ANSWERS = "answers"


def weigh(trio: Trio, model: str, quantizer: str, rule: Rule) -> list[Evidence]:
    """What every test says of one model at one precision."""
    make, tests = partial(_evidence, model, quantizer), tests_of(trio)
    level = 1 - 0.05 / sum(map(len, tests.values()))
    found = [
        make(kind, name, *(_membership(trio, name, rule, level) if kind == "membership" else _items(trio, name, rule, level)))
        for kind, names in tests.items()
        for name in names
    ]
    return found + [make(ANSWERS, name, *said) for name, said in _habits(trio).items()]


def tests_of(trio: Trio) -> dict[str, list[str]]:
    """All tests by kind: those that every verdict needs, and whatever else was measured that is low where a text is forgotten."""
    known = {m.partition("/")[0] for sheet in trio.sheets for m in sheet.values}
    kinds = {kind: list(names) for kind, names in TESTS.items()}
    taken = {*PLAIN, *(name for names in kinds.values() for name in names)}
    more = [name for name in METRICS if name in known and name not in taken]
    kinds["membership"] += [name for name in more if is_attack(name)]
    if others := [name for name in more if METRICS[name].better == "low"]:
        kinds["more tests"] = others
    return kinds


def is_attack(metric: str) -> bool:
    """Whether a metric tells forget text from text that was never read, by a number for each."""
    return {on.partition("_")[2] for on in METRICS[metric].on} >= {MEMBERS, OTHERS}


def _evidence(
    model: str, quantizer: str, kind: str, test: str, says: Says, said: str, at: Interval | None = None, n: int = 0, more: int | None = None
) -> Evidence:
    left = (at.value, at.low, at.high) if at else None
    about = {"model": model, "quantizer": quantizer, "kind": kind, "test": test}
    return Evidence(**about, says=says, left=left, said=said, items=n, would_decide=more)


Said = tuple[Says, str] | tuple[Says, str, Interval, int] | tuple[Says, str, Interval, int, int | None]


def _items(trio: Trio, metric: str, rule: Rule, level: float) -> Said:
    """A test whose items have a number each."""
    if not any(s.items(metric) for s in trio.sheets):
        return "not measured", f"{metric} was not measured"
    if reason := lacking(trio, metric, rule):
        return "not measured", reason
    apart, found, all_ = gap(trio, metric, rule), left(trio, metric, rule), left(trio, metric, rule, level)
    if apart is None or found is None or all_ is None or apart.low <= 0 or 100 * apart.value < rule.min_gap:
        return "no power", f"{metric} does not tell the target from a model that never read the text"
    return _decided(metric, found, all_, len(aligned(trio.sheets, metric)[0]), rule.max_told if trio.retrain else rule.max_retained)


def _membership(trio: Trio, name: str, rule: Rule, level: float) -> Said:
    """How well forget text is told from text that was never read; both below and above chance tell it."""
    sides = [f"{name}/{side}" for side in (MEMBERS, OTHERS)]
    if not all(s.values.get(side) for s in (trio.target, trio.unlearned) for side in sides):
        return "not measured", f"membership by {name} was not measured: there is no holdout text, or it has no number"
    for side in sides:
        if reason := lacking(trio, side, rule):
            return "not measured", reason
    columns = {side: aligned(trio.sheets, side) for side in sides}
    draws = auc_draws(list(zip(columns[sides[0]], columns[sides[1]], strict=True)), rule.resamples, rule.seed)
    target, unlearned = draws[0], draws[1]
    unread = draws[2] if trio.retrain else np.full_like(target, CHANCE)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (unread - unlearned) / (unread - target)
    distance = interval(unread[0] - target[0], (unread - target)[1:])
    found, all_ = (interval(share[0], share[1:], at) for at in (0.95, level))
    if distance is None or found is None or all_ is None or distance.low <= 0 or 100 * distance.value < rule.min_gap:
        return "no power", f"membership by {name} does not tell the target from a model that never read the text"
    return _decided(f"membership by {name}", found, all_, sum(len(c[0]) for c in columns.values()), rule.max_told, two_sided=True)


def _decided(name: str, found: Interval, simultaneous: Interval, n: int, most: float, *, two_sided: bool = False) -> Said:
    """Whether what a test finds is above what it may, below it with its whole interval, or neither.

    Without a never-read model the way is counted from nothing, so that as much is allowed as plain asking may find; membership is counted
    from chance.
    """
    high = max(found.high, -found.low) if two_sided else found.high
    shown = f"{name} at {found.value:.0%} of the way from unread to target [{found.low:.0%}, {found.high:.0%}]"
    if found.value > most and simultaneous.low > 0:
        return "tells", shown, found, n
    if two_sided and found.value < -most and simultaneous.high < 0:
        return "tells", f"{shown}, beyond unread: the text was pushed away, which tells it too", found, n
    if high <= most:
        return "silent", shown, found, n
    room = most - abs(found.value)
    wanted = int(np.ceil(n * ((high - abs(found.value)) / room) ** 2)) if room > 0 else None
    return "undecided", f"{shown}, and {most:.0%} is the limit", found, n, wanted


def _habits(trio: Trio) -> Mapping[str, Said]:
    """Early endings and fixed phrases, which plain asking cannot see behind."""
    found: dict[str, Said] = {}
    for on in (m for m in PLAIN if m in trio.target.texts):
        own = [said for _, said in trio.unlearned.texts.get(on, {}).values()]
        others = [[said for _, said in s.texts.get(on, {}).values()] for s in (trio.target, trio.retrain) if s is not None]
        least = SHORT if on == "verbmem" else 1
        counts = [_share_short(texts, least) for texts in (own, *others)]
        found[f"early endings of {on}"] = _habit(counts, len(own), f"of its answers to {on} end at once")
        shares = [_share_of_opening(texts) for texts in (own, *others)]
        found[f"fixed phrase of {on}"] = _habit(shares, len(own), f"of its answers to {on} begin with the same words")
    return found or {"answers": ("not measured", "the texts of the answers are missing")}


def _habit(shares: Sequence[float], n: int, what: str) -> Said:
    own, usual = shares[0], max(shares[1:])
    if not n:
        return "not measured", f"the texts of the answers are missing, so it cannot be said how many {what.removeprefix('of its answers ')}"
    shown = f"{own:.0%} {what} ({usual:.0%} in the other models)"
    return ("tells" if own > usual + HABIT else "silent"), shown


def _share_short(texts: Sequence[str], least: int) -> float:
    return sum(len(words(t)) < least for t in texts) / len(texts) if texts else 0.0


def _share_of_opening(texts: Sequence[str]) -> float:
    """Share of the texts that begin with the commonest opening; empty ones are early endings and no phrase."""
    return commonest_opening([words(t) for t in texts]) / len(texts) if texts else 0.0


def missing_kinds(found: Sequence[Evidence]) -> dict[str, str]:
    """The kinds of tests that every verdict needs and of which none says anything, with what is missing."""
    lost = {}
    for kind in (*TESTS, ANSWERS):
        own = [e for e in found if e.kind == kind]
        if all(e.says in ("not measured", "no power") for e in own):
            lost[kind] = own[0].said
    return lost


def contaminated(retrain: Sheet, trio: Trio, rule: Rule) -> str:
    """Why a model cannot be the one that never read the text; empty where nothing speaks against it."""
    if _same(retrain, trio.unlearned):
        return "the never-read model gives the very numbers of the unlearned one: they are one model"
    if _same(retrain, trio.target):
        return "the never-read model gives the very numbers of the target: they are one model"
    column = list(retrain.values.get("verbmem", {}).values())
    written = sum(v >= rule.word_for_word for v in column)
    if written > 0.05 * len(column):
        return f"the never-read model writes {written} of {len(column)} forget texts word for word: it has read them"
    sides = [f"privleak/{side}" for side in (MEMBERS, OTHERS)]
    if all(s.values.get(side) for s in (retrain, trio.target) for side in sides):
        own, told = (auc_draws([(s.column(sides[0]), s.column(sides[1]))], rule.resamples, rule.seed)[0] for s in (retrain, trio.target))
        high = np.quantile(own[1:], 0.975)
        if told[0] < CHANCE and high < (told[0] + CHANCE) / 2:
            return f"the never-read model tells forget text from unread text (AUC {own[0]:.2f}): it has read it"
    return ""


def _same(one: Sheet, other: Sheet) -> bool:
    """Whether two models gave equal numbers throughout, log-probabilities among them."""
    told = [m for m in one.values if m.startswith("privleak/") or m in TESTS["probability per token"]]
    return bool(told) and all(one.values[m] == other.values.get(m) for m in told)
