"""Instrument checks on what a measurement gave: texts cut or without a number, logits, answers.

No torch.
"""

from collections import Counter
from collections.abc import Sequence

from remnant.corpus import METRICS
from remnant.functional.segments import words
from remnant.methods import writes
from remnant.records import Check, Row

# A metric most of whose items have no number, or were cut, is not measured; the verdict is stricter
# (rule.max_unscorable).
MOST_LOST = 0.5
# If nearly every answer is empty, those about retain text too, the model is not asked rightly or is
# no model any more.
MOST_EMPTY = 0.9
# A truth of so many words is not answered by one.
LONG = 8
# A phrase is known by so many of its first words.
OPENING = 3
# What a row says of a text that was cut, and every row of logits that are no numbers.
CUT = "cut at the end of the model's context"
NOT_FINITE = "not finite"


def checks_of(rows: Sequence[Row], texts: Sequence[dict[str, str]]) -> list[Check]:
    """The checks that can be made on rows and answers.

    Args:
        rows: of all metrics.
        texts: records with the keys metric (the set of items), id, truth and generated.
    """
    return [
        _logits(rows),
        *_texts(rows),
        *([_answers(texts), *_answers_of_sets(texts)] if texts else []),
    ]


def _logits(rows: Sequence[Row]) -> Check:
    count = sum(NOT_FINITE in row.status for row in rows)
    said = (
        f"{count} of {len(rows)} numbers rest on logits that are not finite: the weights are broken"
        if count
        else "all logits are finite"
    )
    return Check(name="logits", ok=not count, said=said, count=count, total=len(rows))


def _texts(rows: Sequence[Row]) -> list[Check]:
    """One check for all metrics without a fault, one for each that has lost items or whose texts
    were cut.
    """
    by_metric: dict[str, list[Row]] = {}
    for row in rows:
        by_metric.setdefault(row.metric, []).append(row)
    faulty = [check for name, own in by_metric.items() if (check := _of_metric(name, own))]
    whole = len(by_metric) - len(faulty)
    plain = Check(
        name="texts",
        ok=True,
        said=f"every text of {whole} metrics was read whole and has a number",
        count=0,
        total=len(rows),
    )
    return [plain, *faulty]


def _of_metric(name: str, rows: Sequence[Row]) -> Check | None:
    lost = Counter(row.status for row in rows if row.value is None)
    cut = sum(row.value is not None and CUT in row.status for row in rows)
    if not lost and not cut:
        return None
    reasons = [f"{n} of {len(rows)} have no number ({reason})" for reason, n in lost.most_common()]
    reasons += [f"{cut} of {len(rows)} were {CUT}"] if cut else []
    ok = lost.total() <= MOST_LOST * len(rows) and cut <= MOST_LOST * len(rows)
    short = cut or any("context" in reason for reason in lost)
    remedy = (
        "; prepare shorter texts, or measure a model with a longer context"
        if short and not ok
        else ""
    )
    said = f"texts of {name}: {', '.join(reasons)}{remedy}"
    return Check(
        name="texts", ok=ok, said=said, metrics=(name,), count=lost.total() + cut, total=len(rows)
    )


def _answers(texts: Sequence[dict[str, str]]) -> Check:
    """How many answers are empty, of one word, or the same as another.

    Failed where nearly all are empty.
    """
    said = [words(t["generated"]) for t in texts]
    empty, single = sum(not w for w in said), sum(len(w) == 1 for w in said)
    repeated = len(said) - len({tuple(w) for w in said})
    shown = (
        f"of {len(said)} answers {empty} are empty, {single} of one word, {repeated} the same as "
        "another"
    )
    ok = empty <= MOST_EMPTY * len(said)
    remedy = "" if ok else ": the model or its end token is not asked rightly, or it is destroyed"
    return Check(name="answers", ok=ok, said=shown + remedy, count=empty, total=len(said))


def _answers_of_sets(texts: Sequence[dict[str, str]]) -> list[Check]:
    """The sets of items whose answers are too short to say that something is not known: empty ones,
    or one word where more was due.
    """
    by_set: dict[str, list[tuple[list[str], list[str]]]] = {}
    for t in texts:
        by_set.setdefault(t["metric"], []).append((words(t["truth"]), words(t["generated"])))
    return [check for on, pairs in by_set.items() if (check := _of_set(on, pairs))]


def _of_set(on: str, pairs: Sequence[tuple[list[str], list[str]]]) -> Check | None:
    empty = sum(not said for _, said in pairs)
    due = [said for truth, said in pairs if len(truth) > 1]
    single = sum(len(said) == 1 for said in due)
    long = sum(len(truth) >= LONG for truth, _ in pairs) > len(pairs) / 2
    if empty > MOST_LOST * len(pairs):
        said = (
            f"{empty} of {len(pairs)} answers of {on} are empty: that nothing is said does not "
            "show that nothing is known"
        )
        return Check(
            name="answers", ok=False, said=said, metrics=_told_by(on), count=empty, total=len(pairs)
        )
    if due and single > (MOST_LOST if long else MOST_EMPTY) * len(due):
        said = (
            f"{single} of {len(due)} answers of {on} are of one word where more was due: they end "
            "too early to show what is known"
        )
        return Check(
            name="answers", ok=False, said=said, metrics=_told_by(on), count=single, total=len(due)
        )
    phrase = commonest_opening([said for _, said in pairs])
    usual = commonest_opening([truth for truth, _ in pairs])
    if phrase - usual > MOST_LOST * len(pairs):
        said = (
            f"{phrase} of {len(pairs)} answers of {on} begin with the same words: "
            "a phrase does not show what is known behind it"
        )
        return Check(
            name="answers",
            ok=False,
            said=said,
            metrics=_told_by(on),
            count=phrase,
            total=len(pairs),
        )
    return None


def commonest_opening(texts: Sequence[Sequence[str]]) -> int:
    """How many of some texts, as words, begin with the commonest opening of ``OPENING`` words (all
    of a shorter one; empty ones none).
    """
    return max(Counter(tuple(text[:OPENING]) for text in texts if text).values(), default=0)


def _told_by(on: str) -> tuple[str, ...]:
    """The metrics that read the answers of a set of items."""
    return tuple(name for name, metric in METRICS.items() if on in metric.on and writes(name))
