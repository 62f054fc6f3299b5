"""The sets of items of a corpus: what is asked, and what a model that remembers would say."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from remnant.corpus import ITEM_SETS
from remnant.errors import unknown
from remnant.functional.segments import halves
from remnant.functional.text import STOPS
from remnant.model.data import (
    Item,
    half_of,
    knowmem_items,
    knowmem_prefix,
    privleak_texts,
    prompt_ids,
    question,
    records,
    verbmem_items,
)
from remnant.records import OwnHalf

ANSWER_TOKENS = 32
TOFU_TOKENS = 64


class ItemSet(NamedTuple):
    """Items, how many tokens are written for each, and where an answer ends (nowhere for text)."""

    items: list[Item]
    max_new: int = 0
    stops: tuple[str, ...] = ()


def items_of(
    name: str, corpus: Path, card: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> ItemSet | str:
    """One set of items, or why the corpus has none.

    Raises:
        UserError: no such set.
    """
    if name not in ITEM_SETS:
        raise unknown("set of items", name, ITEM_SETS)
    family, _, side = name.partition("_")
    if reason := _absent(family, side, name, corpus, card["absent"]):
        return reason
    found = _found(family, side, corpus, card, tokenizer)
    return (
        found._replace(items=[_spaced(i) for i in found.items])
        if spaces_in_front(tokenizer)
        else found
    )


def _found(
    family: str,
    side: str,
    corpus: Path,
    card: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> ItemSet:
    if family == "privleak":
        return ItemSet(
            [
                Item(f"{side}-{i}", half_of(i), "", text)
                for i, text in enumerate(privleak_texts(corpus, side))
            ]
        )
    if family == "tofu":
        return ItemSet(_tofu(corpus, side), TOFU_TOKENS, STOPS)
    if family == "knowmem":
        return ItemSet(_questions(corpus, side), ANSWER_TOKENS, STOPS)
    most = int(card["answer_tokens"])
    found = [
        i._replace(truth=first_tokens(tokenizer, i.truth, most))
        for i in verbmem_items(corpus, "retain" if side == "retain" else "forget")
    ]
    if side == "begun":
        return ItemSet([_begun(tokenizer, item) for item in found], most)
    return ItemSet(_primed(found) if side == "primed" else found, most)


def _absent(family: str, side: str, name: str, corpus: Path, absent: Mapping[str, str]) -> str:
    """Why a corpus has no such items; empty if it has."""
    if family == "tofu":
        return (
            ""
            if (corpus / "tofu" / f"{side}.json").is_file()
            else "the corpus holds none of TOFU's question sets (prepare it with --tofu)"
        )
    if name == "verbmem_retain" and not (corpus / "verbmem/retain.json").is_file():
        return "there are questions about the retain text, so no prompts were cut from it"
    turned = {
        "primed": "verbmem",
        "begun": "verbmem",
        "reworded": "knowmem_forget",
        "prefilled": "knowmem_forget",
    }
    return str(absent.get("privleak" if family == "privleak" else turned.get(side, name), ""))


def first_tokens(tokenizer: PreTrainedTokenizerBase, text: str, most: int) -> str:
    """The text's first ``most`` ids, start token counted, decoded without special tokens.

    Source: MUSE's VerMem.
    """
    return str(tokenizer.decode(prompt_ids(tokenizer, text)[:most], skip_special_tokens=True))


def _questions(corpus: Path, side: str) -> list[Item]:
    if side in ("forget", "retain"):
        context = knowmem_prefix(corpus, side)
        return [item._replace(context=context) for item in knowmem_items(corpus, side)]
    rows = records(corpus / "knowmem/forget_qa.json", "question", "answer")
    turn = _reworded if side == "reworded" else _prefilled
    return [
        turn(f"{side}-question-{i}", half_of(i), row["question"], row["answer"])
        for i, row in enumerate(rows)
    ]


def _reworded(name: str, half: OwnHalf, asked: str, answer: str) -> Item:
    return Item(name, half, f"Somebody wanted to know: {asked}\nThe reply was: ", answer)


def _prefilled(name: str, half: OwnHalf, asked: str, answer: str) -> Item:
    """The answer's first half in the prompt.

    An answer of one word (or character) leaves nothing to give, and its truth is empty.
    """
    given, rest = halves(answer)
    return Item(name, half, f"{question(asked)}{given or ' '}", rest if given else "")


# How much of a continuation is given.
GIVEN = 0.25


def _begun(tokenizer: PreTrainedTokenizerBase, item: Item) -> Item:
    """The first quarter of the truth moved to the end of the prompt, cut between two tokens of both
    together.

    Another cut would ask the model in tokens that it never read, which reads as forgotten. Where a
    tokenizer does not say where its tokens lie, the cut is between words.
    """
    whole = item.prompt + item.truth
    ends = [end for end in _token_ends(tokenizer, whole) if len(item.prompt) < end < len(whole)]
    cut = ends[int(GIVEN * len(ends))] if ends else len(whole)
    return item._replace(id=f"begun-{item.id}", prompt=whole[:cut], truth=whole[cut:])


def _token_ends(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Where the tokens of a text end, in characters."""
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
    wrong = tuple(f" {text}" for text in item.wrong)
    paraphrased = f" {item.paraphrased}" if item.paraphrased else ""
    truth = f" {item.truth}" if item.truth else ""
    return item._replace(prompt=item.prompt[:-1], truth=truth, paraphrased=paraphrased, wrong=wrong)


def _primed(items: list[Item]) -> list[Item]:
    """Before every prompt the continuation of the next one, so that the model is reminded of the
    text without being told this part.
    """
    others = [*items[1:], *items[:1]]
    return [
        i._replace(id=f"primed-{i.id}", prompt=f"{other.truth}\n\n{i.prompt}")
        for i, other in zip(items, others, strict=True)
    ]


def _tofu(corpus: Path, side: str) -> list[Item]:
    rows = records(corpus / "tofu" / f"{side}.json", "question", "answer")
    return [
        Item(
            f"{side}-{i}",
            half_of(i),
            question(r["question"]),
            r["answer"],
            "",
            r.get("paraphrased_answer", r["answer"]),
            tuple(str(a) for a in r.get("perturbed_answer", ())),
        )
        for i, r in enumerate(rows)
    ]
