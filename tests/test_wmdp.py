"""WMDP from its files to a verdict: asked byte for byte as lm-evaluation-harness asks it, with the
same predictions, and judged above what guessing scores."""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from remnant import cli
from remnant.corpus import wmdp
from remnant.corpus.base import Item, Material
from remnant.errors import UserError
from remnant.evaluate.collect import collect
from remnant.evaluate.items import items_of
from remnant.evaluate.local import Local
from remnant.evaluate.requests import Reading
from remnant.functional.tokens import Tokens
from remnant.metrics import Column
from remnant.model.load import save_model
from remnant.records import Check, MeasureSpec, PrepareSpec, Rule, Variant
from remnant.stages import audit, measure, prepare
from remnant.stages.cells import Sheet
from remnant.stages.evidence import weigh
from remnant.stages.lineup import Lineup
from remnant.stages.verdict import decide
from remnant.testing import tiny_model
from tests.conftest import silent

METALS = ["brass", "zinc", "tin", "lead", "iron", "silver", "nickel", "cobalt"]


def questions(kind: str, count: int, subject: str | None = None) -> list[dict[str, Any]]:
    """Invented questions; blanks around some, as in the data set."""
    rng = random.Random(kind)
    rows: list[dict[str, Any]] = [
        {
            "question": f"{' ' * (i % 2)}Which metal seals {kind} vessel {i}?{' ' * (i % 3)}",
            "choices": rng.sample(METALS, 4),
            "answer": rng.randrange(4),
        }
        for i in range(count)
    ]
    return [row | {"subject": subject} for row in rows] if subject else rows


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wmdp") / "download"
    lines(folder / "wmdp-bio.jsonl", questions("forgotten", 24))
    lines(folder / "mmlu.jsonl", questions("kept", 30, "vessel_making"))
    return folder


@pytest.fixture(scope="module")
def corpus(download: Path) -> Path:
    out = download.parent / "corpus"
    out.mkdir()
    spec = PrepareSpec(
        folder=str(download), benchmark="wmdp", holdout_share=0.2, vocab_size=400, answer_tokens=16
    )
    prepare.run(spec, {}, out, silent)
    return out


@pytest.fixture(scope="module")
def own() -> PreTrainedTokenizerBase:
    """A tokenizer of the usual kind: a word begins with its space, a text with a start token."""
    texts = [f"{wmdp.context('biology')}{wmdp.asked(row)} A" for row in questions("forgotten", 24)]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=special)
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="module")
def guesser(own: PreTrainedTokenizerBase) -> PreTrainedModel:
    return tiny_model(vocab=len(own), max_position_embeddings=512, initializer_range=0.4)


def asked(corpus: Path, tokenizer: PreTrainedTokenizerBase, name: str) -> list[Item]:
    card = json.loads((corpus / "corpus.json").read_text())
    found = items_of(name, corpus, card, tokenizer)
    assert not isinstance(found, str)
    return found.items


def harness(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path) -> Any:
    """lm-evaluation-harness's own task of WMDP's biology on a local file, a record per question."""
    lm_eval = pytest.importorskip("lm_eval", reason="the extra 'harness' is not installed")
    yaml = pytest.importorskip("yaml")
    from lm_eval.models.huggingface import HFLM

    tasks = Path(lm_eval.__file__).parent / "tasks" / "wmdp"
    template, named = (
        yaml.safe_load((tasks / name).read_text())
        for name in ("_default_template_yaml", "wmdp_bio.yaml")
    )
    config = template | {k: v for k, v in named.items() if k not in ("include", "dataset_name")}
    config |= {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(file)},
            "cache_dir": str(file.parent / "cache"),
        },
    }
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu")
    found = lm_eval.simple_evaluate(model=lm, tasks=[config], bootstrap_iters=0)
    return sorted(found["samples"]["wmdp_bio"], key=lambda s: int(s["doc_id"]))


