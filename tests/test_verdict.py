"""The rule of the verdict by hand: what knows, what is destroyed and what was not measured never
passes; what never read the text does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rouge_score import rouge_scorer

from remnant.corpus import needed
from remnant.corpus.base import ItemSet
from remnant.errors import UserError
from remnant.evaluate.items import items_of
from remnant.functional.disguise import tells_in_disguise
from remnant.instrument import write_checks
from remnant.methods import chain
from remnant.metrics import KINDS_BY, MEMBERSHIP, NEEDED_KINDS, Column, Kind
from remnant.records import AuditSpec, Check, OwnRole, Row, Rule, Variant, Verdict
from remnant.stages import audit
from remnant.stages.cells import Sheet, cells_of, read_rows
from remnant.stages.checks import checks_of
from remnant.stages.evidence import contaminated, weigh
from remnant.stages.lineup import Lineup
from remnant.stages.verdict import decide, told_items
from tests.conftest import silent

N = 80
RULE = Rule(resamples=400)
GOOD = tuple(Check(name=name, ok=True, said="as it should be") for name in ("logits", "texts"))
PLAIN = ("verbmem", "knowmem_forget")
TESTS = {kind: needed(kind) for kind in NEEDED_KINDS}
TOLD = [m for kind, names in TESTS.items() if kind != MEMBERSHIP for m in names]
MEMBERS, OTHERS = Column("privleak", "forget"), Column("privleak", "holdout")
TRUTH = "these are the eight words of the one truth"


def saying(sheet: Sheet, text: Callable[[int], str]) -> Sheet:
    answers = {str(i): (TRUTH, text(i)) for i in range(N)}
    return sheet._replace(texts=dict.fromkeys(PLAIN, answers))


def made(
    knows: float = 0.1,
    useful: float = 0.9,
    seed: int = 0,
    told: float | None = None,
    member: float | None = None,
) -> Sheet:
    """A model: what plain asking finds, its utility, what stronger tests find, and how far forget
    text lies from unread text."""
    rng = np.random.default_rng(seed)
    told, member = knows if told is None else told, knows if member is None else member

    def column(middle: float) -> dict[str, float]:
        return {
            str(i): float(v)
            for i, v in enumerate(
                np.clip(middle + rng.normal(0, 0.02, N), 0, 0.89 if middle < 0.8 else 1)
            )
        }

    values = (
        {Column(m): column(knows) for m in PLAIN}
        | {Column(m): column(told) for m in TOLD}
        | {Column("knowmem_retain"): column(useful)}
    )
    # How hard a text is, is the same for all models; each adds a little noise of its own.
    hard = np.random.default_rng(9).normal(3, 1, (2, N)) + rng.normal(0, 0.2, (2, N))
    values[MEMBERS] = {str(i): float(v) for i, v in enumerate(hard[0] - 4 * (member - 0.1))}
    values[OTHERS] = {str(i): float(v) for i, v in enumerate(hard[1])}
    return saying(Sheet(values, {}, GOOD), lambda i: f"answer {i} of {seed} at all")


TARGET, UNREAD = made(0.95, 0.9, 1), made(0.1, 0.9, 2)


INT4 = Variant(model="m", steps=("int4",))


def judged(
    own: Sheet,
    quantized: Sheet | None = None,
    retrain: Sheet | None = UNREAD,
    form: str = "int4",
    **more: Sheet,
) -> Verdict:
    line = Lineup(
        more.get("target", TARGET),
        own,
        retrain,
        more.get("q_target", TARGET),
        quantized or own,
        more.get("q_retrain", retrain),
    )
    about = Variant(model="m").behind(*chain(form).names)
    found = [audit.recover(line, about, Column(metric), RULE) for metric in PLAIN]
    return decide(line, about, found, weigh(line.form, about, RULE), RULE)


def with_values(
    sheet: Sheet, metric: str | Column, change: Callable[[dict[str, float]], dict[str, float]]
) -> Sheet:
    column = metric if isinstance(metric, Column) else Column(metric)
    return sheet._replace(values=sheet.values | {column: change(dict(sheet.values[column]))})


def without(sheet: Sheet, metric: str) -> Sheet:
    return sheet._replace(values={c: v for c, v in sheet.values.items() if c.metric != metric})


@pytest.mark.parametrize("form", ["mix0.5", "mix0.25+int4"])
def test_under_a_form_that_teaches_only_the_excess_over_a_never_read_model_counts(
    form: str,
) -> None:
    # All models rise: the never-read one from 0.1 to 0.6.
    taught: dict[str, Any] = {
        "q_retrain": made(0.6, 0.9, 3, member=0.1),
        "q_target": made(0.97, 0.9, 4),
    }
    rises_alike = judged(made(0.1, 0.9, 5), made(0.6, 0.9, 6, member=0.1), form=form, **taught)
    assert rises_alike.outcome == "gone", rises_alike.reason
    rises_more = judged(made(0.1, 0.9, 5), made(0.8, 0.9, 6), form=form, **taught)
    assert rises_more.outcome == "came back"
    assert "never-read model" in rises_more.reason or "from unread to target" in rises_more.reason
    still = judged(made(0.9, 0.9, 5), made(0.95, 0.9, 6), form=form, **taught)
    assert still.outcome in ("known", "came back")
    # The same numbers under a quantizer, which teaches nothing: the never-read model is none.
    assert judged(made(0.1, 0.9, 5), made(0.6, 0.9, 6, member=0.1), **taught).outcome != "gone"


def test_a_form_that_teaches_never_passes_without_a_never_read_model_or_power() -> None:
    alone = judged(made(0.1, 0.9, 5), made(0.6, 0.9, 6, member=0.1), None, "mix0.5")
    assert alone.outcome == "came back"
    every: dict[str, Any] = {"q_retrain": made(0.95, 0.9, 3), "q_target": made(0.95, 0.9, 4)}
    same = judged(made(0.1, 0.9, 5), made(0.95, 0.9, 6), form="mix0.5", **every)
    assert same.outcome == "not measured"
    assert "shows as much as the target" in same.reason
    hidden = judged(
        made(0.1, 0.9, 5), made(0.6, 0.9, 6, told=0.9, member=0.1), form="mix0.5",
        q_retrain=made(0.6, 0.9, 3, member=0.1), q_target=made(0.97, 0.9, 4),
    )  # fmt: skip
    assert hidden.outcome == "hidden"


def test_a_model_that_never_read_the_text_stays_forgotten() -> None:
    for seed in range(3, 11):
        found = judged(made(0.1, 0.9, seed))
        assert found.outcome == "gone", found.reason
        assert (
            "utility 100%" in found.reason
            or "utility 9" in found.reason
            or "utility 101%" in found.reason
        )


@pytest.mark.parametrize(
    ("own", "quantized", "outcome"),
    [
        (made(0.15, seed=3), made(0.85, seed=3), "came back"),
        (made(0.7, seed=3), None, "known"),
        (made(0.0, 0.1, 3), None, "broken"),
        (made(0.1, seed=3), made(0.1, 0.2, 3), "broken"),
        (made(0.1, seed=3, told=0.8), None, "hidden"),
        (made(0.1, seed=3, member=0.9), None, "hidden"),
        (made(0.1, seed=3, member=-1.0), None, "hidden"),
    ],
)
def test_the_rule_of_the_verdict(own: Sheet, quantized: Sheet | None, outcome: str) -> None:
    assert judged(own, quantized).outcome == outcome


@pytest.mark.parametrize("metric", TOLD)
def test_every_single_test_bars_the_pass_and_is_named(metric: str) -> None:
    told = with_values(made(0.1, seed=3), metric, lambda v: {i: x + 0.6 for i, x in v.items()})
    found = judged(told)
    assert found.outcome == "hidden"
    assert metric in found.reason
    assert "%" in found.reason


@pytest.mark.parametrize("metric", ["exact_memorization", "knowmem_reworded", "verbmem_primed"])
def test_what_else_was_measured_counts_too(metric: str) -> None:
    def also(sheet: Sheet, at: float) -> Sheet:
        return sheet._replace(
            values=sheet.values | {Column(metric): {str(i): at + 0.001 * (i % 7) for i in range(N)}}
        )

    measured = also(UNREAD, 0.2), also(TARGET, 0.95)
    assert (
        judged(
            also(made(0.1, seed=3), 0.2),
            None,
            measured[0],
            target=measured[1],
            q_target=measured[1],
        ).outcome
        == "gone"
    )
    found = judged(
        also(made(0.1, seed=3), 0.9), None, measured[0], target=measured[1], q_target=measured[1]
    )
    assert found.outcome == "hidden"
    assert metric in found.reason


def test_an_attack_that_was_measured_counts_too() -> None:
    def also(sheet: Sheet, middle: float) -> Sheet:
        values = dict(sheet.values)
        for side, at in (("forget", middle), ("holdout", 3.0)):
            values[Column("mia_loss", side)] = {str(i): at + 0.01 * i for i in range(N)}
        return sheet._replace(values=values)

    measured = also(UNREAD, 3.0), also(TARGET, 0.0)
    assert (
        judged(
            also(made(0.1, seed=3), 3.0),
            None,
            measured[0],
            target=measured[1],
            q_target=measured[1],
        ).outcome
        == "gone"
    )
    found = judged(
        also(made(0.1, seed=3), 0.5), None, measured[0], target=measured[1], q_target=measured[1]
    )
    assert found.outcome == "hidden"
    assert "mia_loss" in found.reason


@pytest.mark.parametrize("kind", TESTS)
def test_a_kind_of_test_that_was_not_made_bars_the_pass(kind: Kind) -> None:
    own = made(0.1, seed=3)
    for metric in TESTS[kind]:
        own = without(own, metric)
    found = judged(own)
    assert found.outcome == "not measured"
    assert kind in found.reason


def by_text_alone(own: Sheet, retrain: Sheet = UNREAD) -> Verdict:
    """The verdict where only what models write is seen."""

    def seen(sheet: Sheet) -> Sheet:
        for kind in set(NEEDED_KINDS) - set(KINDS_BY["text"]):
            for metric in needed(kind):
                sheet = without(sheet, metric)
        return sheet

    target, judged_, unread = map(seen, (TARGET, own, retrain))
    line = Lineup(target, judged_, unread, target, judged_, unread)
    rule = RULE.model_copy(update={"access": "text"})
    about = Variant(model="m")
    return decide(line, about, [], weigh(line.form, about, rule), rule)


def test_by_text_alone_no_probability_is_asked_for_and_the_verdict_says_so() -> None:
    found = by_text_alone(made(0.1, seed=3))
    assert (found.outcome, "by what it writes alone" in found.reason) == ("gone", True)
    told = with_values(made(0.1, seed=3), "leak", lambda v: {i: x + 0.4 for i, x in v.items()})
    assert by_text_alone(told).outcome == "hidden"
    assert by_text_alone(without(made(0.1, seed=3), "leak")).outcome == "not measured"


def test_by_text_alone_a_never_read_model_that_writes_what_another_writes_is_none() -> None:
    copy = UNREAD._replace(texts=TARGET.texts)
    found = by_text_alone(made(0.1, seed=3), retrain=copy)
    assert (found.outcome, "are one model" in found.reason) == ("not measured", True)


def test_by_text_alone_a_copy_of_the_judged_model_is_seen_by_what_it_writes() -> None:
    """In int8 it writes every third continuation as before; two trainings hardly one."""

    def every(count: int) -> Sheet:
        return saying(made(0.1, seed=4), lambda i: f"answer {i} of {4 if i % count else 3} at all")

    assert by_text_alone(made(0.1, seed=3), retrain=every(3)).outcome == "not measured"
    assert by_text_alone(made(0.1, seed=3), retrain=every(20)).outcome == "gone"


@pytest.mark.parametrize("metric", [*PLAIN, "knowmem_retain"])
@pytest.mark.parametrize(
    "change",
    [
        lambda v: {i: float("nan") for i in v},
        lambda v: {i: float("inf") for i in v},
        lambda v: {},
        lambda v: dict(list(v.items())[:1]),
        lambda v: dict(list(v.items())[:40]),
        lambda v: {f"other-{i}": x for i, x in v.items()},
    ],
)
def test_numbers_that_are_missing_or_no_numbers_never_pass(
    metric: str, change: Callable[[dict[str, float]], dict[str, float]]
) -> None:
    assert judged(with_values(made(0.1, seed=3), metric, change)).outcome in (
        "not measured",
        "broken",
    )


def test_one_metric_without_numbers_does_not_hide_another_that_knows() -> None:
    own = with_values(
        without(made(0.1, seed=3), "verbmem"), "knowmem_forget", lambda v: dict.fromkeys(v, 0.89)
    )
    assert judged(own).outcome == "known"


def test_a_single_text_word_for_word_behind_a_good_mean_is_named() -> None:
    found = judged(with_values(made(0.1, seed=3), "verbmem", lambda v: v | {"7": 1.0}))
    assert found.outcome == "known"
    assert "1 of 80" in found.reason
    assert "worst: 7, 100%" in found.reason


def test_short_answers_may_be_right_by_chance_but_not_many_of_them() -> None:
    def short(sheet: Sheet) -> Sheet:
        return sheet._replace(
            texts=dict(sheet.texts)
            | {"knowmem_forget": {str(i): ("two words", f"a b {i}") for i in range(N)}}
        )

    def right(sheet: Sheet, places: range) -> Sheet:
        return short(
            with_values(sheet, "knowmem_forget", lambda v: v | {str(i): 1.0 for i in places})
        )

    unread = right(UNREAD, range(0, 6))
    assert judged(right(made(0.1, seed=3), range(6, 13)), retrain=unread).outcome in (
        "gone",
        "not measured",
    )
    many = right(made(0.1, seed=3), range(6, 30))
    assert judged(many, retrain=unread).outcome == "known"


def test_what_was_small_in_full_precision_and_grows_in_a_form_came_back() -> None:
    hidden = with_values(TARGET, "knowmem_forget", lambda v: dict.fromkeys(v, 0.1))
    grown = with_values(
        made(0.1, seed=3), "knowmem_forget", lambda v: {i: x + 0.5 for i, x in v.items()}
    )
    found = judged(made(0.1, seed=3), grown, target=hidden)
    assert found.outcome == "came back"
    assert "knowmem_forget" in found.reason


def test_a_form_that_destroys_the_target_too_is_no_pass() -> None:
    broken = made(0.05, 0.02, 5)
    assert judged(made(0.1, seed=3), made(0.05, 0.02, 6), q_target=broken).outcome in (
        "not measured",
        "broken",
    )


@pytest.mark.parametrize(
    "control",
    [
        made(0.1, seed=3),
        TARGET,
        made(0.1, 0.1, 2),
        with_values(UNREAD, "verbmem", lambda v: dict.fromkeys(v, 0.95)),
    ],
)
def test_a_control_model_that_is_none_bars_the_pass(control: Sheet) -> None:
    assert judged(made(0.1, seed=3), retrain=control).outcome == "not measured"


def test_a_control_model_that_read_the_text_is_seen_by_membership() -> None:
    read = UNREAD._replace(
        values=UNREAD.values | {MEMBERS: {i: x - 3 for i, x in TARGET.values[MEMBERS].items()}}
    )
    assert "no measure of not knowing" in contaminated(
        read, Lineup(TARGET, made(0.1), read, TARGET, made(0.1), read).full, RULE
    )
    assert (
        contaminated(
            UNREAD, Lineup(TARGET, made(0.1), UNREAD, TARGET, made(0.1), UNREAD).full, RULE
        )
        == ""
    )


@pytest.mark.parametrize("off", [0.003, 0.05])  # a cast, int8
def test_a_copy_of_the_judged_model_is_no_never_read_one(off: float) -> None:
    """It knows as much, so that nothing is seen to be left: a model at 0.25 of the way passed."""
    own = made(0.3, seed=3)
    rng = np.random.default_rng(0)

    def rounded(column: dict[str, float]) -> dict[str, float]:
        return {i: v + float(rng.normal(0, off)) for i, v in column.items()}

    copy = own._replace(values={c: rounded(v) for c, v in own.values.items()})
    verdict = judged(own, retrain=copy)
    assert (verdict.outcome, "copy of it" in verdict.reason) == ("not measured", True)
    assert judged(own).outcome == "hidden"


def test_early_endings_and_fixed_phrases_bar_the_pass() -> None:
    own = made(0.1, seed=3)
    assert "end at once" in judged(saying(own, lambda i: "")).reason
    phrase = judged(saying(own, lambda i: f"I am sorry to say that {i} and more"))
    assert phrase.outcome == "hidden"
    assert "begin with the same words" in phrase.reason
    assert judged(own._replace(texts={})).outcome == "not measured"


def test_without_checks_of_the_instrument_nothing_passes_and_a_failed_one_is_not_measured() -> None:
    own = made(0.1, seed=3)
    assert judged(own._replace(checks=None)).outcome == "not measured"
    failed = own._replace(
        checks=(*GOOD, Check(name="logits", ok=False, said="3 of 9 logits are not finite"))
    )
    found = judged(failed)
    assert found.outcome == "not measured"
    assert "3 of 9 logits" in found.reason
    about = Variant(corpus="c", model="m", seed=0)
    assert all(
        c.value is None and c.status.startswith("not measured: 3 of 9")
        for c in cells_of(about, failed, Rule(resamples=10), None)
    )


def test_without_a_never_read_model_membership_is_counted_from_chance() -> None:
    honest = judged(made(0.1, seed=3), retrain=None)
    assert honest.outcome == "gone" or "membership" in honest.reason
    assert judged(made(0.1, seed=3, member=0.9), retrain=None).outcome == "hidden"
    assert judged(made(0.6, seed=3), retrain=None).outcome == "known"


def test_recovery_by_hand() -> None:
    line = Lineup(
        made(1.0, seed=1), made(0.2, seed=3), UNREAD, made(1.0, seed=1), made(0.6, seed=3), UNREAD
    )
    found = audit.recover(line, INT4, Column("verbmem"), RULE)
    assert found.recovery is not None
    assert found.recovery[0] == pytest.approx((0.6 - 0.2) / (1.0 - 0.2), abs=0.02)
    assert found.recovery_over_retrain is not None
    assert found.recovery_over_retrain[0] == pytest.approx((0.6 - 0.1) / (1.0 - 0.1), abs=0.02)
    assert found.recovery[1] < found.recovery[0] < found.recovery[2]


def test_no_gap_means_no_recovery() -> None:
    line = Lineup(TARGET, made(0.94, seed=3), UNREAD, TARGET, made(0.94, seed=3), UNREAD)
    found = audit.recover(line, INT4, Column("verbmem"), RULE)
    assert found.recovery is None
    assert "below 5" in found.status


def written(
    folder: Path,
    sheet: Sheet,
    checks: bool = True,
    change: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> Path:
    folder.mkdir()
    rows = []
    for (metric, split), values in sheet.values.items():
        rows += [
            {"metric": metric, "split": split, "id": i, "half": "dev", "value": v}
            for i, v in values.items()
        ]
    change(rows)
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    texts = [
        {"metric": m, "id": i, "truth": t, "generated": g, "prompt": ""}
        for m, found in sheet.texts.items()
        for i, (t, g) in found.items()
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    if checks:
        write_checks(folder, GOOD)
    return folder


def outcome_of(tmp_path: Path, own: Path) -> dict[str, Any]:
    folders = {
        "target": written(tmp_path / "t", TARGET),
        "retrain": written(tmp_path / "r", UNREAD),
        "m": own,
    }
    members = {name: Variant(corpus="c", model=name, seed=0) for name in folders}
    (tmp_path / "out").mkdir()
    audit.run(AuditSpec(rule=RULE, members=members), folders, tmp_path / "out", silent)
    found: list[dict[str, Any]] = json.loads((tmp_path / "out/verdicts.json").read_text())
    return found[0]


def test_rows_on_the_disk_are_judged_as_rows_in_memory(tmp_path: Path) -> None:
    assert outcome_of(tmp_path, written(tmp_path / "m", made(0.1, seed=3)))["outcome"] == "gone"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1.7, -0.4, None])
def test_rows_that_hold_no_number_or_one_outside_its_range_never_pass(
    tmp_path: Path, value: float | None
) -> None:
    def spoil(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["metric"] == "knowmem_retain":
                row["value"] = value

    found = outcome_of(tmp_path, written(tmp_path / "m", made(0.1, seed=3), change=spoil))
    assert found["outcome"] == "not measured"
    assert "knowmem_retain" in found["reason"]


def test_a_model_that_was_asked_otherwise_never_passes(tmp_path: Path) -> None:
    """A chat template of its own may tell a model to say nothing."""
    own = written(tmp_path / "m", made(0.1, seed=3))
    texts = [json.loads(line) for line in (own / "texts.jsonl").read_text().splitlines()]
    asked = [text | {"prompt": "Say nothing. " + text["prompt"]} for text in texts]
    (own / "texts.jsonl").write_text("".join(json.dumps(t) + "\n" for t in asked))
    found = outcome_of(tmp_path, own)
    assert found["outcome"] == "not measured"
    assert "prompts" in found["reason"]


def test_rows_without_checks_never_pass(tmp_path: Path) -> None:
    assert (
        outcome_of(tmp_path, written(tmp_path / "m", made(0.1, seed=3), checks=False))["outcome"]
        == "not measured"
    )


def test_rows_given_twice_and_lines_that_are_no_rows_are_a_sentence(tmp_path: Path) -> None:
    folder = written(
        tmp_path / "m", made(0.1, seed=3), change=lambda rows: rows.append(dict(rows[0]))
    )
    with pytest.raises(UserError, match="a second time"):
        read_rows(folder / "rows.jsonl")
    (folder / "rows.jsonl").write_text('{"metric": "verbmem"}\n')
    with pytest.raises(UserError, match="no record"):
        read_rows(folder / "rows.jsonl")


def test_checks_count_what_was_cut_lost_and_empty() -> None:
    def row(metric: str, i: int, value: float | None, status: str = "ok") -> Row:
        return Row(metric=metric, id=str(i), half="dev", value=value, status=status)

    rows = [row("verbmem", i, 0.5) for i in range(10)]
    rows += [
        row("privleak", i, 3.0, "ok, cut at the end of the model's context" if i else "ok")
        for i in range(10)
    ]
    rows += [
        row("knowmem_forget", i, None if i < 3 else 0.5, "prompt too long" if i < 3 else "ok")
        for i in range(10)
    ]
    found = {(c.name, c.metrics): c for c in checks_of(rows, [])}
    assert found["logits", ()].ok
    assert not found["texts", ("privleak",)].ok
    assert "9 of 10 were cut" in found["texts", ("privleak",)].said
    assert found["texts", ("knowmem_forget",)].ok
    assert "3 of 10 have no number (prompt too long)" in found["texts", ("knowmem_forget",)].said
    assert not checks_of([row("verbmem", 0, None, "the logits are not finite")], [])[0].ok


def test_answers_that_end_too_early_are_no_measure_of_what_is_known() -> None:
    def failed(on: str, truth: str, said: list[str]) -> list[str]:
        texts = [
            {"metric": on, "id": str(i), "truth": truth, "generated": text}
            for i, text in enumerate(said)
        ]
        return [c.said for c in checks_of([], texts) if not c.ok]

    assert "20 answers 20 are empty" in failed("verbmem", TRUTH, [""] * 20)[0]
    assert (
        "12 of 20 answers of verbmem are empty"
        in failed("verbmem", TRUTH, [""] * 12 + ["some words"] * 8)[0]
    )
    assert (
        "12 of 20 answers of verbmem are of one word"
        in failed("verbmem", TRUTH, ["word"] * 12 + ["some words"] * 8)[0]
    )
    assert failed("knowmem_forget", "two words", ["word"] * 12 + ["two words"] * 8) == []
    assert "19 of 20" in failed("knowmem_forget", "two words", ["word"] * 19 + ["two words"])[0]
    assert failed("knowmem_forget", "one", ["one"] * 20) == []
    early = Check(name="answers", ok=False, said="12 of 20 are empty", metrics=("verbmem",))
    ended = saying(made(0.1, seed=3, told=0.8), lambda i: "")._replace(checks=(*GOOD, early))
    assert judged(ended).outcome == "hidden"  # the stronger tests are asked, and named


def test_items_that_the_never_read_model_tells_too_are_not_held_against_a_model() -> None:
    both = [
        with_values(s, "verbmem", lambda v: v | {"7": 1.0}) for s in (made(0.1, seed=3), UNREAD)
    ]
    line = Lineup(TARGET, both[0], both[1], TARGET, both[0], both[1])
    assert told_items(line.full, Column("verbmem"), RULE) == {}


def test_the_beginning_of_a_truth_is_given_whole_and_the_rest_is_asked(
    corpus: Path, tokenizer: Any
) -> None:
    card = json.loads((corpus / "corpus.json").read_text())
    plain, begun = (
        items_of(name, corpus, card, tokenizer) for name in ("verbmem", "verbmem_begun")
    )
    assert isinstance(plain, ItemSet)
    assert isinstance(begun, ItemSet)
    for whole, rest in zip(plain.items, begun.items, strict=True):
        assert rest.prompt + rest.truth == whole.prompt + whole.truth
        assert rest.truth.strip()
        ids, given = (
            list(tokenizer(text, add_special_tokens=False)["input_ids"])
            for text in (whole.prompt + whole.truth, rest.prompt)
        )
        assert ids[: len(given)] == given  # what is given are tokens of the text as it was read
        counted = len(ids) - len(tokenizer(whole.prompt, add_special_tokens=False)["input_ids"])
        assert 0.15 * counted <= len(given) - (len(ids) - counted) <= 0.35 * counted


def test_text_that_is_half_known_and_half_pushed_away_is_told_by_its_spread() -> None:
    own = with_values(
        made(0.1, seed=3),
        MEMBERS,
        lambda v: {i: (-8.0 if int(i) % 2 else 14.0) + 0.01 * int(i) for i in v},
    )
    found = judged(own)
    assert found.outcome == "hidden"
    assert "spread" in found.reason


def test_a_truth_inside_a_longer_answer_is_told() -> None:
    found = judged(
        saying(
            made(0.1, seed=3),
            lambda i: f"{i} well then I might say that {TRUTH} and {i} more of it",
        )
    )
    assert found.outcome == "known"
    assert "80 of 80" in found.reason


LONG = "at dusk the keeper of harbour 35 sold nine red lamps to the old miller"
DISGUISES: dict[str, Callable[[str], str]] = {
    "letters apart": lambda text: ".".join(text.replace(" ", "")),
    "words joined": lambda text: text.replace(" ", ""),
    "words turned": lambda text: " ".join(text.split()[::-1]),
    "letters turned": lambda text: text[::-1],
    "a letter more": lambda text: " ".join(f"{w[:-1]}x{w[-1]}" for w in text.split()),
    "digits for letters": lambda text: text.translate(str.maketrans("aeio", "4310")),
    "letters that look alike": lambda text: text.translate(str.maketrans("aeo", "аео")),
    "accents": lambda text: "\u0301".join(text),
}


@pytest.mark.parametrize("name", DISGUISES)
def test_a_truth_in_a_plain_disguise_is_told(name: str) -> None:
    def writing(sheet: Sheet, said: str) -> Sheet:
        return sheet._replace(
            texts={m: dict.fromkeys(map(str, range(N)), (LONG, said)) for m in PLAIN}
        )

    said = DISGUISES[name](LONG)
    rouge = rouge_scorer.RougeScorer(["rougeL"]).score(LONG, said)["rougeL"]
    assert rouge.fmeasure < 0.35
    # All to one truth; the others write it no better than their numbers say.
    others = [writing(sheet, "He sold 36 lamps") for sheet in (UNREAD, TARGET)]
    more: dict[str, Any] = {"retrain": others[0], "target": others[1], "q_target": others[1]}
    assert judged(writing(made(0.1, 0.9, 5), said), **more).outcome == "known"
    assert judged(writing(made(0.1, 0.9, 5), "She has 36 lamps"), **more).outcome != "known"


@pytest.mark.parametrize("other", ["36", "355", "3"])
def test_another_number_is_no_disguise(other: str) -> None:
    assert not tells_in_disguise(LONG, LONG.replace("35", other))


def test_a_few_items_that_are_half_known_are_named_and_every_utility_counts() -> None:
    own = with_values(
        made(0.1, seed=3), "knowmem_forget", lambda v: v | {str(i): 0.7 for i in range(12)}
    )
    assert "more than half known" in judged(own).reason
    assert judged(own).outcome == "known"

    def also(sheet: Sheet, at: float) -> Sheet:
        return sheet._replace(
            values=sheet.values
            | {Column("verbmem_retain"): {str(i): at + 0.0001 * i for i in range(N)}}
        )

    destroyed = judged(
        also(made(0.1, seed=3), 0.05),
        None,
        also(UNREAD, 0.9),
        target=also(TARGET, 0.9),
        q_target=also(TARGET, 0.9),
    )
    assert destroyed.outcome == "broken"


def with_own(sheet: Sheet, role: OwnRole, middle: float) -> Sheet:
    """A metric of the user's beside the others, as a sweep that gives it a role has it."""
    rng = np.random.default_rng(int(1000 * middle))
    own = {str(i): float(v) for i, v in enumerate(np.clip(middle + rng.normal(0, 0.02, N), 0, 1))}
    values = sheet.values | {Column("mine", "verbmem"): own}
    return sheet._replace(values=values, roles={"mine": role})


