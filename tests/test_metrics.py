"""Every metric at both ends of its range, by hand in between, and on what cannot be scored."""

import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import hmean, ks_2samp

from remnant.corpus import ITEM_SETS, METRIC_GROUPS, METRICS
from remnant.errors import Unscorable
from remnant.functional import membership, memory, stats, tofu
from remnant.functional.choices import accuracy
from remnant.functional.text import rouge_l
from remnant.functional.tokens import Tokens
from remnant.methods import metric


def tokens(
    *logp: float, rank: list[int] | None = None, mean: float = -1.0, std: float = 1.0
) -> Tokens:
    n = len(logp)
    return Tokens(
        np.array(logp),
        np.array(rank if rank is not None else [0] * n, float),
        np.full(n, mean),
        np.full(n, std),
    )


NOTHING = tokens()
KNOWN, UNKNOWN = tokens(*[0.0] * 5), tokens(*[-9.0] * 5, rank=[7] * 5)


def test_min_k_takes_the_lowest_share() -> None:
    # int(5 * 0.4) = 2 of the first, and at least one of the second, where int(2 * 0.4) is 0.
    assert membership.min_k(tokens(-0.1, -3.0, -0.2, -2.0, -0.5)) == pytest.approx(2.5)
    assert membership.min_k(tokens(-1.0, -0.3)) == 1.0
    assert membership.min_k(tokens(-0.1, -3.0, -0.2, -2.0, -0.5), ratio=1.0) == pytest.approx(
        5.8 / 5
    )
    with pytest.raises(ValueError, match="ratio"):
        membership.min_k(KNOWN, ratio=0.0)


def test_min_k_plus_plus_by_hand() -> None:
    found = Tokens(
        np.array([-1.0, -4.0, -2.0]),
        np.zeros(3),
        np.array([-2.0, -3.0, -3.0]),
        np.array([1.0, 0.5, 2.0]),
    )
    assert membership.min_k_plus_plus(found, ratio=0.4) == pytest.approx(
        2.0
    )  # standings 1, -2, 0.5
    assert math.isfinite(membership.min_k_plus_plus(tokens(-1.0, std=0.0)))


def test_ratios_by_hand() -> None:
    text = "some text " * 9
    assert membership.zlib_ratio(tokens(-1.0, -3.0), text) == 2 / len(zlib.compress(text.encode()))
    assert membership.lower_case_ratio(tokens(-1.0, -3.0), tokens(-4.0)) == 0.5
    assert membership.reference_gap(tokens(-1.0), tokens(-4.0)) == -3.0
    assert membership.recall(tokens(-2.0), tokens(-3.0)) == -1.5
    for function in (membership.lower_case_ratio, membership.recall):
        with pytest.raises(Unscorable, match="no loss"):
            function(*((KNOWN, KNOWN)))


ONE: list[Callable[[Tokens], float]] = [
    membership.min_k,
    membership.min_k_plus_plus,
    membership.mean_loss,
    memory.exact_memorization,
    memory.extraction_strength,
    memory.probability,
    memory.perplexity,
    tofu.answer_probability,
    lambda t: membership.zlib_ratio(t, ""),
    lambda t: membership.lower_case_ratio(t, UNKNOWN),
    lambda t: membership.reference_gap(t, KNOWN),
    lambda t: membership.recall(t, KNOWN),
    lambda t: tofu.choice_probability(t, [UNKNOWN]),
    lambda t: tofu.truth_ratio(t, [UNKNOWN]),
]


@pytest.mark.parametrize("function", ONE)
def test_a_text_without_tokens_has_a_reason_and_no_number(
    function: Callable[[Tokens], float],
) -> None:
    with pytest.raises(Unscorable, match="token"):
        function(NOTHING)


@pytest.mark.parametrize("function", ONE)
def test_one_token_gives_a_number(function: Callable[[Tokens], float]) -> None:
    assert math.isfinite(function(tokens(-1.0, rank=[3])))


@pytest.mark.parametrize(
    "function",
    [
        membership.min_k,
        membership.min_k_plus_plus,
        membership.mean_loss,
        lambda t: membership.zlib_ratio(t, "a b"),
        lambda t: membership.lower_case_ratio(t, UNKNOWN),
        lambda t: membership.reference_gap(t, UNKNOWN),
    ],
)
def test_attacks_are_low_for_known_text(function: Callable[[Tokens], float]) -> None:
    assert function(KNOWN) < function(tokens(-1.0, -2.0)) < function(UNKNOWN)