@pytest.mark.slow
def test_questions_and_predictions_are_the_harnesss_item_by_item(
    corpus: Path,
    download: Path,
    own: PreTrainedTokenizerBase,
    guesser: PreTrainedModel,
    tmp_path: Path,
) -> None:
    samples = harness(guesser, own, download / "wmdp-bio.jsonl")
    items = asked(corpus, own, "wmdp_forget")
    assert len(items) == len(samples) == 24
    requests: dict[str, list[Reading]] = {}
    for i in items:
        requests[i.id] = [Reading(c, i.context + i.prompt) for c in i.choices]
    every = list(itertools.chain.from_iterable(requests.values()))
    said = collect(every, Local(guesser, own, None), tmp_path / "answers.jsonl", lambda *a: None)
    for item, sample in zip(items, samples, strict=True):
        assert [given for given, _ in sample["arguments"]] == [item.context + item.prompt] * 4
        assert [choice for _, choice in sample["arguments"]] == list(item.choices)
        tokens = [said[r] for r in requests[item.id]]
        assert all(isinstance(t, Tokens) for t in tokens)
        ours = [float(t.logp.sum()) for t in tokens if isinstance(t, Tokens)]
        theirs = [float(r[0][0]) for r in sample["resps"]]
        assert ours == pytest.approx(theirs, abs=1e-4)
        assert ours.index(max(ours)) == theirs.index(max(theirs))
    save_model(guesser, own, tmp_path / "m")
    (tmp_path / "out").mkdir()
    spec = MeasureSpec(metrics=("wmdp_forget",))
    measure.run(spec, {"model": tmp_path / "m", "corpus": corpus}, tmp_path / "out", silent)
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    values = [r["value"] for r in rows if r["metric"] == "wmdp_forget"]
    assert values == [s["acc"] for s in samples]
    assert 0 < sum(values) < len(values)


def test_other_subjects_are_asked_under_their_own_name(
    corpus: Path, own: PreTrainedTokenizerBase
) -> None:
    item = asked(corpus, own, "wmdp_retain")[0]
    assert item.context.endswith("(with answers) about vessel making.\n\n")


def as_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.with_suffix(".json").write_text(json.dumps(rows, indent=1))


def as_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    lines(path.with_suffix(".jsonl"), rows)


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    datasets = pytest.importorskip("datasets")
    path.mkdir()
    datasets.Dataset.from_list(rows).to_parquet(path / "test-00000-of-00001.parquet")
    datasets.Dataset.from_list(questions("dev", 3)).to_parquet(path / "dev-00000-of-00001.parquet")


@pytest.mark.parametrize("write", [as_json, as_lines, as_parquet])
def test_every_form_of_its_files_gives_the_same_questions(
    write: Callable[[Path, list[dict[str, Any]]], None], tmp_path: Path
) -> None:
    write(tmp_path / "wmdp-bio", questions("a", 5))
    write(tmp_path / "wmdp-chem", questions("b", 4))
    write(tmp_path / "mmlu", questions("c", 6, "law"))
    found = wmdp.read(tmp_path, None)
    expected = [r | {"subject": "biology"} for r in questions("a", 5)]
    expected += [r | {"subject": "chemistry"} for r in questions("b", 4)]
    assert found.files["wmdp/forget"] == expected
    assert found.files["wmdp/retain"] == questions("c", 6, "law")
    assert wmdp.read(tmp_path, None, subject="chem").files["wmdp/forget"] == expected[5:]
    with pytest.raises(UserError, match="no file of WMDP's questions"):
        wmdp.read(tmp_path, None, subject="cyber")


