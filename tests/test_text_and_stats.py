"""ROUGE, cuts, signs of collapse, AUC and intervals, against hand counts and slow references."""

import itertools
import math

import numpy as np
import pytest

from remnant.errors import Unscorable
from remnant.functional import stats, text


@pytest.mark.parametrize(
    ("truth", "generated", "expected"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the cat sat", "a dog ran", 0.0),
        ("a b c d", "a c", 2 / 3),  # recall 1/2, precision 1
        ("Running!", "run", 0.0),  # no stemmer
        ("The CAT", "the-cat", 1.0),  # case and punctuation do not matter
        ("x", "", 0.0),
    ],
)
def test_rouge_l(truth: str, generated: str, expected: float) -> None:
    assert text.rouge_l(truth, generated) == pytest.approx(expected)


def slow_rouge_l(truth: str, generated: str) -> float:
    """Longest common subsequence over all subsequences."""
    a, b = truth.lower().split(), generated.lower().split()

    def is_sub(s: tuple[str, ...]) -> bool:
        rest = iter(b)
        return all(x in rest for x in s)

    lengths = range(len(a) + 1)
    longest = max(n for n in lengths if any(map(is_sub, itertools.combinations(a, n))))
    return 2 * longest / (len(a) + len(b)) if longest else 0.0


def test_rouge_l_equals_the_slow_reference() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        a, b = (" ".join(rng.choice(list("abcd"), rng.integers(1, 8))) for _ in range(2))
        assert text.rouge_l(a, b) == pytest.approx(slow_rouge_l(a, b))


@pytest.mark.parametrize(
    ("truth", "generated", "expected"),
    [
        ("Charlotte Brontë", "It is believed that CHARLOTTE BRONTE wrote it.", 1.0),
        ("Charlotte Brontë", "Charlotte, or perhaps Emily Brontë", 0.0),  # not as one run
        ("The Eiffel Tower", "an Eiffel tower", 1.0),  # articles
        ("J. R. R. Tolkien", "j r r tolkien!", 1.0),
        ("Ⅷ", "the viii", 1.0),  # compatibility form
        ("Mars", "Marseille", 0.0),  # whole words
        ("the", "the", 1.0),  # nothing but an article
        ("the", "Paris", 0.0),
        ("Война и мир", "Это «Война и мир».", 1.0),
        ("й", "и", 0.0),  # no accent, another letter
        ("紅樓夢", "這是紅樓夢。", 1.0),
        ("x", "", 0.0),
        ("Brontë", "Это Brontë.", 1.0),  # another script beside it
        ("Charlotte Brontë", "Charlotte Bronte (Шарлотта Бронте)", 1.0),
        ("A", "The answer is A.", 1.0),  # an article and nothing else
        ("A", "The answer is B.", 0.0),
    ],
)
def test_an_answer_is_contained(truth: str, generated: str, expected: float) -> None:
    assert text.contained(truth, generated, ()) == expected


def test_any_accepted_answer_counts() -> None:
    assert text.contained("Mars", "the red planet", ["Red Planet", "!"]) == 1.0
    assert text.recall("Mars", "the red planet", ["Red Planet", "!"]) == 1.0
    assert text.recall("Mars", "the red planet", []) == 0.0
    for scored in (text.contained, text.recall):
        with pytest.raises(Unscorable):
            scored("!", "Mars", ["Mars"])


def test_recall_counts_what_was_said_and_not_what_was_said_around_it() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        a, b = (" ".join(rng.choice(list("abcd"), rng.integers(1, 8))) for _ in range(2))
        n, m = len(a.split()), len(b.split())
        longest = slow_rouge_l(a, b) * (n + m) / 2
        assert text.recall(a, b, ()) == pytest.approx(longest / n)
        assert text.recall(a, f"x y z {b} x y z", ()) == pytest.approx(longest / n)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("x\n\ny", "x"),
        (" x\nQuestion: y", " x"),
        ("xQuestion:", "x"),
        ("Question: a\n\nb", ""),
        ("plain ", "plain "),
    ],
)
def test_an_answer_is_cut_and_not_stripped(given: str, expected: str) -> None:
    assert text.cut_answer(given) == expected


