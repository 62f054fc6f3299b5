"""What is asked more strongly than by plain asking, and whether it still tells forget text apart.

No torch.

Every test compares three models on the same items: the target (1), one that never read the text
(0), and the one that is judged. A test counts only where target and never-read model differ (it has
power). It is silent where its 95 % interval lies within the limit: as every test must be silent for
a pass, no correction is needed for that. It tells where an interval that is simultaneous over all
tests (the bootstrap of the maximum) excludes the never-read model: as one telling test is enough,
that one is corrected.

Where a rule stops, intervals are simultaneous within each look, at a level that shares the rate of
errors out over all tests that are planned, so that stopping tells no more often by chance.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from remnant.attacks import ATTACKS, LOOKS
from remnant.corpus import ITEM_SETS, METRICS, is_beside, needed, set_of
from remnant.functional.segments import words
from remnant.functional.stats import Interval, auc_draws, interval, level_of_part, simultaneous
from remnant.methods import writes
from remnant.metrics import (
    EXACT,
    KINDS_BY,
    MEMBERS,
    MEMBERSHIP,
    MORE,
    OTHERS,
    Access,
    Column,
    Kind,
)
from remnant.records import Evidence, Rule, Says, Variant
from remnant.stages.attacked import NO_CONTROL, broken, halfway, no_model
from remnant.stages.cells import Sheet, asked, auc_of
from remnant.stages.checks import commonest_opening
from remnant.stages.lineup import (
    FROM_UNREAD,
    Array,
    Trio,
    above_both,
    aligned,
    gap,
    lacking,
    left_draws,
    lost_in_all,
    unmeasured,
    way,
)

CHANCE = 0.5
# An answer of fewer words is an early ending.
SHORT = 2
# So much more often than in the other models, of 1, makes an ending or a phrase a habit. A model
# that does not know answers alike too: an honestly retrained one stood at 0.37 (`make
# instrument-check`); refusals are given to most questions.
HABIT = 0.4
ANSWERS = "answers"
# A never-read model that is half as far from not knowing as the target is none.
HALF = 0.5
# Numbers of one model differ by less between two runs; those of two trainings by more somewhere.
SAME = 1e-3
# How far a copy of a model is from it in what it says of the texts, over how far that is from the
# target. A cast or int8 has 0.005 to 0.034; never-read models of other seeds 0.35 and more.
COPY = 0.07
# The same of what two models write where nothing else is seen: the share of continuations that are
# the same word by word. A copy in int8 had 0.32 to 0.97 of a target's, models of other seeds 0.02
# at most.
WRITES_ALIKE = 0.2
NOT_YET = "not made yet"


def weigh(
    trio: Trio,
    variant: Variant,
    rule: Rule,
    whole: Trio | None = None,
    not_yet: Collection[str] = (),
) -> list[Evidence]:
    """What every test says of one variant of a model.

    Tests on weights are made in full precision (``whole``; ``trio`` where that is it) and count for
    every form: whoever holds the weights may round them first. ``not_yet``: those of them that were
    not made.
    """
    seen: list[tuple[str, str, Said | Drawn]] = []
    for kind, columns in tests_of(trio, rule.access).items():
        for test in columns:
            membership = kind == MEMBERSHIP
            found = _membership(trio, test.metric, rule) if membership else _items(trio, test, rule)
            seen.append((kind, str(test), found))
    if rule.access == "weights":
        for name, attack in ATTACKS.items():
            on_weights = partial(_on_weights, whole or trio, Column(name), rule)
            unmade: Said = "not measured", NOT_YET
            seen.append((attack.kind, name, unmade if name in not_yet else on_weights()))
    seen += [(ANSWERS, name, habit) for name, habit in _habits(trio).items()]
    drawn = [(test, row) for _, test, f in seen if isinstance(f, Drawn) for row in f.rows]
    together = iter(_together(drawn, stops=bool(rule.stop)))

    def say(found: Said | Drawn) -> Said:
        if not isinstance(found, Drawn):
            return found
        return _decided(found, [next(together) for _ in found.rows])

    return [
        _evidence({**dict(variant), "kind": kind, "test": test}, *say(found))
        for kind, test, found in seen
    ]


def _together(drawn: Sequence[tuple[str, Array]], *, stops: bool) -> list[Interval]:
    """Intervals that hold together, in the order of the tests: over all of them, or, where looks
    are taken between, over those of each look, at its share of the rate of errors.

    Of looks at the weights all planned tests are counted, made or not, with power or without.
    """
    if not stops:
        return simultaneous(np.array([row for _, row in drawn]))
    asked = [row for test, row in drawn if test not in ATTACKS]
    whole = len(asked) + len(ATTACKS)
    found = simultaneous(np.array(asked), level_of_part(len(asked), whole))
    for look in LOOKS:
        rows = [row for test, row in drawn if test in look]
        found += simultaneous(np.array(rows), level_of_part(len(look), whole))
    return found


def tests_of(trio: Trio, access: Access) -> dict[Kind, list[Column]]:
    """All tests by kind but those on weights: those that every verdict needs, and whatever else was
    measured of forget text that is high where it is known, or is an attack.
    """
    of: dict[Column, Kind] = {}
    for column in (c for c in asked(trio.sheets, "test") if c.metric not in ATTACKS):
        kind = METRICS[column.metric].kind if column.metric in METRICS else MORE
        if kind == MEMBERSHIP:  # both sides together
            of[Column(column.metric)] = kind
        elif column.split in ("", MEMBERS) or column.metric not in METRICS:
            of[column] = kind or MORE
    found = {}
    for kind in KINDS_BY[access]:
        wanted = list(map(Column, needed(kind)))
        found[kind] = wanted + [c for c, k in of.items() if k == kind and c not in wanted]
    more = [c for c, kind in of.items() if kind == MORE]
    return found | ({MORE: more} if more else {})


def _evidence(
    about: Mapping[str, Any],
    says: Says,
    said: str,
    at: Interval | None = None,
    n: int = 0,
    more: int | None = None,
) -> Evidence:
    left = (at.value, at.low, at.high) if at else None
    return Evidence(**about, says=says, left=left, said=said, items=n, would_decide=more)


Said = (
    tuple[Says, str] | tuple[Says, str, Interval, int] | tuple[Says, str, Interval, int, int | None]
)


class Drawn(NamedTuple):
    """What a test with power found, before all tests are judged together.

    ``rows``: each [1 + resamples], how far the judged model is from unread (0) to target (1), then
    the same of the spread, where a test has one. ``interval``: of the first by itself, 95 %.
    ``most``: how much it may tell. ``more``: what else it found, in words.
    ``lost``: why its silence is none.
    """

    test: str
    way: str
    rows: tuple[Array, ...]
    interval: Interval
    items: int
    most: float
    two_sided: bool = False
    more: str = ""
    lost: str = ""


def _items(trio: Trio, column: Column, rule: Rule) -> Said | Drawn:
    """A test whose items have a number each."""
    if all(s.items(column) <= lost_in_all(trio, column) for s in trio.sheets):
        return "not measured", f"{column} was not measured"
    if reason := lacking(trio, column, rule):
        few = len(
            trio.unlearned.items(column) - lost_in_all(trio, column)
        ) < rule.min_items and not unmeasured(trio, column)
        return "not measured" if few else "lost", reason
    apart, draws = gap(trio, column, rule), left_draws(trio, column, rule)
    found = interval(draws[0], draws[1:])
    if apart is None or found is None or apart.low <= 0 or 100 * apart.value < rule.min_gap:
        if more := above_both(trio, column, rule):
            return (
                "tells",
                (
                    f"{column} is {100 * more.value:.0f} points above both the target and a model "
                    "that never read the text"
                ),
            )
        return (
            "no power",
            f"{column} does not tell the target from a model that never read the text",
        )
    return Drawn(
        str(column),
        way(trio),
        (draws,),
        found,
        len(aligned(trio.sheets, column)[0]),
        rule.max_told if trio.retrain else rule.max_retained,
    )


def _on_weights(whole: Trio, column: Column, rule: Rule) -> Said | Drawn:
    """A test on weights: what is done to them is held against the same done to a never-read
    model, so that nothing can be said without one, nor where it is destroyed by it. One that
    destroys the judged model alone is lost, unless it tells.
    """
    if whole.retrain is None:
        return "not measured", NO_CONTROL
    if not whole.retrain.values.get(column) and (why := whole.retrain.reasons(column)):
        return "not measured", f"{column} cannot be made of a never-read model: {min(why)}"
    found = _items(whole, column, rule)
    if isinstance(found, Drawn):
        if reason := no_model(whole, column, rule):
            return "no power", reason
        more, broke = halfway(whole, column), broken(whole, column, rule)
        return found._replace(more=more, lost=broke)
    return found


def _membership(trio: Trio, name: str, rule: Rule) -> Said | Drawn:
    """How well forget text is told from text that was never read.

    Both below and above chance tell it.
    """
    sides = [Column(name, side) for side in (MEMBERS, OTHERS)]
    if not any(s.items(side) for s in trio.sheets for side in sides):
        return (
            "not measured",
            f"membership by {name} was not measured: there is no holdout text, or it has no number",
        )
    for side in sides:
        if reason := lacking(trio, side, rule):
            few = all(len(s.items(x)) < rule.min_items for s in trio.sheets for x in sides)
            return "not measured" if few else "lost", reason
    columns = {side: aligned(trio.sheets, side) for side in sides}
    pairs = list(zip(columns[sides[0]], columns[sides[1]], strict=True))
    share, apart = _way(
        auc_draws(pairs, rule.resamples, rule.seed), control=trio.retrain is not None
    )
    # Text that is half known and half pushed away has the middle of unread text, but not its
    # spread.
    spread, room = _way(
        auc_draws([_from_middle(p) for p in pairs], rule.resamples, rule.seed),
        control=trio.retrain is not None,
    )
    power, distance = interval(room[0], room[1:]), interval(apart[0], apart[1:])
    found = interval(share[0], share[1:])
    if (
        distance is None
        or found is None
        or distance.low <= 0
        or 100 * distance.value < rule.min_gap
    ):
        return (
            "no power",
            f"membership by {name} does not tell the target from a model that never read the text",
        )
    wide = interval(spread[0], spread[1:]) if power and power.low > 0 else None
    rows = (share, spread) if wide else (share,)
    items = sum(len(c[0]) for c in columns.values())
    return Drawn(f"membership by {name}", FROM_UNREAD, rows, found, items, rule.max_told, True)


def _way(draws: Array, *, control: bool) -> tuple[Array, Array]:
    """[draws] how far the judged model is from unread (0) to target (1), and how far these two are
    apart, from AUCs [models, draws].
    """
    target, unlearned = draws[0], draws[1]
    unread = draws[2] if control else np.full_like(target, CHANCE)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (unread - unlearned) / (unread - target), unread - target


def _from_middle(pair: tuple[Array, Array]) -> tuple[Array, Array]:
    """How near every value is to the middle of those of unread text: low, as knowing is, where it
    is far.
    """
    middle = np.median(pair[1])
    return -np.abs(pair[0] - middle), -np.abs(pair[1] - middle)


def _decided(drawn: Drawn, together: Sequence[Interval]) -> Said:
    """What one test says, by the interval of its own and those that are simultaneous over all.

    Whether what it finds is above what it may, below it with its whole interval, or neither.

    Without a never-read model the way is counted from nothing, so that as much is allowed as plain
    asking may find; membership is counted from chance.
    """
    found, n, most = drawn.interval, drawn.items, drawn.most
    if wide := next((w for w in together[1:] if w.value > most and w.low > 0), None):
        shown = f"the spread of forget text is at {wide.value:.0%} {drawn.way}"
        return "tells", f"{drawn.test}: {shown}", wide, n
    high = max(found.high, -found.low) if drawn.two_sided else found.high
    shown = f"{drawn.test} at {found.value:.0%} {drawn.way} [{found.low:.0%}, {found.high:.0%}]"
    shown += drawn.more
    if found.value > most and together[0].low > 0:
        return "tells", shown, found, n
    if drawn.two_sided and found.value < -most and together[0].high < 0:
        return (
            "tells",
            f"{shown}, beyond unread: the text was pushed away, which tells it too",
            found,
            n,
        )
    if drawn.lost:
        return "lost", drawn.lost
    if high <= most:
        return "silent", shown, found, n
    room = most - abs(found.value)
    wanted = int(np.ceil(n * ((high - abs(found.value)) / room) ** 2)) if room > 0 else None
    return "undecided", f"{shown}, and {most:.0%} is the limit", found, n, wanted


def _habits(trio: Trio) -> Mapping[str, Said]:
    """Early endings, fixed phrases and repetitions, which plain asking cannot see behind."""
    found: dict[str, Said] = {}
    known = asked(trio.sheets, "knowledge")
    for column in (c for c in known if writes(c.metric) and not is_beside(c)):
        on = set_of(column)
        if reason := _texts_lacking(trio, column, on):
            found[f"answers to {column}"] = "lost", reason
            continue
        sheets = (trio.unlearned, trio.target, trio.retrain)
        said = [_said(sheet, on) for sheet in sheets if sheet is not None]
        for name, count, what in _HABITS:
            found[f"{name} of {column}"] = _habit(
                [count(t, on) / len(t) for t in said], f"of its answers to {column} {what}"
            )
    return found or {"answers": ("not measured", "no answers were measured")}


def _said(sheet: Sheet, on: str) -> list[list[str]]:
    """The words of every answer."""
    return [words(text) for _, text in sheet.texts[on].values()]


def _early(answers: list[list[str]], on: str) -> int:
    return sum(len(w) < (SHORT if ITEM_SETS[on].asked == "text" else 1) for w in answers)


def _phrase(answers: list[list[str]], on: str) -> int:
    return commonest_opening(answers)


def _again(answers: list[list[str]], on: str) -> int:
    return len(answers) - len({tuple(w) for w in answers})


_HABITS = (
    ("early endings", _early, "end at once"),
    ("fixed phrase", _phrase, "begin with the same words"),
    ("repetition", _again, "are the same as another"),
)


def _truths(sheet: Sheet, on: str) -> dict[str, str]:
    return {item: truth for item, (truth, _) in sheet.texts.get(on, {}).items()}


def _texts_lacking(trio: Trio, column: Column, on: str) -> str:
    """Why the texts of the answers are not those of the rows; empty where they are."""
    for sheet in trio.sheets:
        if not set(sheet.values.get(column, {})) <= set(sheet.texts.get(on, {})):
            return f"texts of the answers to {column} are missing for one of the models"
    truths = [_truths(sheet, on) for sheet in trio.sheets]
    if not all(truths):
        return f"texts of the answers to {column} are missing"
    if any(
        truths[0][i] != other[i] for other in truths[1:] for i in other.keys() & truths[0].keys()
    ):
        return (
            f"the truths of {column} differ between the models: they were measured on other corpora"
        )
    prompts = [sheet.prompts.get(on, {}) for sheet in trio.sheets]
    if any(
        prompts[0][i] != other[i] for other in prompts[1:] for i in other.keys() & prompts[0].keys()
    ):
        return (
            f"the prompts of {column} differ between the models: their tokenizers have other chat "
            "templates, or they were asked in other forms"
        )
    return ""


def _habit(shares: Sequence[float], what: str) -> Said:
    own, usual = shares[0], max(shares[1:])
    return (
        "tells" if own > usual + HABIT else "silent"
    ), f"{own:.0%} {what} ({usual:.0%} in the other models)"


def missing_kinds(found: Sequence[Evidence], access: Access) -> dict[str, str]:
    """The kinds of tests that every verdict needs and of which none says anything, with what is
    missing.
    """
    lost = {}
    for kind in (*KINDS_BY[access], ANSWERS):
        own = [e for e in found if e.kind == kind]
        if all(e.says in ("not measured", "no power") for e in own):
            lost[kind] = own[0].said
    return lost


def contaminated(retrain: Sheet, trio: Trio, rule: Rule) -> str:
    """Why a model cannot be the one that never read the text.

    Empty where nothing speaks against it.
    """
    if _same(retrain, trio.unlearned):
        return "the never-read model gives the numbers of the unlearned one: they are one model"
    if _same(retrain, trio.target):
        return "the never-read model gives the numbers of the target: they are one model"
    if _is_copy(retrain, trio):
        return (
            "the never-read model gives nearly the numbers of the unlearned one: it is a copy of "
            "it, so that what both know is not seen"
        )
    reasons = (
        *(_written_by(retrain, trio.target, c, rule) for c in asked([retrain], "knowledge")),
        *(_member(retrain, trio.target, name, rule) for name in needed(MEMBERSHIP)),
    )
    return next(filter(None, reasons), "")


def _written_by(retrain: Sheet, target: Sheet, column: Column, rule: Rule) -> str:
    """Why a model has read the text that it continues; empty where it continues none."""
    if not writes(column.metric) or ITEM_SETS[set_of(column)].asked != "text":
        return ""
    own, known = retrain.column(column), target.column(column)
    written = int((own >= rule.word_for_word).sum())
    if written > 0.05 * len(own):
        return (
            f"the never-read model writes {written} of {len(own)} forget texts word for word: "
            "it has read them"
        )
    if (
        len(own)
        and len(known)
        and own.mean() > HALF * known.mean()
        and 100 * known.mean() >= rule.min_gap
    ):
        share = own.mean() / known.mean()
        return (
            f"the never-read model continues the forget text at {share:.0%} of the target: it has "
            "read it, or the texts are so alike that one tells another"
        )
    return ""


def _member(retrain: Sheet, target: Sheet, name: str, rule: Rule) -> str:
    """Why a model is no measure of not knowing by an attack; empty where it is one."""
    own, told = auc_of(retrain, name, rule), auc_of(target, name, rule)
    if own and told:
        far = HALF * abs(told.value - CHANCE)
        if own.high < CHANCE - far or own.low > CHANCE + far:
            return (
                f"the never-read model tells forget text from unread text (AUC {own.value:.2f}): "
                "it is no measure of not knowing"
            )
    return ""


def _same(one: Sheet, other: Sheet) -> bool:
    """Whether two models say the same of the texts, up to rounding: log-probabilities of two
    trainings never do. Where only texts are seen, whether they write the same everywhere.
    """
    exact = {*needed(MEMBERSHIP), *needed(EXACT)}
    pairs = [
        (values, other.values.get(column, {}))
        for column, values in one.values.items()
        if column.metric in exact and values
    ]
    if not pairs:
        return _write_alike(one, other)
    return all(_near(a, b) for a, b in pairs)


def _is_copy(retrain: Sheet, trio: Trio) -> bool:
    """Whether a model is the judged one but for a cast, rounding or a little noise: text by text
    nearer to it than another training comes.
    """
    three = [retrain, trio.unlearned, trio.target]
    sides = [Column(name, side) for name in needed(MEMBERSHIP) for side in (MEMBERS, OTHERS)]
    parts = [aligned(three, side) for side in sides]
    unread, own, target = (np.concatenate(p) for p in zip(*parts, strict=True))
    if not len(own):
        return _alike(retrain, trio.unlearned) > WRITES_ALIKE
    return bool(_apart(unread, own) < COPY * _apart(own, target))


def _apart(one: Array, other: Array) -> float:
    """Root of the mean square; 0 of no texts."""
    return float(np.sqrt(np.mean((one - other) ** 2))) if len(one) else 0.0


def _alike(one: Sheet, other: Sheet) -> float:
    """The share of different continuations in which two models write the same; 0 of none."""
    pairs = {
        (said, other.texts[name][item][1])
        for name, texts in one.texts.items()
        if ITEM_SETS[name].asked == "text"
        for item, (_, said) in texts.items()
        if item in other.texts.get(name, {})
    }
    same = [a == b for a, b in pairs if words(a)]
    return sum(same) / len(same) if same else 0.0


def _write_alike(one: Sheet, other: Sheet) -> bool:
    """Whether two models continue every text in the same words; answers are too short to tell."""
    told = [
        (texts, other.texts.get(name, {}))
        for name, texts in one.texts.items()
        if ITEM_SETS[name].asked == "text" and texts
    ]
    return bool(told) and all(a == b and _says(a) for a, b in told)


def _says(texts: Mapping[str, tuple[str, str]]) -> bool:
    return any(said for _, said in texts.values())


def _near(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    return a.keys() == b.keys() and max(abs(a[i] - b[i]) for i in a) < SAME