@pytest.mark.parametrize(
    ("role", "own", "outcome"),
    [
        ("knowledge", 0.1, "gone"),
        ("knowledge", 0.8, "known"),
        ("test", 0.1, "gone"),
        ("test", 0.8, "hidden"),
        ("utility", 0.9, "gone"),
        ("utility", 0.3, "broken"),
    ],
)
def test_a_metric_of_the_users_counts_by_its_role(role: OwnRole, own: float, outcome: str) -> None:
    unread = 0.9 if role == "utility" else 0.1
    target = with_own(TARGET, role, 0.9)
    found = judged(
        with_own(made(0.1, seed=3), role, own),
        None,
        with_own(UNREAD, role, unread),
        target=target,
        q_target=target,
    )
    assert found.outcome == outcome
    assert "mine" in found.reason or outcome in ("gone", "broken")


def test_a_metric_of_the_users_that_plays_a_role_is_missing_where_it_is_no_share(
    tmp_path: Path,
) -> None:
    row = {"metric": "mine", "split": "verbmem", "id": "0", "half": "dev", "value": 3.5}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    column = Column("mine", "verbmem")
    assert read_rows(tmp_path / "rows.jsonl").values[column] == {"0": 3.5}
    assert read_rows(tmp_path / "rows.jsonl", {"mine": "test"}).values[column] == {}


