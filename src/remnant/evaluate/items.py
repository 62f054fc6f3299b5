"""The sets of items of a corpus: what is asked, and what a model that remembers would say."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from remnant.corpus import ITEM_SETS, lacking
from remnant.corpus.base import Asking, Item, ItemSet
from remnant.errors import unknown
from remnant.model.data import prompt_ids


def items_of(
    name: str, corpus: Path, card: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> ItemSet | str:
    """One set of items, or why the corpus has none.

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
    found = entry.ask(entry.items(corpus), asking)
    if not spaces_in_front(tokenizer):
        return found
    return found._replace(items=[_spaced(item) for item in found.items])


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


def _spaced(item: Item) -> Item:
    """The last space of a prompt at the beginning of what follows: a lone space would make such a
    model write digits, not words.
    """
    if not item.prompt.endswith(" "):
        return item
    return item._replace(
        prompt=item.prompt[:-1],
        truth=f" {item.truth}" if item.truth else "",
        paraphrased=f" {item.paraphrased}" if item.paraphrased else "",
        wrong=tuple(f" {text}" for text in item.wrong),
        choices=tuple(f" {text}" for text in item.choices),
    )
