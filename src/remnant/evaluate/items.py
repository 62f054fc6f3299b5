"""The sets of items of a corpus: what is asked, and what a model that remembers would say."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from remnant.corpus import ITEM_SETS, lacking
from remnant.corpus.base import Asking, Item, ItemSet
from remnant.corpus.forms import (
    BEST,
    FORMS,
    PUBLISHED,
    Chat,
    Turn,
    in_form,
    no_chat,
    space_behind,
)
from remnant.errors import UserError, first_line, unknown
from remnant.model.data import prompt_ids
from remnant.records import MeasureSpec, UnlearnSpec

# Templates that can think before they answer are told not to: Qwen's and SmolLM's by the first
# name, DeepSeek's and Granite's by the second. Others read neither.
NO_THINKING = {"enable_thinking": False, "thinking": False}
# Templates that tell the day are told always the same, so that no two models are asked otherwise.
# Its date is the one that Llama 3's own template falls back to.
SAME_DAY = {"strftime_now": datetime(2024, 7, 26).strftime}


class Manner(NamedTuple):
    """How questions are asked: the name of a form, and what a conversation is told first."""

    form: str = PUBLISHED
    system: str = ""


AS_PUBLISHED = Manner()


def manner_of(spec: MeasureSpec | UnlearnSpec, inputs: Mapping[str, Path]) -> Manner:
    """How questions are asked: in the form that a spec names or, for the best one, that an artefact
    beside the model has chosen; as published where none has.
    """
    form = spec.form
    if form == BEST and "elicited" in inputs:
        form = json.loads((inputs["elicited"] / "form.json").read_bytes())["form"]
    return Manner(PUBLISHED if form == BEST else form, spec.system)


def items_of(
    name: str,
    corpus: Path,
    card: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    manner: Manner = AS_PUBLISHED,
    *,
    alone: bool = False,
) -> ItemSet | str:
    """One set of items, its questions asked in a form, or why the corpus has none.

    ``alone``: without answered questions before them.

    Raises:
        UserError: no such set, no such form, or one of chats and no template.
    """
    found = unasked(name, corpus, card, tokenizer)
    if isinstance(found, str):
        return found
    if alone:
        found = found._replace(items=[alone_of(item) for item in found.items])
    entry = ITEM_SETS[name]
    form = entry.form or manner.form
    if entry.asked == "answer" and form != PUBLISHED:
        found = in_form(form, found, chat_of(tokenizer, manner.system))
    if not spaces_in_front(tokenizer):
        return found
    rest = [
        item if item.question and form != PUBLISHED else space_behind(item) for item in found.items
    ]
    return found._replace(items=rest)


def alone_of(item: Item) -> Item:
    """A question without answered ones before it."""
    return item._replace(context="", shown=())


def unasked(
    name: str, corpus: Path, card: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> ItemSet | str:
    """One set of items before any form is given to its questions, or why the corpus has none.

    Raises:
        UserError: no such set.
    """
    if name not in ITEM_SETS:
        raise unknown("set of items", name, ITEM_SETS)
    if reason := lacking(name, corpus, card["absent"]):
        return reason
    entry = ITEM_SETS[name]
    asking = Asking(
        int(card["answer_tokens"]), partial(first_tokens, tokenizer), partial(token_ends, tokenizer)
    )
    return entry.ask(entry.items(corpus), asking)


def published_form(tokenizer: PreTrainedTokenizerBase) -> str:
    """The name of the form in which MUSE's questions are asked as published: its space belongs to
    the answer where words begin with one.
    """
    return "plain" if spaces_in_front(tokenizer) else "muse"


def forms_for(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The forms in which a model with this tokenizer can be asked."""
    return [name for name, form in FORMS.items() if not form.chat or tokenizer.chat_template]


def chat_of(tokenizer: PreTrainedTokenizerBase, system: str = "") -> Chat:
    """The template of a tokenizer, as a function; one that refuses where it has none.

    Args:
        tokenizer: the model's.
        system: what every conversation begins with, where it is not empty.
    """
    if not tokenizer.chat_template:
        return no_chat
    first = [Turn("system", system)] if system else []
    template: Any = tokenizer.apply_chat_template

    def render(turns: Sequence[Turn], go_on: bool) -> str:
        messages = [turn._asdict() for turn in [*first, *turns]]
        try:
            return str(
                template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=go_on,
                    **NO_THINKING,
                    **SAME_DAY,
                )
            )
        except Exception as error:  # a template is a program, and raises whatever it likes
            raise UserError(
                f"The model's chat template refuses the conversation: {first_line(error)}",
                "Ask in another form, or without a system text.",
            ) from error

    return render


def first_tokens(tokenizer: PreTrainedTokenizerBase, text: str, most: int) -> str:
    """The text's first ``most`` ids, start token counted, decoded without special tokens.

    Source: MUSE's VerMem.
    """
    return str(tokenizer.decode(prompt_ids(tokenizer, text)[:most], skip_special_tokens=True))


def token_ends(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Where the tokens of a text end, in characters; where a tokenizer does not say, its words."""
    if tokenizer.is_fast:
        return [
            int(end)
            for _, end in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
                "offset_mapping"
            ]
        ]
    return [match.end() for match in re.finditer(r"\s*\S+", text)]


def spaces_in_front(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a word begins with the space before it, as in byte-level tokenizers (GPT-2, Llama 3,
    Qwen).

    SentencePiece's (Llama 2) do not count: MUSE's form was made for them, and is kept as published.
    """
    tokens = tokenizer.convert_ids_to_tokens(
        tokenizer("a word, the word and a word", add_special_tokens=False)["input_ids"]
    )
    return any(str(t).startswith("Ġ") and len(str(t)) > 1 for t in tokens)