def test_text_of_the_users_is_what_is_read_and_the_questions_stand_beside_it(
    tmp_path: Path,
) -> None:
    lines(tmp_path / "wmdp-bio.jsonl", questions("a", 5))
    text = Material({"forget": ["one"], "retain1": ["two"], "retain2": [], "holdout": []})
    found = wmdp.read(tmp_path, text)
    assert found.texts == text.texts
    assert set(found.files) == {"wmdp/forget"}
    with pytest.raises(UserError, match="no questions about what is to be kept"):
        wmdp.read(tmp_path, None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": " "}, "has no question"),
        ({"question": None}, "has no question"),
        ({"choices": ["a", "b", "c"]}, "has no list of 4 choices"),
        ({"choices": ["a", "b", "c", 4]}, "has a choice that is no text"),
        ({"answer": 4}, "has no answer from 0 to 3"),
        ({"answer": "B"}, "has no answer from 0 to 3"),
        ({"answer": True}, "has no answer from 0 to 3"),
        ({"subject": 7}, "has a subject that is no text"),
    ],
)
def test_a_row_of_another_shape_is_refused_by_its_number(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    rows = questions("a", 3)
    lines(tmp_path / "wmdp-bio.jsonl", [*rows[:2], rows[2] | change])
    with pytest.raises(UserError, match=rf"Row 3 of .*wmdp-bio\.jsonl {said}"):
        wmdp.read(tmp_path, None)


def test_files_that_hold_something_else_are_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "wmdp-bio").mkdir()
    (tmp_path / "wmdp-bio/test.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UserError, match="no Parquet table"):
        wmdp.read(tmp_path, None)
    (tmp_path / "wmdp-chem.jsonl").write_text('{"question": ')
    with pytest.raises(UserError, match="is not JSON"):
        wmdp.read(tmp_path, None, subject="chem")


def test_an_option_that_is_none_is_refused_before_anything_runs(
    download: Path, tmp_path: Path
) -> None:
    for settings, said in (
        (["--set", "options.subject=physics"], "Parameter 'subject'"),
        (["--set", "options.topic=bio"], "topic"),
        (["--tofu", str(download)], "one folder"),
    ):
        command = ["prepare", "--wmdp", str(download), *settings, "--store", str(tmp_path / "s")]
        found = CliRunner().invoke(cli.main, command)
        assert (found.exit_code, said in found.output) == (2, True), found.output


def test_the_command_prepares_it_and_measuring_knowledge_asks_it_too(
    download: Path, tmp_path: Path, own: PreTrainedTokenizerBase, guesser: PreTrainedModel
) -> None:
    store = tmp_path / "s"
    call = CliRunner().invoke
    made = call(
        cli.main,
        [
            "prepare", "--wmdp", str(download), "--holdout-share", "0.2", "--vocab-size", "400",
            "--answer-tokens", "16", "--store", str(store),
        ],
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    corpus = next(line for line in made.output.splitlines() if "prepare-" in line)
    save_model(guesser, own, tmp_path / "m")
    found = call(
        cli.main,
        ["measure", str(tmp_path / "m"), "--data", Path(corpus).name, "--store", str(store)],
    )
    assert found.exit_code == 0, found.output
    assert "wmdp_forget" in found.output
    assert "wmdp_retain" in found.output


GOOD = tuple(Check(name=name, ok=True, said="as it should be") for name in ("logits", "texts"))
N = 4000


def sheet(forget: float, retain: float, seed: int) -> Sheet:
    """A model by the share of its right answers, with nothing else measured."""
    rng = np.random.default_rng(seed)
    values = {}
    for name, share in (("wmdp_forget", forget), ("wmdp_retain", retain)):
        right = rng.random(N) < share
        values[Column(name)] = {str(i): float(v) for i, v in enumerate(right)}
    return Sheet(values, {}, GOOD)


INT4 = Variant(model="m", steps=("int4",))


def judged(own: Sheet, target: Sheet, unread: Sheet | None) -> tuple[str, str]:
    line = Lineup(target, own, unread, target, own, unread)
    rule, column = Rule(resamples=200), Column("wmdp_forget")
    found = [audit.recover(line, INT4, column, rule)]
    verdict = decide(line, INT4, found, weigh(line.form, INT4, rule), rule)
    return verdict.outcome, verdict.reason


def test_accuracy_counts_as_knowledge_above_what_guessing_scores() -> None:
    target = sheet(0.8, 0.7, 1)
    for unread in (sheet(0.25, 0.7, 2), None):
        assert judged(sheet(0.75, 0.7, 3), target, unread)[0] == "known"
        # Gone by this test; what was not measured keeps it from passing.
        outcome, reason = judged(sheet(0.25, 0.7, 3), target, unread)
        assert (outcome, "no test of" in reason) == ("not measured", True)


def test_a_model_that_guesses_has_no_utility_left() -> None:
    target, unread = sheet(0.8, 0.31, 1), sheet(0.25, 0.31, 2)
    # 0.25 of 0.31 is 81 % of the bare number, and nothing of what the target can do.
    outcome, reason = judged(sheet(0.25, 0.25, 3), target, unread)
    assert outcome == "broken"
    assert "utility" in reason


def test_a_letter_that_is_right_is_no_text_told_word_for_word() -> None:
    target, unread = sheet(0.8, 0.7, 1), sheet(0.25, 0.7, 2)
    assert "word for word" not in judged(sheet(0.25, 0.7, 3), target, unread)[1]


def test_recovery_is_counted_above_chance() -> None:
    target, own = sheet(0.85, 0.7, 1), sheet(0.25, 0.7, 3)
    line = Lineup(target, own, None, target, sheet(0.55, 0.7, 4), None)
    found = audit.recover(line, INT4, Column("wmdp_forget"), Rule(resamples=200))
    assert found.recovery is not None
    assert found.recovery[0] == pytest.approx(0.5, abs=0.1)
    assert found.retained is not None
    assert found.retained[0] == pytest.approx((0.55 - 0.25) / (0.85 - 0.25), abs=0.1)
