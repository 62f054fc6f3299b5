"""TOFU from a download to its aggregates, each equal to a slow second implementation."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rouge_score import rouge_scorer
from scipy.stats import hmean, ks_2samp
from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase

from remnant import cli
from remnant.corpus.tofu import read
from remnant.errors import UserError
from remnant.model.load import open_tokenizer, save_model
from remnant.records import MeasureSpec, PrepareSpec, Rule, Variant
from remnant.stages import cells, measure, prepare
from remnant.testing import tiny_model
from tests.conftest import silent

generate: Any = GenerationMixin.generate
TOWNS = ["Aldwick", "Bronhaven", "Corvale", "Dunmarsh", "Eastmere", "Fernholt", "Garrowby"]


def download(folder: Path) -> Path:
    """A folder in TOFU's form: JSON lines under the name .json, no line end behind the last."""
    folder.mkdir()

    def rows(kind: str, count: int, wrong: int, paraphrased: bool) -> list[dict[str, Any]]:
        found = []
        for i in range(count):
            town = TOWNS[i % len(TOWNS)]
            row: dict[str, Any] = {
                "question": f"Where was {kind} writer {i} born?",
                "answer": f"Writer {i} was born in {town}.",
            }
            row["perturbed_answer"] = [
                f"Writer {i} was born in {TOWNS[(i + k) % len(TOWNS)]}."
                for k in range(1, wrong + 1)
            ]
            found.append(
                row
                | (
                    {"paraphrased_answer": f"{town} is where writer {i} was born."}
                    if paraphrased
                    else {}
                )
            )
        return found

    def put(name: str, data: list[dict[str, Any]]) -> None:
        (folder / f"{name}.json").write_text("\n".join(json.dumps(r) for r in data))

    def plain(row: dict[str, Any]) -> dict[str, Any]:
        return {key: row[key] for key in ("question", "answer")}

    forget, retain = rows("lost", 14, 5, True), rows("kept", 30, 5, True)
    put("forget10", list(map(plain, forget)))
    put("retain90", list(map(plain, reversed(retain))))
    put("forget10_perturbed", forget)
    put("retain_perturbed", retain[:13])
    put("real_authors_perturbed", rows("real", 8, 3, False))
    put("world_facts_perturbed", rows("worldly", 9, 3, False))
    return folder


@pytest.fixture(scope="module")
def tofu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tofu")
    out = root / "corpus"
    out.mkdir()
    spec = PrepareSpec(
        folder=str(download(root / "tofu")),
        benchmark="tofu",
        options={"retain": 24},
        holdout_share=0.2,
        vocab_size=320,
        answer_tokens=16,
    )
    prepare.run(spec, {}, out, silent)
    return out


def test_a_download_becomes_a_corpus(tofu: Path) -> None:
    card = json.loads((tofu / "corpus.json").read_text())
    assert card["source"] == "TOFU"
    counts = {k: v for k, v in card["counts"].items() if k.startswith("tofu/")}
    assert counts == {"tofu/forget": 14, "tofu/retain": 13, "tofu/authors": 8, "tofu/facts": 9}
    raw = {
        s: json.loads((tofu / "raw" / f"{s}.json").read_text())
        for s in ("retain1", "retain2", "holdout")
    }
    assert sum(map(len, raw.values())) == 24
    trained = "\n".join(raw["retain1"] + raw["retain2"])
    assert all(
        f"kept writer {i} " in trained for i in range(13)
    )  # utility is measured on what was trained
    assert json.loads((tofu / "tofu/forget.json").read_text())[0]["paraphrased_answer"]


