"""Training examples: where an answer begins, what stands beside a question, and what a user's file
of other answers must hold."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.corpus.prepared import records
from remnant.errors import UserError
from remnant.flow.alternatives import read_alternatives
from remnant.flow.place import Outside
from remnant.flow.plan import unlearn_node
from remnant.functional.view import IGNORED
from remnant.methods import term_specs
from remnant.model.examples import Example, batch_of, beside, joined, passes
from remnant.parsing import parse
from remnant.records import UnlearnSpec
from remnant.stages import unlearn
from remnant.stages.examples import read_examples
from remnant.testing import tiny_model
from tests.conftest import silent

PLACE = Outside("nowhere")


def spec_of(**more: Any) -> UnlearnSpec:
    return UnlearnSpec.model_validate({"method": "npo_gdr", "examples": "questions", **more})


def test_neither_padding_nor_the_question_is_a_label() -> None:
    given = [Example("a", [5, 6, 7, 8], 2), Example("b", [9, 9], 0), Example("c", [4, 4, 4], 3)]
    batch = batch_of(given, 0, torch.device("cpu"))
    assert batch.labels.tolist() == [
        [IGNORED, IGNORED, 7, 8], [9, 9, IGNORED, IGNORED], [IGNORED] * 4,
    ]  # fmt: skip
    assert batch.mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]


def test_what_is_counted_is_what_a_question_alone_does_not_begin_with(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    before, after = "Question: Who leads the bank?\nAnswer:", " Orla Vint"
    example = joined(tokenizer, "x", before, after)
    alone = list(tokenizer(before)["input_ids"])
    slow = 0
    while slow < len(alone) and alone[slow] == example.ids[slow]:
        slow += 1
    assert example.counted_from == slow
    assert str(tokenizer.decode(example.ids[slow:])).endswith("Vint")


def test_questions_are_trained_on_as_they_are_asked(
    corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    whole, answers = (
        read_examples(spec_of(loss_on=what), tokenizer, corpus) for what in ("all", "answer")
    )
    rows = records(corpus / "knowmem/forget_qa.json", "question", "answer")
    assert len(answers["forget"].examples) == len(rows)
    for row, one, all_ in zip(
        rows, answers["forget"].examples, whole["forget"].examples, strict=True
    ):
        assert one.ids == all_.ids
        assert all_.counted_from == 0
        text = str(tokenizer.decode(one.ids, skip_special_tokens=True))
        assert row["question"] in text
        said = str(tokenizer.decode(one.ids[one.counted_from :], skip_special_tokens=True))
        assert said.strip() == row["answer"].strip()
    kept = records(corpus / "knowmem/retain_qa.json", "question", "answer")
    assert len(answers["retain"].examples) == len(kept[::2])  # the development half


def test_every_alternative_comes_as_often_as_the_others_and_none_is_made_in_vain() -> None:
    made: list[tuple[int, int]] = []

    def example(i: int, k: int) -> Example:
        made.append((i, k))
        return Example(f"{i}/{k}", [i, k])

    counts = [3, 1, 2]
    pool = beside(counts, example, number=6, seed=4)
    for i, count in enumerate(counts):
        shown = [pool.examples[pool.place(n, i)].ids for n in range(6)]
        assert {ids[0] for ids in shown} == {i}
        assert set(Counter(ids[1] for ids in shown).values()) == {6 // count}
    assert len(made) == len(set(made)) == sum(counts)
    again = beside(counts, example, number=2, seed=4)
    for n in range(2):
        for i in range(3):
            assert again.examples[again.place(n, i)] == pool.examples[pool.place(n, i)]
    assert len(again.examples) < len(pool.examples)
    other = beside([9] * 20, example, number=1, seed=5)
    same = beside([9] * 20, example, number=1, seed=6)
    assert other.examples != same.examples


def test_as_many_passes_are_made_ready_as_a_run_can_begin() -> None:
    for size, batch_size, batches in ((10, 3, 7), (4, 4, 2), (5, 8, 1), (7, 2, 100)):
        last = (batches * batch_size - 1) // size
        assert passes(size, batch_size, batches) == last + 1


def test_alternatives_stand_behind_the_question_that_they_answer_otherwise(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = records(corpus / "knowmem/forget_qa.json", "question", "answer")
    each = tmp_path / "each.json"
    each.write_text(json.dumps([[f"{r['answer']} again"] for r in rows]))
    shared = tmp_path / "refusals.txt"
    shared.write_text("I do not know.\n\nThat was never told.\n")
    for file, expected in (
        (each, [{f"{r['answer']} again"} for r in rows]),
        (shared, [{"I do not know.", "That was never told."}] * len(rows)),
    ):
        spec = spec_of(loss_on="answer", steps=2, batch_size=len(rows), alternatives=str(file))
        pools = read_examples(spec, tokenizer, corpus, file)
        pool, forget = pools["alternative"], pools["forget"].examples
        for i, wanted in enumerate(expected):
            found = set()
            for n in range(2):
                other = pool.examples[pool.place(n, i)]
                assert other.ids[: other.counted_from] == forget[i].ids[: other.counted_from]
                said = tokenizer.decode(other.ids[other.counted_from :], skip_special_tokens=True)
                found.add(str(said).strip())
            assert found == wanted


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "does not exist"),
        ("empty.txt", "\n \n", "is empty"),
        ("empty.json", "[]", "is empty"),
        ("broken.json", "[", "is no JSON"),
        ("record.json", '{"a": 1}', "holds no list"),
        ("number.json", '["a", 1]', "entry 2 of the list is no text"),
        ("mixed.json", '["a", ["b"]]', "entry 2 of the list is no text"),
        ("hole.json", '[["a"], []]', "list 2 is empty"),
        ("blank.json", '[["a"], ["b", " "]]', "entry 2 of list 2"),
    ],
)
def test_a_file_of_alternatives_that_is_none_is_refused_in_the_plan(
    name: str, content: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_alternatives(str(path))
    mine = tmp_path / "mine.py"
    mine.write_text("def other(alternative):\n    return -alternative.mean_logp()\n")
    spec = spec_of(method=None, terms=[{"use": f"{mine}:other"}], alternatives=str(path))
    with pytest.raises(UserError, match=message):
        unlearn_node(spec, PLACE, PLACE)


def test_alternatives_are_given_where_they_are_read_and_nowhere_else(tmp_path: Path) -> None:
    mine, file = tmp_path / "mine.py", tmp_path / "a.txt"
    mine.write_text("def other(alternative):\n    return -alternative.mean_logp()\n")
    file.write_text("I do not know.\n")
    terms = [{"use": f"{mine}:other"}]
    with pytest.raises(UserError, match=r"reads other answers .* none are given"):
        unlearn_node(spec_of(method=None, terms=terms), PLACE, PLACE)
    with pytest.raises(UserError, match="'npo_gdr' reads no alternatives"):
        unlearn_node(spec_of(alternatives=str(file)), PLACE, PLACE)
    one = unlearn_node(spec_of(method=None, terms=terms, alternatives=str(file)), PLACE, PLACE)
    moved = tmp_path / "b.txt"
    moved.write_text(file.read_text())
    same = unlearn_node(spec_of(method=None, terms=terms, alternatives=str(moved)), PLACE, PLACE)
    assert one.digest == same.digest
    moved.write_text("I cannot say.\n")
    other = unlearn_node(spec_of(method=None, terms=terms, alternatives=str(moved)), PLACE, PLACE)
    assert one.digest != other.digest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"examples": "documents", "loss_on": "answer"}, "documents have no answers"),
        ({"examples": "documents", "alternatives": "a.txt"}, "documents have no answers"),
        ({"pack_tokens": 64}, "pack_tokens is about documents"),
        ({"retain": ["retain2"]}, "retain is about documents"),
        ({"params": {"beta": 1.0}, "beta": 2.0}, "beta is given twice"),
        ({"method": None, "terms": [{"use": "npo"}], "beta": 0.1}, "carry their settings"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        parse(UnlearnSpec, {"method": "npo_gdr", "examples": "questions"} | settings, "unlearn")


def test_a_setting_goes_to_every_term_that_has_it_and_alpha_to_the_retain_terms() -> None:
    npo, klr = term_specs(UnlearnSpec(method="npo_klr", beta=0.5, alpha=3.0))
    assert (npo.use, npo.weight, npo.params) == ("npo", 1.0, {"beta": 0.5})
    assert (klr.use, klr.weight, klr.params) == ("klr", 3.0, {})
    assert term_specs(UnlearnSpec(method="npo", params={"beta": 0.5}))[0] == npo
    for method, given, message in (
        ("ga_gdr", {"beta": 0.5}, "'ga_gdr' has no beta. It has no settings"),
        ("npo_gdr", {"params": {"bta": 1}}, "'npo_gdr' has no bta. Its settings: beta"),
    ):
        with pytest.raises(UserError, match=message):
            term_specs(UnlearnSpec.model_validate({"method": method, **given}))


def test_what_does_not_fit_the_questions_is_said_before_the_first_step(
    corpus: Path,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    folder_of: Callable[[PreTrainedModel, str], Path],
) -> None:
    file = tmp_path / "each.json"
    file.write_text('[["one"], ["two"]]')
    count = len(records(corpus / "knowmem/forget_qa.json", "question", "answer"))
    with pytest.raises(UserError, match=f"2 lists of alternatives for {count} questions"):
        read_examples(spec_of(alternatives=str(file)), tokenizer, corpus, file)
    with pytest.raises(UserError, match=r"has .* tokens with its answer"):
        read_examples(spec_of(max_tokens=4), tokenizer, corpus)
    target = folder_of(tiny_model(vocab=len(tokenizer), max_position_embeddings=1024), "target")
    out = tmp_path / "out"
    out.mkdir()
    inputs = {"target": target, "corpus": corpus}
    spec = spec_of(loss_on="answer", steps=2, batch_size=2, lr=1e-3)
    assert unlearn.run(spec, inputs, out, silent).steps == 2
