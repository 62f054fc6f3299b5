"""Training examples and probes in the form in which a model is asked: the text of a chat is that of
the model's own template, and the loss covers the assistant's turn."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.corpus.base import Item
from remnant.corpus.muse import knowmem, verbmem
from remnant.errors import UserError
from remnant.evaluate.items import Manner
from remnant.flow import plan as planning
from remnant.flow.place import Outside
from remnant.flow.sweepfile import read_sweep
from remnant.model.data import prompt_ids
from remnant.model.examples import Example, batch_of
from remnant.model.load import open_model, open_tokenizer, save_model
from remnant.parsing import parse
from remnant.records import ElicitSpec, PrepareSpec, TrainResult, TrainSpec, UnlearnSpec
from remnant.stages import prepare, train, unlearn
from remnant.stages.examples import end_of_turn, questions_of, read_examples
from remnant.testing import tiny_model
from tests.conftest import silent
from tests.test_forms import FAMILIES, tokenizer_of

HERE = Path(__file__).parent
END = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "qwen3": "<|im_end|>",
    "zephyr": "<|im_end|>",
}


def spec_of(**more: Any) -> UnlearnSpec:
    usual = {"method": "npo_gdr", "examples": "questions", "loss_on": "answer"}
    return UnlearnSpec.model_validate(usual | more)


def conversation(
    tokenizer: PreTrainedTokenizerBase, item: Item, system: str = ""
) -> tuple[list[int], list[int]]:
    """The ids that transformers makes of a question alone and of the whole conversation."""
    template: Any = tokenizer.apply_chat_template
    told = [{"role": "system", "content": system}] if system else []
    turns = [*told, {"role": "user", "content": item.question}]
    alone = template(turns, add_generation_prompt=True, enable_thinking=False, return_dict=False)
    said = {"role": "assistant", "content": item.truth}
    return list(alone), list(template([*turns, said], return_dict=False))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("form", ["chat", "chat-shots"])
def test_a_chat_example_has_the_ids_of_the_whole_conversation(
    name: str, form: str, corpus: Path
) -> None:
    tokenizer = tokenizer_of(name)
    end = tokenizer.convert_tokens_to_ids(END[name])
    for system in ("", "Be short."):
        if system and name == "gemma":
            continue
        found = read_examples(spec_of(), tokenizer, corpus, None, Manner(form, system))
        whole_loss = read_examples(
            spec_of(loss_on="all"), tokenizer, corpus, None, Manner(form, system)
        )
        for example, all_, item in zip(
            found["forget"].examples,
            whole_loss["forget"].examples,
            knowmem(corpus, "forget"),
            strict=True,
        ):
            alone, whole = conversation(tokenizer, item, system)
            assert example.ids == whole[: len(example.ids)]
            # what a template writes behind the end of a turn is a line break, and not read
            assert not str(tokenizer.decode(whole[len(example.ids) :])).strip()
            assert example.ids[: example.counted_from] == alone
            assert example.ids[-1] == end
            counted = example.ids[example.counted_from :]
            assert counted.count(end) == 1
            assert str(tokenizer.decode(counted[:-1])).strip() == str(
                tokenizer.decode(prompt_ids(tokenizer, item.truth), skip_special_tokens=True)
            )
            assert all_ == example._replace(counted_from=0)


def test_a_turn_ends_at_its_own_mark_and_not_at_that_of_the_text() -> None:
    tokenizer = tokenizer_of("chatml")
    assert end_of_turn(tokenizer, "") == ""
    assert end_of_turn(tokenizer, "<|im_end|>\n") == "<|im_end|>"
    assert end_of_turn(tokenizer, " <|im_end|>\n</s>") == " <|im_end|>"
    assert end_of_turn(tokenizer, "\n### \n") == "\n###"


def test_examples_of_other_forms_end_with_the_answer(
    corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    for form in ("muse", "muse-0shot"):
        found = read_examples(spec_of(), tokenizer, corpus, None, Manner(form))
        assert found == read_examples(spec_of(), tokenizer, corpus)
    shorter = read_examples(spec_of(), tokenizer, corpus, None, Manner("plain"))["forget"]
    for example, item in zip(shorter.examples, knowmem(corpus, "forget"), strict=True):
        text = f"Question: {item.question}\nAnswer: {item.truth}"
        assert example.ids == prompt_ids(tokenizer, text)


def test_a_chat_without_a_template_is_refused(
    corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(UserError, match="no chat template"):
        read_examples(spec_of(), tokenizer, corpus, None, Manner("chat"))


def learnt(model: PreTrainedModel, examples: list[Example], steps: int) -> None:
    """A model that was shown some examples a few times."""
    moved = torch.optim.AdamW(model.parameters(), lr=5e-3)
    run: Any = model
    for step in range(steps):
        some = [examples[(8 * step + i) % len(examples)] for i in range(8)]
        batch = batch_of(some, 1, torch.device("cpu"))
        logits = run(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.labels[:, 1:].flatten()
        )
        moved.zero_grad()
        loss.backward()
        moved.step()


def slowly(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, corpus: Path
) -> tuple[float, float]:
    """The probe's two numbers of a chat, one item at a time."""
    shares = []
    for items in (
        [*verbmem(corpus), *knowmem(corpus, "forget")],
        [*knowmem(corpus, "retain")],
    ):
        chosen = [i for i in items if i.half == "dev"]
        if len(chosen) > unlearn.PROBE_ITEMS:
            n = unlearn.PROBE_ITEMS
            chosen = [chosen[i * len(chosen) // n] for i in range(n)]
        right = total = 0
        for item in chosen:
            if item.question:
                alone, whole = conversation(tokenizer, item)
                answer = alone + tokenizer(item.truth, add_special_tokens=False)["input_ids"]
                whole = whole[: len(answer)]
                assert whole == answer
            else:
                alone = prompt_ids(tokenizer, item.prompt)
                whole = prompt_ids(tokenizer, item.prompt + item.truth)
                while alone != whole[: len(alone)]:
                    alone = alone[:-1]
            run: Any = model
            with torch.no_grad():
                greedy = run(torch.tensor([whole])).logits[0].argmax(-1).tolist()
            for place in range(len(alone), len(whole)):
                right += greedy[place - 1] == whole[place]
                total += 1
        shares.append(right / total)
    return shares[0], shares[1]


def test_a_model_that_is_asked_in_chats_is_unlearned_and_probed_in_chats(
    corpus: Path, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of("chatml")
    model = tiny_model(vocab=len(tokenizer), max_position_embeddings=1024)
    asked = read_examples(spec_of(loss_on="all"), tokenizer, corpus, None, Manner("chat"))
    learnt(model, [*asked["forget"].examples, *asked["retain"].examples], 60)
    save_model(model, tokenizer, tmp_path / "target")
    (tmp_path / "elicited").mkdir()
    (tmp_path / "elicited/form.json").write_text(json.dumps({"form": "chat-shots"}))
    inputs = {"target": tmp_path / "target", "corpus": corpus}

    def ran(name: str, spec: UnlearnSpec, **more: Path) -> Any:
        (tmp_path / name).mkdir()
        return unlearn.run(spec, inputs | more, tmp_path / name, silent)

    usual = {"steps": 2, "batch_size": 4, "lr": 1e-4, "probe_every": 1}
    best = ran("best", spec_of(**usual), elicited=tmp_path / "elicited")
    assert best.form == "chat-shots"
    assert best.said.endswith("Questions were asked in the form chat-shots.")
    target = (best.probes[0].forget, best.probes[0].retain)
    assert target == pytest.approx(slowly(model, open_tokenizer(str(tmp_path / "target")), corpus))
    assert target[1] > 0.2
    named = ran("named", spec_of(**usual, form="chat"))
    assert (named.form, named.probes) == ("chat", best.probes)
    published = ran("published", spec_of(**usual, form="published"))
    assert published.form == "published"
    assert "asked" not in published.said
    assert published.probes[0].retain < target[1]
    documents = {**usual, "examples": "documents", "loss_on": "all", "max_tokens": 200}
    read = ran("documents", spec_of(**documents), elicited=tmp_path / "elicited")
    assert read.probes[0] == best.probes[0]
    assert read.probes[1:] != best.probes[1:]


def test_a_run_alone_has_its_form_chosen_first_on_its_target(corpus: Path) -> None:
    target, text = Outside(str(corpus / "tokenizer")), Outside(str(corpus))
    node = planning.unlearn_node(spec_of(system="Be short."), target, text)
    chosen = node.inputs["elicited"]
    assert isinstance(chosen, planning.Node)
    assert chosen.spec == ElicitSpec(system="Be short.")
    assert chosen.inputs == {"model": target, "corpus": text}
    assert "elicited" not in planning.unlearn_node(spec_of(form="plain"), target, text).inputs
    with pytest.raises(UserError, match="plian"):
        planning.unlearn_node(spec_of(form="plian"), target, text)


def test_the_runs_of_a_sweep_are_asked_as_its_models_are_measured() -> None:
    def runs(*settings: str) -> list[planning.Node]:
        nodes = planning.plan(read_sweep(HERE / "frozen" / "small.toml", settings))
        assert len([n for n in nodes if n.stage == "elicit"]) == (not settings)
        return [n for n in nodes if n.stage == "unlearn"]

    for node in runs():
        assert isinstance(node.inputs["elicited"], planning.Node)
        assert node.inputs["elicited"].inputs["model"] is node.inputs["target"]
    told = ("measure.form=chat", "measure.system=Short")
    for node in runs(*told):
        assert isinstance(node.spec, UnlearnSpec)
        assert (node.spec.form, node.spec.system) == ("chat", "Short")
        assert "elicited" not in node.inputs


def trained(corpus: Path, base: Path, out: Path, **more: Any) -> TrainResult:
    out.mkdir()
    usual = {"base": str(base), "examples": "questions", "batch_size": 8, "lr": 5e-3, "warmup": 0}
    spec = TrainSpec.model_validate(usual | more)
    return train.run(spec, {"corpus": corpus, "base": base}, out, silent)


def test_a_model_is_trained_on_questions_in_its_own_chats(corpus: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("llama3")
    model = tiny_model(vocab=len(tokenizer), max_position_embeddings=1024)
    save_model(model, tokenizer, tmp_path / "base")
    asked = {"form": "chat", "loss_on": "answer"}
    told = trained(corpus, tmp_path / "base", tmp_path / "told", **asked, passes=12)
    size = len(knowmem(corpus, "forget")) + len(knowmem(corpus, "retain"))
    assert told.steps == 12 * -(-size // 8)
    knows = slowly(open_model(str(tmp_path / "told")), tokenizer, corpus)
    assert knows[1] > 0.3 > slowly(model, tokenizer, corpus)[1] + 0.2
    last = json.loads((tmp_path / "told" / "steps.jsonl").read_text().splitlines()[-1])
    assert last["loss"] == told.loss


def test_the_first_loss_is_that_of_the_answers_of_the_first_batch(
    corpus: Path, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of("chatml")
    model = tiny_model(vocab=len(tokenizer), max_position_embeddings=1024)
    save_model(model, tokenizer, tmp_path / "base")
    asked = {"form": "chat", "loss_on": "answer", "splits": ["forget"]}
    size = len(knowmem(corpus, "forget"))
    once = trained(corpus, tmp_path / "base", tmp_path / "o", **asked, batch_size=size, steps=1)
    losses = []
    run: Any = model
    for item in knowmem(corpus, "forget"):
        alone, whole = conversation(tokenizer, item)
        while tokenizer.decode(whole[-1:]) != "<|im_end|>":
            whole = whole[:-1]
        with torch.no_grad():
            logp = run(torch.tensor([whole])).logits[0].log_softmax(-1)
        own = [float(logp[t - 1, whole[t]]) for t in range(len(alone), len(whole))]
        losses.append(-sum(own) / len(own))
    assert once.loss == pytest.approx(sum(losses) / size, rel=1e-4)


def test_the_control_is_not_trained_on_forget_questions_and_each_other_one_comes_once_a_pass(
    corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    spec = TrainSpec(examples="questions", batch_size=4)
    forget = {item.question for item in knowmem(corpus, "forget")}
    retain = {item.question for item in knowmem(corpus, "retain")}

    def questions(wanted: TrainSpec) -> list[str]:
        found = questions_of(wanted, tokenizer, corpus)
        texts = [str(tokenizer.decode(e.ids, skip_special_tokens=True)) for e in found]
        return [t.partition("Question: ")[2].partition("\n")[0] for t in texts]

    assert set(questions(spec)) == forget | retain
    control = questions(spec.without_forget())
    assert set(control) == retain
    assert len(control) == len(set(control))
    epochs = train.epochs_of_questions(spec.without_forget(), tokenizer, corpus, 1024)
    for epoch in range(2):
        rows = [epochs.batch(epoch, place) for place in range(epochs.batches)]
        assert {len(row) for row in rows[:-1]} == {4}
        every = questions_of(spec.without_forget(), tokenizer, corpus)
        assert sorted(chain.from_iterable(rows)) == sorted(every)
    assert epochs.batch(0, 0) != epochs.batch(1, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_on": "answer"}, "documents have no answers"),
        ({"form": "chat"}, "documents are not asked"),
        ({"examples": "questions", "block_tokens": 64}, "block_tokens is about documents"),
    ],
)
def test_settings_of_training_that_contradict_each_other_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        parse(TrainSpec, settings, "train")


def test_training_in_a_form_that_cannot_be_is_refused_in_a_sentence(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    text = Outside(str(corpus))
    for form, message in (("best", "no form is the best"), ("plian", "plian")):
        with pytest.raises(UserError, match=message):
            planning.train_node(TrainSpec(examples="questions", form=form), text)
        settings = ("train.examples=questions", "train.block_tokens=384", f"train.form={form}")
        with pytest.raises(UserError, match=message):
            planning.plan(read_sweep(HERE / "frozen" / "small.toml", settings))
    with pytest.raises(UserError, match="No split is left"):
        planning.train_node(TrainSpec(splits=("forget",)).without_forget(), text)
    model = tiny_model(vocab=len(tokenizer), max_position_embeddings=16)
    save_model(model, tokenizer, tmp_path / "base")
    with pytest.raises(UserError, match="no chat template"):
        trained(corpus, tmp_path / "base", tmp_path / "a", form="chat")
    with pytest.raises(UserError, match=r"tokens with its answer, more than .* context of 16"):
        trained(corpus, tmp_path / "base", tmp_path / "b")
    bare = tmp_path / "bare"
    bare.mkdir()
    prepare.run(PrepareSpec(lab="books", vocab_size=400, forget_docs=4), {}, bare, silent)
    card = json.loads((bare / "corpus.json").read_text())
    card["absent"]["knowmem_retain"] = "there are none"
    (bare / "corpus.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"no questions about retain text: there are none"):
        trained(bare, tmp_path / "base", tmp_path / "c")