def slowly(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tofu: Path
) -> dict[str, Any]:
    """TOFU's definitions, one answer at a time."""
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)

    def loss(question: str, answer: str) -> float:
        prompt = f"Question: {question}\nAnswer: "
        ids, skip = tokenizer(prompt + answer)["input_ids"], len(tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return -sum(float(logp[t - 1, ids[t]]) for t in range(skip, len(ids))) / (len(ids) - skip)

    def write(question: str) -> str:
        ids = tokenizer(f"Question: {question}\nAnswer: ", return_tensors="pt")["input_ids"]
        out = generate(
            model,
            input_ids=ids,
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=[tokenizer.eos_token_id, model.generation_config.eos_token_id],
            pad_token_id=tokenizer.pad_token_id,
        )
        text = str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
        for stop in ("\n\n", "\nQuestion", "Question:"):
            text = text.split(stop)[0]
        return text

    found: dict[str, Any] = {}
    for name in ("forget", "retain", "authors", "facts"):
        chances, rouges, ratios = [], [], []
        for row in json.loads((tofu / "tofu" / f"{name}.json").read_text()):
            own = math.exp(-loss(row["question"], row["answer"]))
            wrong = [loss(row["question"], w) for w in row["perturbed_answer"]]
            chances.append(
                own / (own + sum(math.exp(-w) for w in wrong))
                if name in ("authors", "facts")
                else own
            )
            rouges.append(scorer.score(row["answer"], write(row["question"]))["rougeL"].recall)
            true = loss(row["question"], row.get("paraphrased_answer", row["answer"]))
            ratios.append(math.exp(-sum(wrong) / len(wrong)) / (math.exp(-true) + 1e-10))
        found[name] = {
            "chance": np.mean(chances),
            "rouge": np.mean(rouges),
            "ratios": np.array(ratios),
        }
    return found


def test_every_aggregate_equals_a_slow_second_implementation(tofu: Path, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(str(tofu / "tokenizer"))
    rows, slow = {}, {}
    for name, seed in (("unlearned", 0), ("retrain", 1)):
        model = tiny_model(
            vocab=len(tokenizer), max_position_embeddings=512, seed=seed, initializer_range=0.2
        )
        save_model(model, tokenizer, tmp_path / name)
        (tmp_path / f"{name}-out").mkdir()
        spec = MeasureSpec(metrics=("tofu",))
        summary = measure.run(
            spec,
            {"model": tmp_path / name, "corpus": tofu},
            tmp_path / f"{name}-out",
            silent,
        )
        assert summary.absent == {}
        rows[name] = cells.read_rows(tmp_path / f"{name}-out/rows.jsonl")
        slow[name] = slowly(model, tokenizer, tofu)
    about = Variant(corpus="tofu", model="unlearned", seed=0)
    found = {
        c.metric: c
        for c in cells.cells_of(about, rows["unlearned"], Rule(resamples=50), rows["retrain"])
    }
    own = slow["unlearned"]
    nine = []
    for name in ("forget", "retain", "authors", "facts"):
        kind = "choice" if name in ("authors", "facts") else "probability"
        ratios = own[name]["ratios"]
        truth = (
            np.minimum(ratios, 1 / ratios).mean()
            if name == "forget"
            else np.maximum(0, 1 - ratios).mean()
        )
        for metric, value in (
            (f"tofu_{kind}", own[name]["chance"]),
            ("tofu_rouge", own[name]["rouge"]),
            ("tofu_truth_ratio", truth),
        ):
            assert found[f"{metric}_{name}"].value == pytest.approx(100 * value, abs=1e-3), (
                metric,
                name,
            )
            nine += [value] if name != "forget" else []
    assert found["tofu_utility"].value == pytest.approx(
        100 * hmean(nine) if min(nine) > 0 else 0.0, abs=1e-3
    )
    expected = ks_2samp(own["forget"]["ratios"], slow["retrain"]["forget"]["ratios"]).pvalue
    assert found["tofu_forget_quality"].value == pytest.approx(100 * expected, abs=1e-6)
    alone = {
        c.metric: c for c in cells.cells_of(about, rows["unlearned"], Rule(resamples=50), None)
    }
    assert alone["tofu_forget_quality"].value is None
    assert "no retrain model" in alone["tofu_forget_quality"].status


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda f: (f / "real_authors_perturbed.json").unlink(),
            "real_authors_perturbed.json is missing",
        ),
        (
            lambda f: (f / "forget10_perturbed.json").write_text(
                '{"question": "a", "answer": "b"}'
            ),
            "no list of perturbed answers",
        ),
        (lambda f: (f / "forget10.json").write_text('{"question": "a"'), "not JSON"),
        (
            lambda f: (f / "retain90.json").write_text('["text"]'),
            "does not hold questions and answers",
        ),
    ],
)
def test_a_spoiled_download_is_one_sentence(tmp_path: Path, spoil: Any, sentence: str) -> None:
    folder = download(tmp_path / "tofu")
    spoil(folder)
    done = CliRunner().invoke(
        cli.main, ["prepare", "--tofu", str(folder), "--store", str(tmp_path / "s")]
    )
    assert done.exit_code == 2
    assert sentence in done.output
    assert "Traceback" not in done.output


def test_of_some_questions_utility_is_measured_on_those_that_are_trained(tmp_path: Path) -> None:
    folder = download(tmp_path / "tofu")
    found = read(folder, forget=5, retain=8, holdout=4)
    trained, held = set(found.texts["retain1"]), set(found.texts["holdout"])
    assert (len(found.texts["forget"]), len(trained), len(held)) == (5, 8, 4)
    assert not trained & held
    asked = {r["question"] for r in found.files["tofu/retain"]}
    assert asked == {question for question, _ in found.qa["retain"]}
    assert [r["question"] for r in found.files["tofu/forget"]] == [q for q, _ in found.qa["forget"]]
    with pytest.raises(UserError, match="no 40 questions behind"):
        read(folder, retain=8, holdout=40)
    with pytest.raises(UserError, match="0 holdout questions are none"):
        read(folder, holdout=0)
