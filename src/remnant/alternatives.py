"""Other answers to the forget questions, written by the target itself: what AltPO prefers.

The file of them is what ``unlearn --set alternatives=FILE`` reads.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from remnant.corpus.base import Item
from remnant.corpus.forms import FORMS
from remnant.durable import write_text
from remnant.errors import Unscorable, UserError
from remnant.evaluate.collect import collect
from remnant.evaluate.items import chat_of
from remnant.evaluate.local import Local
from remnant.evaluate.requests import Backend, Writing
from remnant.flow.place import MODEL_STAGES, Made, Outside, given
from remnant.flow.progress import counting
from remnant.flow.store import Store, disk_errors
from remnant.functional.segments import words
from remnant.functional.text import cut_answer, overlap
from remnant.model.load import open_model, open_tokenizer
from remnant.report import terminal
from remnant.stages.examples import questions_about

# How AltPO draws them.
TEMPERATURE, MOST_TOKENS = 1.0, 200
# So many times a question is asked again of which answers were refused.
ROUNDS = 4
# ROUGE-L F1 with the true answer from which on an answer tells the truth once more.
TOO_NEAR = 0.9
STOPS = ("\n", "Question:")
WANTED = (
    "Here is a question with its answer.\nQuestion: {question}\nAnswer: {answer}\n"
    "Give another answer to the question, of the same length, in which every fact is changed."
)

Report = Callable[[int, int], None]


class Asked(NamedTuple):
    """A true answer, and the prompt that asks for another one."""

    truth: str
    prompt: str
    framed: bool


def run(model: str, corpus: str, out: Path, store: Store, options: tuple[int, int]) -> None:
    """The command: sample other answers, and write one list for each question.

    Args:
        model: the target.
        corpus: whose forget questions are asked.
        out: a new file, of JSON. Beside it stands what was answered until it is there.
        store: where both may lie.
        options: how many answers for each question, and the seed.

    Raises:
        UserError: the file is there, the corpus has no questions, or the target gives no other
            answer to one of them.
    """
    if out.exists() or out.suffix != ".json":
        raise UserError(f"{out} exists already, or is no .json.", "Name a new file with -o.")
    source = given(store, model, MODEL_STAGES)
    tokenizer = open_tokenizer(str(_place(store, source)))
    items = questions_about("forget", tokenizer, _place(store, given(store, corpus, "prepare")))
    backend = Local(open_model(str(_place(store, source))), tokenizer)
    spool = out.with_name(f".{out.name}.part")
    with (
        disk_errors(out, "Name a file in a folder that is there."),
        counting(terminal.console(stderr=True), "Asking the target") as report,
    ):
        found = sampled(
            [prompted(item, tokenizer) for item in items], backend, spool, options,
            lambda done, total: report(done, total, "answers"),
        )  # fmt: skip
        write_text(out, json.dumps(found, ensure_ascii=False, indent=1) + "\n")
        shutil.rmtree(spool)
    number = sum(map(len, found))
    print(f"{number} other answers to {len(items)} questions: {out}")


def _place(store: Store, source: Made | Outside) -> Path:
    return Path(source.source) if isinstance(source, Outside) else store.path(source.name)


def prompted(item: Item, tokenizer: PreTrainedTokenizerBase) -> Asked:
    """A question as one for another answer: in a conversation where the model has a template."""
    form = FORMS["chat" if tokenizer.chat_template else "plain"]
    truth = item.truth.strip()
    wanted = WANTED.format(question=item.question, answer=truth)
    own = form.write(item._replace(question=wanted, shown=()), chat_of(tokenizer))
    return Asked(truth, f"{own.context}{own.prompt}", own.framed)


def sampled(
    asked: Sequence[Asked], backend: Backend, spool: Path, options: tuple[int, int], report: Report
) -> list[list[str]]:
    """Other answers to every question, at least one and at most ``each`` of them, all different and
    none of them the true one.

    Args:
        asked: the questions.
        backend: the target.
        spool: a folder that keeps what was answered.
        options: each, and the seed.
        report: called with (answers, answers wanted) of a round.

    Raises:
        UserError: of one question every answer is empty, or the true one.

    Source: Mekala et al. 2025 (arXiv 2409.13474), section 3: five for each, of the target at
    temperature 1. *Differs from the source in* the words that ask for them, and in refusing answers
    that repeat the truth or each other, which are asked for again.
    """
    each, seed = options
    found: list[list[str]] = [[] for _ in asked]
    for number in range(ROUNDS):
        first = 1 + each * (ROUNDS * seed + number)
        lacking = [i for i, answers in enumerate(found) if len(answers) < each]
        wanted = {
            (i, k): Writing(
                asked[i].prompt, MOST_TOKENS, "", STOPS, TEMPERATURE, first + k, asked[i].framed
            )
            for i in lacking
            for k in range(each)
        }
        if not wanted:
            break
        spool.mkdir(parents=True, exist_ok=True)
        answers = collect(list(wanted.values()), backend, spool / f"{number}.jsonl", report)
        for (i, _), request in wanted.items():
            text = answers[request]
            said = cut_answer(text.lstrip(), STOPS).strip() if isinstance(text, str) else ""
            if len(found[i]) < each and is_other(said, asked[i].truth, found[i]):
                found[i].append(said)
    if none := [i for i, own in enumerate(found) if not own]:
        raise UserError(
            f"The target gave no other answer to {len(none)} of {len(asked)} questions, of which "
            f"the first is number {none[0] + 1}.",
            "A model that follows no instructions cannot be asked; write a file by hand.",
        )
    return found


def is_other(said: str, truth: str, before: Sequence[str]) -> bool:
    """Whether an answer is neither empty nor one of those before, and does not tell the truth.

    >>> is_other("The red lamp.", "A blue lamp.", []), is_other("a blue lamp", "A blue lamp.", [])
    (True, False)
    """
    own = words(said)
    if not own or own in map(words, before):
        return False
    try:
        return overlap(truth, said) < TOO_NEAR
    except Unscorable:
        return own != words(truth)
