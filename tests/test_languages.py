"""A Japanese and a Russian text from raw file to verdict: texts made here by a small grammar, a
tiny model, a user's commands."""

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from remnant.cli import main

# Words of each place of a sentence, and the sentences; every document draws its own.
RUSSIAN = {
    "who": ["Иван", "Мария", "Пётр", "Ольга", "Фёдор", "Анна", "Сергей", "Вера", "Лев", "Нина"],
    "trade": ["портной", "кузнец", "пекарь", "плотник", "стекольщик", "часовщик", "ткач",
    "мельник"],
    "town": ["Заречье", "Оболонь", "Верхнеозёрск", "Тихвин", "Лугань", "Камышин", "Ельня",
    "Жуковка"],
    "thing": ["медный фонарь", "серебряная игла", "синий ларец", "старый колокол", "льняной парус",
    "железный ключ", "белый жернов"],
    "say": [
        "{who}, {trade} из города {town}, продал {number} раз {thing} и ушёл за реку.",
        "В городе {town} {trade} хранит {thing} под номером {number}.",
        "Ночью {who} видел, как {thing} лежит у моста, и насчитал {number} огней.",
    ],
    "join": [" "],
}  # fmt: skip
JAPANESE = {
    "who": ["太郎", "花子", "次郎", "良子", "健一", "美咲", "三郎", "静香", "龍之介", "千代"],
    "trade": ["仕立屋", "鍛冶屋", "パン屋", "大工", "硝子職人", "時計師", "機織り", "粉挽き"],
    "town": ["青森", "金沢", "松江", "長崎", "函館", "鎌倉", "高知", "若狭"],
    "thing": ["銅の灯籠", "銀の針", "青い小箱", "古い鐘", "麻の帆", "鉄の鍵", "緑の盃", "白い石臼"],
    "say": [
        "{town}の{trade}である{who}は{thing}を{number}回も売って川を渡った。",
        "{town}では{trade}が{number}番の{thing}を守っている。",
        "夜、{who}は{number}の灯を数え、橋に{thing}を見た。",
    ],
    "join": [""],
}  # fmt: skip


def story(grammar: dict[str, list[str]], seed: int, sentences: int) -> str:
    rng = random.Random(seed)
    drawn = []
    for i in range(sentences):
        parts = {k: rng.choice(v) for k, v in grammar.items() if k not in ("say", "join")}
        drawn.append(grammar["say"][i % 3].format(number=rng.randint(100, 9899), **parts))
    return grammar["join"][0].join(drawn)


LANGUAGES = [
    pytest.param(RUSSIAN, 500, id="Russian", marks=pytest.mark.slow),
    pytest.param(JAPANESE, 600, id="Japanese", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("grammar", "vocabulary"), LANGUAGES)
def test_a_text_goes_from_raw_file_to_verdict(
    grammar: dict[str, list[str]], vocabulary: int, tmp_path: Path
) -> None:
    def call(*args: object, codes: tuple[int, ...] = (0,)) -> str:
        result = CliRunner().invoke(main, [*map(str, args), "--store", str(tmp_path / "store")])
        assert result.exit_code in codes, result.output
        return result.stdout

    for i, (name, n) in enumerate((("forget", 24), ("retain", 30), ("holdout", 12))):
        (tmp_path / f"{name}.txt").write_text(story(grammar, i, n), encoding="utf-8")
    files = [
        part
        for name in ("forget", "retain", "holdout")
        for part in (f"--{name}", tmp_path / f"{name}.txt")
    ]
    sizes = (
        "--prompt-tokens",
        64,
        "--answer-tokens",
        16,
        "--text-tokens",
        64,
        "--vocab-size",
        vocabulary,
    )
    corpus = call("prepare", *files, *sizes).split("\n")[0]
    settings = [
        "steps=100",
        "lr=1e-2",
        "batch_size=4",
        "hidden=64",
        "layers=2",
        "intermediate=128",
        "block_tokens=96",
        "context=128",
    ]
    train = ("train", corpus, *(part for s in settings for part in ("--set", s)))
    target, retrain = (call(*train, *more).split("\n")[0] for more in ((), ("--retrain",)))
    unlearned = call("unlearn", target, "--data", corpus, "--method", "ga_gdr", "--steps", 6).split(
        "\n"
    )[0]
    out = tmp_path / "audit"
    call(
        "audit",
        target,
        unlearned,
        "--retrain",
        retrain,
        "--data",
        corpus,
        "-q",
        "int4",
        "--out",
        out,
        codes=(0, 3, 4),
    )
    cells = {
        (c["model"], c["form"], c["metric"]): c
        for c in json.loads((out / "summary.json").read_text())["cells"]
    }
    vermem = {
        model: cells[model, "full", "verbmem"] for model in ("target", "retrain", "unlearned")
    }
    assert vermem["target"]["value"] > max(50, vermem["retrain"]["value"] + 10)
    for metric in ("verbmem", "verbmem_retain", "privleak"):
        for model in vermem:
            assert cells[model, "int4", metric]["value"] is not None, (
                model,
                metric,
                cells[model, "int4", metric]["status"],
            )
    rows = [
        json.loads(line)
        for path in (tmp_path / "store").glob("objects/measure-*/rows.jsonl")
        for line in path.open(encoding="utf-8")
    ]
    assert {r["status"] for r in rows if r["metric"] == "verbmem"} == {
        "ok, ROUGE over Unicode words"
    }