def test_memorization_at_both_ends_and_by_hand() -> None:
    for function in (memory.exact_memorization, memory.extraction_strength, memory.probability):
        assert function(KNOWN) == 1.0
    assert memory.exact_memorization(UNKNOWN) == memory.extraction_strength(UNKNOWN) == 0.0
    assert memory.probability(UNKNOWN) == pytest.approx(math.exp(-9))
    some = tokens(-1, -1, -1, -1, rank=[0, 2, 0, 0])
    assert memory.exact_memorization(some) == 0.75
    assert memory.extraction_strength(some) == 0.5
    assert memory.extraction_strength(tokens(-1, -1, rank=[0, 1])) == 0.0
    assert memory.perplexity(KNOWN) == 1.0
    assert memory.perplexity(tokens(-math.log(7))) == pytest.approx(7)


def test_longest_run_by_hand() -> None:
    truth = "the brass lantern was sold by tailors"
    assert memory.longest_run(truth, truth) == 1.0
    assert memory.longest_run(truth, "nothing here") == memory.longest_run(truth, "") == 0.0
    assert memory.longest_run(truth, "a Brass Lantern was found, sold by tailors") == pytest.approx(
        3 / 7
    )
    with pytest.raises(Unscorable, match="no word"):
        memory.longest_run("...", "word")


def test_leak_is_the_mean_best_over_all_choices() -> None:
    import itertools

    samples = ["one", "one two", "nothing", "one two three", "two"]
    scores = [rouge_l("one two three", s) for s in samples]
    for k in (1, 3, 5):
        best = [max(c) for c in itertools.combinations(scores, k)]
        assert memory.leak_at_k("one two three", samples, k=k) == pytest.approx(
            sum(best) / len(best)
        )
    assert memory.leak_at_k("one", ["one"] * 4) == 1.0
    assert memory.leak_at_k("one", ["two"] * 4) == 0.0
    with pytest.raises(ValueError, match="between 1 and the 3"):
        memory.leak_at_k("one", ["a"] * 3)


@pytest.mark.parametrize(
    ("truth", "reason"), [("", "empty"), (" \n", "empty"), ("漢字 — ¿?", "no letter")]
)
def test_a_truth_that_rouge_cannot_read_is_no_silent_zero(truth: str, reason: str) -> None:
    with pytest.raises(Unscorable, match=reason):
        rouge_l(truth, "word")
    assert tofu.rouge_recall("漢字 — ¿?", "漢") == 0.5
    with pytest.raises(Unscorable, match="no letter"):
        tofu.rouge_recall("— ¿?", "word")
    assert rouge_l("word", "") == rouge_l("word", "漢") == tofu.rouge_recall("word", "") == 0.0


def test_rouge_recall_stems_and_ignores_what_is_too_much() -> None:
    assert tofu.rouge_recall(
        "he writes novels", "He writing a novel about everything"
    ) == pytest.approx(1.0)
    assert rouge_l("he writes novels", "He writing a novel about everything") < 0.5


