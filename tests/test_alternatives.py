"""Other answers to questions, of the target itself: never the truth, never one twice."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.alternatives import Asked, is_other, prompted, sampled
from remnant.cli import main
from remnant.corpus.base import Item
from remnant.errors import UserError
from remnant.evaluate.requests import Answer, Request, Writing
from remnant.flow.alternatives import read_alternatives

TRUTH = "Brass lamps from Orvik"
ASKED = [Asked(TRUTH, "one", True), Asked("Zinc bells", "two", True)]


class Scripted:
    """A backend that says its lines by the seed, and stops after so many batches."""

    offers = frozenset({"writing"})

    def __init__(self, lines: Sequence[str], most: int = 1000) -> None:
        self.lines, self.most, self.asked = lines, most, 0

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        return [[i] for i in range(len(requests))]

    def answer(self, batch: Sequence[Request]) -> list[Answer]:
        if self.asked == self.most:
            raise KeyboardInterrupt
        self.asked += 1
        (one,) = batch
        assert isinstance(one, Writing)
        assert one.temperature == 1.0
        return [f" {self.lines[one.seed % len(self.lines)]}\nQuestion: and so on"]


def unheard(done: int, total: int) -> None:
    """A report that nobody reads."""


@pytest.mark.parametrize(
    ("said", "before", "known"),
    [
        ("Tin kites from Vell", [], True),
        ("", [], False),
        (" .,", [], False),
        ("brass lamps, from ORVIK", [], False),
        ("Tin kites", ["tin kites!"], False),
    ],
)
def test_what_is_another_answer(said: str, before: list[str], known: bool) -> None:
    assert is_other(said, TRUTH, before) is known


def test_the_truth_and_repetitions_are_asked_for_again(tmp_path: Path) -> None:
    lines = [TRUTH, "Tin kites", "tin kites", "", "Lead drums", "Iron nets", "Gold rings"]
    found = sampled(ASKED, Scripted(lines), tmp_path, (3, 0), unheard)
    assert found[0] == found[1] == ["Tin kites", "Lead drums", "Iron nets"]
    assert found == sampled(ASKED, Scripted(lines), tmp_path / "again", (3, 0), unheard)


def test_a_target_that_tells_only_the_truth_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no other answer to 1 of 2 questions"):
        sampled(ASKED, Scripted([TRUTH]), tmp_path, (2, 0), unheard)


def test_what_was_cut_goes_on_with_the_same_answers(tmp_path: Path) -> None:
    lines = [TRUTH, TRUTH, "Tin kites", "Lead drums", "Iron nets"]
    once = Scripted(lines)
    whole = sampled(ASKED, once, tmp_path / "whole", (3, 0), unheard)
    cut = Scripted(lines, most=7)
    with pytest.raises(KeyboardInterrupt):
        sampled(ASKED, cut, tmp_path / "cut", (3, 0), unheard)
    rest = Scripted(lines)
    assert sampled(ASKED, rest, tmp_path / "cut", (3, 0), unheard) == whole
    assert cut.asked + rest.asked == once.asked


def test_a_question_asks_for_another_answer_with_the_true_one_before_it(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    found = prompted(Item("q", "dev", "", f" {TRUTH}", question="What is sold?"), tokenizer)
    assert found.truth == TRUTH
    assert "What is sold?" in found.prompt
    assert TRUTH in found.prompt
    assert found.prompt.endswith("Answer:")


def test_the_command_writes_a_list_for_every_question_that_unlearning_reads(
    corpus: Path, model: PreTrainedModel, folder_of: Callable[[PreTrainedModel, str], Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    target, out = folder_of(model, "target"), tmp_path / "other.json"
    call = ["alternatives", str(target), "--data", str(corpus), "--each", "2", "-o", str(out),
            "--store", str(tmp_path / "s")]  # fmt: skip
    said = CliRunner().invoke(main, call)
    assert said.exit_code == 0, said.output
    questions = json.loads((corpus / "knowmem" / "forget_qa.json").read_text())
    assert len(read_alternatives(str(out)).each) == len(questions)
    assert not list(tmp_path.glob(".*.part"))
    again = CliRunner().invoke(main, call)
    assert again.exit_code == 2
    assert "exists already" in again.output
    unlearned = CliRunner().invoke(
        main,
        ["unlearn", str(target), "--data", str(corpus), "--method", "altpo_gdr", "--steps", "1",
         "--examples", "questions", "--alternatives", str(out), "--store", str(tmp_path / "s")],
    )  # fmt: skip
    assert unlearned.exit_code == 0, unlearned.output