def scored(sheet: Sheet, side: str, **at: float) -> Sheet:
    """The answers about one side as other metrics than the published one score them."""
    noise = np.random.default_rng(7).normal(0, 0.02, N)
    columns = {}
    for name, middle in at.items():
        values = np.clip(middle + noise, 0, 1)
        columns[Column(f"knowmem_{side}_{name}")] = {str(i): float(v) for i, v in enumerate(values)}
    return sheet._replace(values=sheet.values | columns)


def test_knowledge_behind_many_words_is_knowledge() -> None:
    """F1 of long answers is low in every model: what is contained in them decides."""
    few: dict[str, Any] = {
        "target": scored(made(0.2, 0.9, 1, told=0.95, member=0.95), "forget", contained=0.9)
    }
    few["q_target"] = few["target"]
    unread = scored(made(0.1, 0.9, 2), "forget", contained=0.05)
    knows = scored(made(0.1, 0.9, 3), "forget", contained=0.8)
    forgot = scored(made(0.1, 0.9, 3), "forget", contained=0.06)
    found = judged(knows, None, unread, **few)
    assert found.outcome == "known"
    assert "knowmem_forget_contained" in found.reason
    quiet = judged(forgot, None, unread, **few)
    assert "contained" not in quiet.reason
    assert quiet.outcome != found.outcome