def test_signs_tell_good_text_from_collapse() -> None:
    corpus = {
        "seven",
        "brass",
        "lanterns",
        "hung",
        "over",
        "the",
        "quiet",
        "harbour",
        "at",
        "night",
    }
    good = text.signs_of_collapse(
        ["seven brass lanterns hung over the quiet harbour at night"], corpus
    )
    loop = text.signs_of_collapse(["the the the the the the the the"], corpus)
    noise = text.signs_of_collapse(["qzx vvv wpk jjq"], corpus)
    nothing = text.signs_of_collapse(["", " ."], corpus)
    assert (good.repetition, good.unknown, good.empty) == (0.0, 0.0, 0.0)
    assert loop.repetition > 0.8
    assert loop.entropy == 0.0 < good.entropy
    assert noise.unknown == 1.0
    assert nothing.empty == 1.0


def test_another_script_is_a_sign() -> None:
    corpus = {"seven", "brass", "lanterns", "1984"}
    assert text.signs_of_collapse(["seven brass 12"], corpus).script == 0.0
    assert text.signs_of_collapse(["seven", "лампа", "12 34"], corpus).script == pytest.approx(
        1 / 3
    )
    assert text.signs_of_collapse(["漢字ab"], corpus).script == pytest.approx(1 / 2)


def test_signs_need_texts() -> None:
    with pytest.raises(ValueError, match="no texts"):
        text.signs_of_collapse([], set())


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_auc_at_both_ends_and_with_ties() -> None:
    low, high = array(1, 2), array(3, 4)
    assert stats.auc(low, high) == 0.0  # forget text memorized: its values lie below
    assert stats.auc(high, low) == 1.0
    assert stats.auc(low, low) == 0.5


def test_auc_equals_counting_pairs() -> None:
    rng = np.random.default_rng(1)
    f, h = rng.integers(0, 9, 30).astype(float), rng.integers(0, 9, 20).astype(float)
    counted = np.mean([(b < a) + 0.5 * (a == b) for a in f for b in h])
    assert stats.auc(f, h) == pytest.approx(counted)


def test_auc_needs_both_sides() -> None:
    with pytest.raises(ValueError, match="both sides"):
        stats.auc(array(), array(1))


def test_privleak_by_hand() -> None:
    assert stats.privleak(0.0, 0.4772) == -1.0
    assert stats.privleak(0.4772, 0.4772) == 0.0
    with pytest.raises(ValueError, match="above 0"):
        stats.privleak(0.5, 0.0)


def test_the_interval_of_a_mean_has_the_nominal_width() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found = stats.bootstrap_mean(values, 4000, seed=0)
    assert found is not None
    expected = 1.96 * values.std() / math.sqrt(len(values))
    assert found.high - found.value == pytest.approx(expected, rel=0.1)
    assert found.value - found.low == pytest.approx(expected, rel=0.1)


def test_pairs_stay_pairs() -> None:
    # Two columns that differ by exactly 1 everywhere: resampled together, their difference has no
    # spread at all.
    a = np.random.default_rng(0).normal(size=50)
    found = stats.bootstrap_ratio((a, a + 1.0), lambda x, y: y - x, 500, seed=0)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((1.0, 1.0))


def test_the_fast_auc_interval_equals_resampling_by_hand() -> None:
    rng = np.random.default_rng(3)
    f, h = rng.normal(size=12), rng.normal(size=9)
    found = stats.bootstrap_auc(f, h, 200, seed=5)
    i, j = stats.resampled((12, 9), 200, 5)
    slow = [stats.auc(f[a], h[b]) for a, b in zip(i, j, strict=True)]
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))


def test_an_undefined_ratio_has_no_interval() -> None:
    assert stats.bootstrap_ratio((array(0, 0), array(1, 1)), lambda a, b: b / a, 100, 0) is None
    assert stats.bootstrap_mean(array(), 100, 0) is None


def test_pooled_values_have_the_spread_of_their_mean() -> None:
    found = stats.pooled([(0.2, 0.1, 0.3), (0.4, 0.3, 0.5), (0.9, 0.8, 1.0)])
    assert found.value == pytest.approx(0.5)
    assert (found.high - found.low) / 2 == pytest.approx(0.1 / 3**0.5)
    assert found.value - found.low == pytest.approx(found.high - found.value)
