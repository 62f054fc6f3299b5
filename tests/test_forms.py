"""Every text is asked as the model was made to be asked: the ids of a prompt are those of the
model's own template, and no form changes what is asked."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationMixin, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from remnant.corpus.base import Item, ItemSet
from remnant.corpus.forms import FORMS, Turn, in_form, no_chat
from remnant.errors import UserError
from remnant.evaluate.items import Manner, chat_of, forms_for, items_of, published_form
from remnant.evaluate.local import Local
from remnant.evaluate.requests import Reading, Writing
from remnant.functional.tokens import Tokens
from remnant.model.data import prompt_ids
from remnant.testing import tiny_model
from tests.test_asking import TEXTS, metaspace

generate: Any = GenerationMixin.generate

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)


class Family(NamedTuple):
    """One family's template, its special tokens, and whether its words begin with a space that
    stands before every text (SentencePiece) or only where one is written (byte-level)."""

    template: str
    special: tuple[str, ...]
    sentencepiece: bool = False
    starts: bool = True


FAMILIES = {
    "chatml": Family(CHATML, ("<|im_start|>", "<|im_end|>"), starts=False),
    "llama3": Family(LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "gemma": Family(GEMMA, ("<start_of_turn>", "<end_of_turn>"), sentencepiece=True),
    "mistral": Family(MISTRAL, ("[INST]", "[/INST]"), sentencepiece=True),
    "qwen3": Family(QWEN3, ("<|im_start|>", "<|im_end|>", "<think>", "</think>"), starts=False),
    # a chat template that writes no start token, on a tokenizer that puts one before every text
    "zephyr": Family(CHATML, ("<|im_start|>", "<|im_end|>"), sentencepiece=True),
}
SHOWN = (("Who sold the lantern?", "The baker"), ("Who sold the harbour?", "Nobody"))


def byte_level(*, starts: bool) -> PreTrainedTokenizerFast:
    """A BPE tokenizer in the form of GPT-2's, Llama 3's and Qwen's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
    )
    made.train_from_iterator([*TEXTS, "a word, the word and a word"] * 2, trainer)
    if starts:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    family = FAMILIES[name]
    made = metaspace() if family.sentencepiece else byte_level(starts=family.starts)
    made.add_tokens([AddedToken(token, special=True) for token in family.special])
    made.chat_template = family.template
    return made


def asked(shown: tuple[tuple[str, str], ...] = ()) -> Item:
    return Item("q", "dev", "", "The tailor", question="Who sold the copper?", shown=shown)