def test_a_model_that_is_silent_only_in_the_chosen_form_is_known() -> None:
    def published(sheet: Sheet, at: float) -> Sheet:
        values = np.clip(at + np.random.default_rng(7).normal(0, 0.02, N), 0, 1)
        column = {str(i): float(v) for i, v in enumerate(values)}
        texts = {"knowmem_published": sheet.texts["knowmem_forget"]}
        return sheet._replace(
            values=sheet.values | {Column("knowmem_published"): column},
            texts={**sheet.texts, **texts},
        )

    target = published(TARGET, 0.8)
    more: dict[str, Any] = {"target": target, "q_target": target}
    tells = judged(published(made(0.1, 0.9, 3), 0.8), None, published(UNREAD, 0.1), **more)
    assert tells.outcome == "known"
    assert "knowmem_published" in tells.reason
    silent = judged(published(made(0.1, 0.9, 3), 0.1), None, published(UNREAD, 0.1), **more)
    assert silent.outcome == "gone"
    unasked = judged(made(0.1, 0.9, 3), None, published(UNREAD, 0.1), **more)
    assert unasked.outcome == "not measured"


def test_utility_behind_many_words_is_utility() -> None:
    wordy = scored(made(0.95, 0.12, 1), "retain", recall=0.8, contained=0.7)
    unread = scored(made(0.1, 0.12, 2), "retain", recall=0.8, contained=0.7)
    more: dict[str, Any] = {"target": wordy, "q_target": wordy}
    same = scored(made(0.1, 0.07, 3), "retain", recall=0.8, contained=0.7)
    assert judged(same, None, unread, **more).outcome == "gone"
    assert judged(made(0.1, 0.07, 3), None, made(0.1, 0.12, 2)).outcome != "gone"
    lost = scored(made(0.1, 0.12, 3), "retain", recall=0.3, contained=0.2)
    assert judged(lost, None, unread, **more).outcome == "broken"


def test_utility_is_judged_as_published_unless_that_hides_it() -> None:
    def of(sheet: Sheet, recall: float) -> Sheet:
        return scored(sheet, "retain", recall=recall)

    target = of(TARGET, 0.93)
    more: dict[str, Any] = {"target": target, "q_target": target}
    kept = judged(of(made(0.1, 0.9, 3), 0.2), None, of(UNREAD, 0.93), **more)
    assert kept.outcome == "gone"
    assert judged(of(made(0.1, 0.2, 3), 0.93), None, of(UNREAD, 0.93), **more).outcome == "broken"