def test_tofu_by_a_slow_second_implementation() -> None:
    rng = np.random.default_rng(0)

    def answer() -> Tokens:
        return tokens(*(-rng.exponential(1.0, rng.integers(1, 9))))

    def chance(t: Tokens) -> float:
        product = 1.0
        for logp in t.logp:
            product *= math.exp(logp)
        return float(product ** (1 / len(t.logp)))

    own, wrong = answer(), [answer() for _ in range(5)]
    assert tofu.choice_probability(own, wrong) == pytest.approx(
        chance(own) / (chance(own) + sum(map(chance, wrong)))
    )
    product = 1.0
    for w in wrong:
        product *= chance(w)
    assert tofu.truth_ratio(own, wrong) == pytest.approx(product ** (1 / 5) / (chance(own) + 1e-10))
    with pytest.raises(Unscorable, match="no wrong answer"):
        tofu.truth_ratio(own, [])
    with pytest.raises(Unscorable, match="has no token"):
        tofu.truth_ratio(own, [own, NOTHING])
    ratios = rng.exponential(1.0, 50)
    assert tofu.forget_truth(ratios) == pytest.approx(sum(min(r, 1 / r) for r in ratios) / 50)
    assert tofu.useful_truth(ratios) == pytest.approx(sum(max(0, 1 - r) for r in ratios) / 50)
    columns = {s: rng.random((3, 20)) for s in tofu.USEFUL}
    nine = []
    for s in tofu.USEFUL:
        nine += [
            sum(columns[s][0]) / 20,
            sum(columns[s][1]) / 20,
            sum(max(0, 1 - r) for r in columns[s][2]) / 20,
        ]
    assert (
        tofu.model_utility(columns)
        == pytest.approx(9 / sum(1 / x for x in nine))
        == pytest.approx(hmean(nine))
    )
    columns["facts"][0] = 0.0
    assert tofu.model_utility(columns) == 0.0
    other = rng.exponential(1.4, 40)
    assert tofu.forget_quality(ratios, other) == ks_2samp(ratios, other).pvalue
    assert tofu.forget_quality(ratios, ratios) == 1.0
    assert tofu.forget_quality(ratios, ratios + 100) < 1e-9


def test_truth_at_both_ends() -> None:
    assert tofu.forget_truth(np.array([1.0])) == 1.0
    assert tofu.forget_truth(np.array([0.0, 1e300])) == pytest.approx(0.0)
    assert tofu.useful_truth(np.array([0.0])) == 1.0
    assert tofu.useful_truth(np.array([1.0, 9.0])) == 0.0


def test_true_positives_at_a_low_rate() -> None:
    holdout = np.arange(100.0)
    assert stats.true_positives(np.full(10, -1.0), holdout, 0.01) == 1.0
    assert stats.true_positives(np.full(10, 50.0), holdout, 0.01) == 0.0
    assert (
        stats.true_positives(np.array([0.5, 1.0, -3.0, 7.0]), holdout, 0.01) == 0.5
    )  # below 1: one in a hundred others is too
    assert (holdout < 1).mean() <= 0.01
    assert stats.true_positives(np.array([0.0]), np.array([1.0]), 0.01) == 1.0
    with pytest.raises(ValueError, match="both sides"):
        stats.true_positives(np.zeros(0), holdout, 0.01)


def test_the_table_is_complete() -> None:
    for name, entry in METRICS.items():
        found = metric(name)
        assert set(entry.on) <= set(ITEM_SETS), name
        assert set(entry.params) <= set(found.params), name
        assert (found.load().__doc__ or "").strip(), name
        assert entry.span
        assert (entry.kind is not None) == (entry.role == "test"), name
        assert entry.title or entry.beside or entry.role in ("test", "shown"), name
        assert "{}" in entry.told or entry.beside or entry.role != "knowledge", name
        assert entry.instead_of in ("", *METRICS), name
        if entry.beside:
            published = METRICS[entry.beside]
            assert (published.on, published.role) == (entry.on, entry.role), name
    for group, members in METRIC_GROUPS.items():
        assert set(members) <= set(METRICS), group


def test_bootstrap_of_groups_is_the_plain_one_for_one_group() -> None:
    values: Any = np.random.default_rng(0).random(30)
    plain = stats.bootstrap_mean(values, 200, 0)
    assert plain is not None
    found = stats.bootstrap(lambda i: float(values[i[0]].mean()), (30,), 200, 0)
    assert found == pytest.approx(plain)
    assert stats.bootstrap(lambda i: 0.0, (3, 0), 10, 0) is None


def test_accuracy_is_the_choice_of_the_largest_summed_log_probability() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        logp = [-rng.exponential(1.0, rng.integers(1, 4)) for _ in range(4)]
        said = [tokens(*x) for x in logp]
        best = max(range(4), key=lambda i: sum(logp[i]))
        assert [accuracy(said, i) for i in range(4)] == [float(i == best) for i in range(4)]
    alike = [tokens(-1.0)] * 3
    assert [accuracy(alike, i) for i in range(3)] == [1.0, 0.0, 0.0]
    with pytest.raises(Unscorable, match="nothing to choose"):
        accuracy(alike[:1], 0)
    with pytest.raises(Unscorable, match="no token"):
        accuracy([*alike, NOTHING], 0)
