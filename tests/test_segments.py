"""Texts of any script: words, ROUGE, long runs, repeated text.

Latin text as published, digit for digit.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from remnant.errors import Unscorable
from remnant.functional import memory, segments, text, tofu
from remnant.score import score_file
from tests.test_text_and_stats import slow_rouge_l

# Each: a text, a stretch of it, how many words (or characters, where words are not written apart)
# the two have.
SCRIPTS = {
    "Russian": ("Семь медных фонарей висели над тихой гаванью", "медных фонарей висели", 7, 3),
    "Japanese": ("静かな港に七つの灯が揺れる", "七つの灯", 13, 4),
    "Chinese": ("七盏铜灯挂在宁静的港湾上", "挂在宁静", 12, 4),
    "Arabic": ("سبعة فوانيس نحاسية معلقة فوق الميناء الهادئ", "معلقة فوق", 7, 2),
    "Hindi": ("शांत बंदरगाह पर सात पीतल की लालटेनें लटकी थीं", "सात पीतल", 9, 2),
    "Greek": ("Επτά ορειχάλκινα φανάρια κρέμονταν πάνω από το λιμάνι", "πάνω από", 8, 2),
    "Thai": ("โคมทองเหลืองเจ็ดดวงแขวนอยู่เหนือท่าเรือ", "แขวนอยู่", 32, 6),
    "Korean": ("조용한 항구 위에 일곱 개의 등불이 걸려 있었다", "일곱 개의", 8, 2),
    "Hebrew": ("שבעה פנסי נחושת נתלו מעל הנמל השקט", "נתלו מעל", 7, 2),
    "Khmer": ("ចង្កៀងប្រាំពីរព្យួរលើកំពង់ផែ", "ព្យួរ", 13, 2),
    "mixed": ("港の lantern 7 個", "lantern 7", 5, 2),
}


@pytest.mark.parametrize("language", SCRIPTS)
def test_every_script_gets_numbers_at_both_ends_and_between(language: str) -> None:
    whole, part, n, m = SCRIPTS[language]
    assert not segments.is_latin(whole)
    assert (len(segments.words(whole)), len(segments.words(part))) == (n, m)
    for metric in (text.overlap, text.rouge_l_unicode, memory.longest_run, tofu.rouge_recall):
        assert metric(whole, whole) == 1.0
        assert (
            metric(whole, "another language") == metric(whole, "") == metric(whole, "。…!") == 0.0
        )
    assert text.overlap(whole, part) == pytest.approx(2 * m / (n + m))
    assert memory.longest_run(whole, part) == tofu.rouge_recall(whole, part) == pytest.approx(m / n)
    assert memory.leak_at_k(whole, ["", whole, "", ""]) == 1.0
    assert text.way_of("overlap", whole) == "ROUGE over Unicode words"


# Values of the package rouge-score itself, F1 and stemmed recall, frozen.
PUBLISHED = [
    (
        "The brass lantern, sold in 1984 by tailors.",
        "a Brass lantern was sold by tailors in 1984",
        0.5882352941176471,
        0.625,
    ),
    ("élève naïve à l'été", "eleve naive a l'ete", 0.1818181818181818, 0.16666666666666666),
    ("Gdańsk and Łódź are towns", "Gdansk and Lodz are towns", 0.5454545454545454, 0.5),
    (
        "the pore of each of the ten probes is 4 μm wide",
        "the pore of a probe is 4 wide",
        0.6,
        0.5833333333333334,
    ),
    ("Tiếng Việt ở đây rất hay", "tieng Viet o day rat hay", 0.14285714285714288, 0.125),
    ("don't stop", "dont stop", 0.4, 0.3333333333333333),
    (
        "Hsiao Yun-Hwa (蕭) wrote the book on birds of the far island",
        "Hsiao wrote on birds",
        0.5,
        0.3333333333333333,
    ),
    ("he writes novels", "He writing a novel about everything", 0.2222222222222222, 1.0),
]


@pytest.mark.parametrize(("truth", "generated", "f1", "recall"), PUBLISHED)
def test_latin_text_is_read_as_published(
    truth: str, generated: str, f1: float, recall: float
) -> None:
    assert segments.is_latin(truth)
    assert text.overlap(truth, generated) == text.rouge_l(truth, generated) == f1
    assert tofu.rouge_recall(truth, generated) == recall
    assert text.way_of("overlap", truth) == ""


def test_a_text_of_two_scripts_is_not_read_by_its_latin_letters_alone() -> None:
    assert text.rouge_l("Answer: 東京タワー", "東京タワー") == 0.0  # known, and yet nothing by a-z
    assert text.overlap("Answer: 東京タワー", "東京タワー") == pytest.approx(10 / 11)
    assert text.overlap("Microsoft купила GitHub", "купила") == pytest.approx(1 / 2)
    assert text.overlap("1984 год", "1984") == pytest.approx(2 / 3)


def test_rouge_over_unicode_words_equals_the_slow_reference() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        a, b = (" ".join(rng.choice(list("абвг"), rng.integers(1, 8))) for _ in range(2))
        assert text.rouge_l_unicode(a, b) == pytest.approx(slow_rouge_l(a, b))
        a, b = ("".join(rng.choice(list("一二三四"), rng.integers(1, 8))) for _ in range(2))
        assert text.rouge_l_unicode(a, b) == pytest.approx(slow_rouge_l(" ".join(a), " ".join(b)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ΟΔΟΣ", "οδος"),
        ("ｶﾀｶﾅ", "カタカナ"),
        ("\u0439", "\u0438\u0306"),  # a letter, and the same of two parts
        ("при\u00adвет", "привет"),  # a hyphen that is not seen
        ("ＡＢ漢", "ab漢"),
    ],
)
def test_what_reads_the_same_is_the_same(one: str, other: str) -> None:
    assert segments.words(one) == segments.words(other)
    assert text.rouge_l_unicode(one, other) == 1.0


@pytest.mark.parametrize("truth", ["— ¿?", "。。。", "😀"])
def test_a_truth_without_letters_has_a_reason(truth: str) -> None:
    with pytest.raises(Unscorable, match="no letter and no digit"):
        text.overlap(truth, truth)


def test_signs_of_collapse_read_scripts_without_spaces() -> None:
    corpus = set(segments.words("静かな港に七つの灯が揺れる。人は眠る"))
    good, loop = (
        text.signs_of_collapse(["静かな港に灯が揺れる"], corpus),
        text.signs_of_collapse(["港港港港港港港港港"], corpus),
    )
    assert (good.repetition, good.unknown, good.script) == (0.0, 0.0, 0.0)
    assert loop.repetition > 0.8
    assert (
        text.signs_of_collapse(["тихая гавань"], corpus).script
        == text.signs_of_collapse(["тихая гавань"], corpus).unknown
        == 1.0
    )


def test_halves_and_beginnings_of_texts_without_spaces() -> None:
    assert segments.halves("one two  three") == ("one ", "two three")
    assert segments.halves("七つの灯") == ("七つ", "の灯")
    assert segments.halves("one") == ("", "one")
    assert segments.beginning("a b  c d", 3) == "a b "
    assert segments.beginning("静かな港に", 2) == "静かな港"


def test_long_runs_are_runs_of_words_or_twice_as_many_characters() -> None:
    tokens = segments.words("a b c d e f g h")
    assert segments.long_runs(tokens, 3) == segments.ngrams(tokens, 3)
    assert segments.long_runs(segments.words("七盏铜灯挂"), 2) == segments.ngrams(
        list("七盏铜灯挂"), 4
    )
    assert segments.long_runs(segments.words("灯 a 港湾"), 2) == [
        ("灯", "a", "港"),
        ("a", "港", "湾"),
    ]


def test_short_text_is_known_as_a_whole_or_inside_another() -> None:
    known = segments.Known(
        [
            "Who sold the brass lantern in Aldwick?",
            "Yes.",
            "a longer text " + " ".join(map(str, range(100, 140))),
        ]
    )
    assert known.share("who sold the BRASS lantern in aldwick") == 1.0
    assert known.share("yes") == 1.0
    assert known.share("Yes, he said, and went home") == 0.0  # one word in common is chance
    assert known.share(
        "We know who sold the brass lantern in Aldwick, do we not, my dear old friend?"
    ) == pytest.approx(7 / 16)
    assert known.share("110 111 112 113 114 115") == 1.0
    assert (
        known.share("110 111 112")
        == known.share("")
        == known.share("nothing of the kind was ever written here")
        == 0.0
    )
    assert segments.repeated(["A b.", "a B", "c", "...", "!!!", "..."]) == 2


def test_a_russian_and_an_empty_truth_are_scored_or_said(tmp_path: Path) -> None:
    lines = [
        {
            "metric": "verbmem",
            "id": 1,
            "truth": "медных фонарей висели",
            "generated": "медных фонарей",
        },
        {"metric": "verbmem", "id": 2, "truth": "七つの灯", "generated": "七つの灯"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines), encoding="utf-8"
    )
    (cell,) = score_file(path)
    assert cell.value == pytest.approx(90.0)
