"""The form in which a target knows most is chosen on the development half, for all models."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.corpus import probes
from remnant.corpus.base import Item, ItemSet, half_of
from remnant.errors import UserError
from remnant.evaluate.elicit import Score, asked_in, choose, means, scores_by_form, some
from remnant.evaluate.items import chat_of, forms_for
from remnant.evaluate.requests import Answer, Refused, Request, Writing
from remnant.flow import plan as planning
from remnant.flow.place import Outside
from remnant.flow.sweepfile import read_sweep
from remnant.functional.text import STOPS
from remnant.model.load import save_model
from remnant.records import ElicitSpec, MeasureSpec
from remnant.stages import elicit, measure
from tests.conftest import silent
from tests.test_forms import tokenizer_of

HERE = Path(__file__).parent
NAMES = (
    "ada",
    "boole",
    "curie",
    "dirac",
    "euler",
    "fermi",
    "gauss",
    "hopper",
    "ising",
    "jordan",
    "kepler",
    "laplace",
)
SHOWN = (("Who is before ada?", "nobody"),)


def questions() -> ItemSet:
    items = [
        Item(name, half_of(i), "", name, question=f"Who is number {i}?", shown=SHOWN)
        for i, name in enumerate(NAMES)
    ]
    return ItemSet(items, 8, STOPS)


class Chatty:
    """A model that knows every name and says it only where it is asked in a conversation."""

    offers = frozenset({"writing", "chats"})

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        return [[i] for i in range(len(requests))]

    def answer(self, batch: Sequence[Request]) -> list[Answer]:
        return [self._said(request) for request in batch]

    def _said(self, request: Request) -> Answer:
        assert isinstance(request, Writing)
        whole = request.context + request.prompt
        number = int(whole.rpartition("number ")[2].partition("?")[0])
        if "Question:" in whole:
            return Refused("cut") if "nobody" in whole and number == 3 else "1984\n\nAda"
        return f"That is, of course,\n\nthe well known {NAMES[number]}. Question: Who?"


def test_the_form_is_found_in_which_a_model_says_what_it_knows(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("qwen3")
    forms = forms_for(tokenizer)
    sets, refused = asked_in(forms, questions(), chat_of(tokenizer))
    assert not refused
    found = scores_by_form(sets, Chatty(), tmp_path / "spool", lambda *_: None)
    assert {form: len(scores) for form, scores in found.items()} == {
        "muse": 11, "muse-0shot": 12, "plain": 11, "plain-0shot": 12, "chat": 12, "chat-shots": 12,
    }  # fmt: skip
    assert means(found["chat"]) == pytest.approx(means(found["chat-shots"]))
    assert means(found["chat"])[1:] == (1.0, 1.0)  # behind a blank line, in a sentence
    assert 0 < means(found["chat"]).f1 < 0.5
    assert means(found["plain"]) == (0.0, 0.0, 0.0)
    chosen = choose(found, "plain")
    assert chosen.form in ("chat", "chat-shots")
    assert chosen.gain == (1.0, 1.0, 1.0)


def told(*recalls: float) -> dict[str, Score]:
    return {str(i): Score(0.0, r, 0.0) for i, r in enumerate(recalls)}


def test_the_published_form_stays_unless_another_is_better_beyond_chance() -> None:
    base = [0.0, 1.0] * 12
    luck = [1.0, 1.0, *base[2:]]
    better = [1.0] * 8 + base[8:]
    assert choose({"muse": told(*base), "chat": told(*base)}, "muse").form == "muse"
    assert choose({"muse": told(*base), "chat": told(*luck)}, "muse") == ("muse", (0.0, 0.0, 0.0))
    assert choose({"muse": told(*base), "chat": told(*reversed(base))}, "muse").form == "muse"
    many = {"muse": told(*base), "plain": told(*luck), "chat": told(*([1.0] * 24))}
    chosen = choose(many, "muse")
    assert chosen.form == "chat"
    assert chosen.gain[0] == pytest.approx(0.5)
    assert 0 < chosen.gain[1] < 0.5 < chosen.gain[2]
    assert choose({"muse": told(*base), "chat": told(*better)}, "chat").form == "chat"


def test_no_form_is_chosen_that_hides_what_is_known_of_forget_text() -> None:
    """What retain questions gain does not pay for what forget questions lose."""
    muse, chat = [1.0] * 6 + [0.0] * 24, [0.0] * 6 + [1.0] * 24
    asked = {"muse": told(*muse), "chat": told(*chat)}
    assert choose(asked, "muse", set("012345")).form == "muse"
    assert choose(asked, "muse", set("6789")).form == "chat"


def test_no_form_is_chosen_on_a_few_questions_or_on_others() -> None:
    few = {"muse": told(0.0, 0.0), "chat": told(1.0, 1.0)}
    assert choose(few, "muse").form == "muse"
    some_refused = {"muse": told(*([0.0] * 24)), "chat": told(*([1.0] * 12))}
    assert choose(some_refused, "muse").form == "muse"


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{{ 1 // 0 }}", "{{ tools | length }}"]
)
def test_a_template_that_refuses_leaves_the_other_forms(
    template: str,
    corpus: Path,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    tmp_path: Path,
) -> None:
    broken = copy.deepcopy(tokenizer)
    broken.chat_template = template
    save_model(model, broken, tmp_path / "m")
    found = elicit.run(ElicitSpec(), {"model": tmp_path / "m", "corpus": corpus}, tmp_path, silent)
    assert set(found.refused) == {"chat", "chat-shots"}
    assert "Not in the form chat: The model's chat template refuses" in found.said
    assert "chat" not in found.recall


def test_noise_alone_seldom_changes_the_form() -> None:
    rng = np.random.default_rng(0)
    changed = 0
    for _ in range(60):
        drawn = {
            form: told(*rng.binomial(1, 0.5, 48))
            for form in ("muse", "plain", "chat", "chat-shots")
        }
        changed += choose(drawn, "muse").form != "muse"
    assert changed <= 6


def test_items_are_taken_from_all_over_them() -> None:
    items = questions().items
    assert some(items, 20) == items
    assert [i.id for i in some(items, 5)] == ["ada", "curie", "euler", "hopper", "jordan"]


def test_a_model_that_knows_nothing_is_asked_as_published(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, tmp_path: Path
) -> None:
    save_model(model, tokenizer, tmp_path / "m")
    inputs = {"model": tmp_path / "m", "corpus": corpus}
    found = elicit.run(ElicitSpec(), inputs, tmp_path, silent)
    assert found.form == "published"
    assert found.published == "muse"
    assert "as published (muse)" in found.said
    assert set(found.recall) in (set(), {"muse", "muse-0shot", "plain", "plain-0shot"})
    assert json.loads((tmp_path / "form.json").read_text()) == {"form": "published"}


@pytest.mark.parametrize("form", ["published", "plain-0shot"])
def test_a_measurement_asks_in_the_form_that_was_chosen(
    form: str,
    corpus: Path,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    tmp_path: Path,
) -> None:
    save_model(model, tokenizer, tmp_path / "m")
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "form.json").write_text(json.dumps({"form": form}))
    inputs = {"model": tmp_path / "m", "corpus": corpus, "elicited": chosen}
    metrics = ("knowmem_forget", "knowmem_prefilled")
    found = measure.run(MeasureSpec(metrics=metrics), inputs, tmp_path, silent)
    assert found.form == form
    texts = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    asked = {t["prompt"][-8:] for t in texts if t["metric"] == "knowmem_forget"}
    assert asked == {"Answer: " if form == "published" else "\nAnswer:"}
    too = {t["prompt"][-8:] for t in texts if t["metric"] == "knowmem_published"}
    assert too == (set() if form == "published" else {"Answer: "})
    by_name = tmp_path / "named"
    by_name.mkdir()
    named = MeasureSpec(metrics=metrics, form=form)
    measure.run(named, {"model": tmp_path / "m", "corpus": corpus}, by_name, silent)
    for name in ("rows.jsonl", "texts.jsonl"):
        assert (by_name / name).read_bytes() == (tmp_path / name).read_bytes()


def test_all_models_of_a_sweep_are_asked_in_the_targets_form() -> None:
    sweep = read_sweep(HERE / "frozen" / "small.toml", ())
    nodes = planning.plan(sweep)
    measured = [n for n in nodes if n.stage == "measure"]
    (one,) = [n for n in nodes if n.stage == "elicit"]
    assert len(measured) == 25
    assert {n.inputs["elicited"].digest for n in measured} == {one.digest}
    assert one.inputs["model"] is next(
        n.inputs["model"] for n in measured if n.label.model == "target" and n.label.in_full
    )
    named = read_sweep(HERE / "frozen" / "small.toml", ("measure.form=plain",))
    assert not [n for n in planning.plan(named) if n.stage == "elicit"]
    with pytest.raises(UserError, match="plian"):
        planning.plan(read_sweep(HERE / "frozen" / "small.toml", ("measure.form=plian",)))


def test_a_model_alone_is_asked_in_its_own_best_form_or_in_that_of_another(corpus: Path) -> None:
    model, text = Outside(str(corpus / "tokenizer")), Outside(str(corpus))
    alone = planning.measure_node(MeasureSpec(), model, text)
    assert isinstance(alone.inputs["elicited"], planning.Node)
    assert alone.inputs["elicited"].inputs["model"] is model
    served = planning.measure_node(MeasureSpec(), None, text)
    assert "elicited" not in served.inputs
    other = planning.elicit_node(MeasureSpec(), Outside(str(corpus / "raw")), text)
    with_other = planning.measure_node(MeasureSpec(), model, text, elicited=other)
    assert with_other.inputs["elicited"] is other
    assert len({alone.name, served.name, with_other.name}) == 3


def test_an_answer_of_one_word_leaves_nothing_to_give_and_is_not_asked_for(tmp_path: Path) -> None:
    (tmp_path / "knowmem").mkdir()
    rows = [{"question": "Who?", "answer": a} for a in ("Ada", "Ada Lovelace", "of the mill")]
    (tmp_path / "knowmem" / "forget_qa.json").write_text(json.dumps(rows))
    found = probes.prefilled(tmp_path)
    assert [(i.id, i.given, i.truth) for i in found] == [
        ("prefilled-question-1", "Ada ", "Lovelace"), ("prefilled-question-2", "of ", "the mill"),
    ]  # fmt: skip