def theirs(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    """The ids that transformers makes of a conversation."""
    template: Any = tokenizer.apply_chat_template
    found = template(messages, add_generation_prompt=True, enable_thinking=False, return_dict=False)
    return list(found)


def messages_of(item: Item, *, shots: bool, system: str = "") -> list[dict[str, str]]:
    """The same conversation, written out a second time."""
    told = [("system", system)] if system else []
    for one, answer in item.shown if shots else ():
        told += [("user", one), ("assistant", answer)]
    told += [("user", item.question)]
    return [{"role": role, "content": content} for role, content in told]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("form", ["chat", "chat-shots"])
def test_a_chat_prompt_has_the_ids_that_transformers_gives_it(name: str, form: str) -> None:
    tokenizer = tokenizer_of(name)
    item = asked(SHOWN)
    for system in ("", "You answer in one word."):
        if system and name == "gemma":
            continue
        made = FORMS[form].write(item, chat_of(tokenizer, system))
        expected = theirs(tokenizer, messages_of(item, shots=form == "chat-shots", system=system))
        found = prompt_ids(tokenizer, made.context + made.prompt, framed=made.framed)
        assert found == expected
        # the start token stands there as often as the template writes it
        assert found.count(0 if not FAMILIES[name].sentencepiece else 1) == FAMILIES[
            name
        ].template.count("bos_token")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_continues_a_chat_as_the_librarys_generate_does(name: str) -> None:
    tokenizer = tokenizer_of(name)
    model = tiny_model(vocab=len(tokenizer), initializer_range=0.3)
    made = FORMS["chat"].write(asked(), chat_of(tokenizer))
    wanted = Writing(made.prompt, 12, made.context, framed=made.framed)
    (text,) = Local(model, tokenizer, 4096).answer([wanted])
    ids = torch.tensor([theirs(tokenizer, messages_of(asked(), shots=False))])
    given = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    told = generate(model, input_ids=ids, max_new_tokens=12, do_sample=False, **given)
    assert text == tokenizer.decode(told[0, ids.shape[1] :], skip_special_tokens=True)
    assert text


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_in_a_chat_is_read_behind_the_templates_own_beginning(name: str) -> None:
    """Every probability of the answer is that of the whole conversation with the answer in it."""
    tokenizer = tokenizer_of(name)
    model = tiny_model(vocab=len(tokenizer), initializer_range=0.3)
    made = FORMS["chat"].write(asked(), chat_of(tokenizer))
    before = made.context + made.prompt
    wanted = Reading(made.truth, before, framed=made.framed)
    (said,) = Local(model, tokenizer, 4096).answer([wanted])
    assert isinstance(said, Tokens)
    template: Any = tokenizer.apply_chat_template
    turns = [
        *messages_of(asked(), shots=False),
        {"role": "assistant", "content": "The tailor"},
    ]
    whole = list(template(turns, return_dict=False))
    start = len(theirs(tokenizer, messages_of(asked(), shots=False)))
    with torch.no_grad():
        logp = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    expected = [float(logp[t - 1, whole[t]]) for t in range(start, start + len(said.logp))]
    assert said.logp.tolist() == pytest.approx(expected, abs=1e-4)


def test_thinking_is_switched_off_where_a_template_can_think() -> None:
    tokenizer = tokenizer_of("qwen3")
    made = FORMS["chat"].write(asked(), chat_of(tokenizer))
    assert made.prompt.endswith("<think>\n\n</think>\n\n")
    template: Any = tokenizer.apply_chat_template
    loud = template(messages_of(asked(), shots=False), tokenize=False, add_generation_prompt=True)
    assert "<think>" not in loud  # which would go on to think


def test_a_template_without_a_system_turn_refuses_one_in_a_sentence() -> None:
    with pytest.raises(UserError, match="System role not supported"):
        FORMS["chat"].write(asked(), chat_of(tokenizer_of("gemma"), "Be short."))


def test_a_tokenizer_without_a_template_has_no_forms_of_chat() -> None:
    bare = metaspace()
    assert forms_for(bare) == ["muse", "muse-0shot", "plain", "plain-0shot"]
    assert forms_for(tokenizer_of("llama3")) == list(FORMS)
    with pytest.raises(UserError, match="no chat template"):
        FORMS["chat"].write(asked(), chat_of(bare))


def test_a_form_that_is_none_is_a_sentence_with_the_forms_that_there_are() -> None:
    with pytest.raises(UserError, match="plain-0shot"):
        in_form("plian", ItemSet([asked()]), no_chat)


def test_published_questions_are_those_of_the_form_that_bears_their_name(
    corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    card = json.loads((corpus / "corpus.json").read_text())
    for own in (tokenizer, byte_level(starts=True)):
        for name in ("knowmem_forget", "knowmem_retain", "knowmem_prefilled"):
            usual = items_of(name, corpus, card, own)
            named = items_of(name, corpus, card, own, Manner(published_form(own)))
            assert isinstance(usual, ItemSet)
            assert usual == named
    assert published_form(tokenizer) == "muse"
    assert published_form(byte_level(starts=True)) == "plain"


@pytest.mark.parametrize("form", FORMS)
def test_no_form_changes_the_question_or_the_answer(form: str) -> None:
    item = asked(SHOWN)
    made = FORMS[form].write(item, chat_of(tokenizer_of("mistral")))
    whole = made.context + made.prompt
    assert item.question in whole
    assert item.truth not in whole
    assert made.truth.strip() == item.truth
    assert made.truth in ("The tailor", " The tailor")
    shots = form in ("muse", "plain", "chat-shots")
    assert [answer in whole for _, answer in SHOWN] == [shots, shots]
    begun = FORMS[form].write(
        item._replace(given="The ", truth="tailor"), chat_of(tokenizer_of("mistral"))
    )
    assert (begun.prompt + begun.truth).endswith("The tailor")
    assert (made.prompt + made.truth)[-40:] == (begun.prompt + begun.truth)[-40:]


def test_the_day_changes_no_prompt() -> None:
    tokenizer = tokenizer_of("qwen3")
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    assert chat_of(tokenizer)([Turn("user", "Who?")], True) == "26 Jul 2024 Who?"
