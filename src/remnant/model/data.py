"""From a corpus folder in MUSE's layout to items, token lists and batches."""

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.functional.view import IGNORED


class Item(NamedTuple):
    """One prompt with the text that a model which remembers would continue it by.

    ``context`` stands before the prompt and is common to many items; ``paraphrased`` says the truth in other words, ``wrong`` something
    else in these words.
    """

    id: str
    half: str
    prompt: str
    truth: str
    context: str = ""
    paraphrased: str = ""
    wrong: tuple[str, ...] = ()


class Batch(NamedTuple):
    """Token ids [B, T] padded on the right, their mask [B, T] and the labels [B, T] (ids, ``IGNORED`` on padding)."""

    ids: Tensor
    mask: Tensor
    labels: Tensor


def half_of(index: int) -> str:
    """Items at even places are for development (checkpoint selection), at odd places for the report."""
    return "test" if index % 2 else "dev"


def read_list(path: Path) -> list[Any]:
    """A JSON list from a corpus folder.

    Raises:
        UserError: missing, not UTF-8, not JSON, or not a list.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"The corpus has no {path.parent.name}/{path.name}.", "Prepare it again.") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON in UTF-8: {error}.") from error
    if not isinstance(data, list):
        raise UserError(f"{path} holds no list.", "MUSE's files are lists of strings or of records.")
    return data


def settings(corpus: Path) -> dict[str, Any]:
    """The corpus card: name, token lengths, counts, and the metrics that are absent with the reason.

    Raises:
        UserError: the folder is not a prepared corpus.
    """
    try:
        card = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        remedy = f"Prepare it first: remnant prepare --forget {corpus} --retain ..., and give the folder that this prints as --data."
        raise UserError(f"{corpus} is not a prepared corpus: it has no corpus.json.", remedy) from error
    except ValueError as error:
        raise UserError(f"{corpus / 'corpus.json'} is not JSON in UTF-8: {error}.", "Prepare the corpus again.") from error
    if not isinstance(card, dict) or not isinstance(card.get("absent"), dict) or not isinstance(card.get("answer_tokens"), int):
        raise UserError(f"{corpus / 'corpus.json'} is no card of a corpus.", "Prepare the corpus again.")
    return card


def raw_texts(corpus: Path, split: str) -> list[str]:
    """The documents of one split: forget, retain1, retain2 or holdout."""
    return [text for text in read_list(corpus / "raw" / f"{split}.json") if text.strip()]


def verbmem_items(corpus: Path, side: str = "forget") -> list[Item]:
    """Prompts cut from forget (or retain) text, with the text that follows."""
    rows = read_list(corpus / "verbmem" / f"{side}.json")
    return [Item(f"{side}-text-{i}", half_of(i), row["prompt"], row["gt"]) for i, row in enumerate(rows)]


def question(text: str, answer: str = "") -> str:
    """One question in the form in which it is asked; with an answer, as a shown example."""
    return f"Question: {text}\nAnswer: {answer}\n\n" if answer else f"Question: {text}\nAnswer: "


def knowmem_items(corpus: Path, side: str) -> list[Item]:
    """Questions about forget or retain text; the prompt without the shown examples."""
    rows = read_list(corpus / "knowmem" / f"{side}_qa.json")
    return [Item(f"{side}-question-{i}", half_of(i), question(r["question"]), r["answer"]) for i, r in enumerate(rows)]


def knowmem_prefix(corpus: Path, side: str) -> str:
    """The shown examples that stand before every question of one side."""
    rows = read_list(corpus / "knowmem" / f"{side}_qa_icl.json")
    return "".join(question(row["question"], row["answer"]) for row in rows)


def privleak_texts(corpus: Path, split: str) -> list[str]:
    """Texts for the membership test."""
    return [str(text) for text in read_list(corpus / "privleak" / f"{split}.json")]


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_tokens: int) -> list[list[int]]:
    """Token lists of at most ``max_tokens``; a longer text becomes several, none shorter than two tokens."""
    chunks: list[list[int]] = []
    for text in texts:
        ids = list(tokenizer(text)["input_ids"])
        chunks += [ids[i : i + max_tokens] for i in range(0, len(ids), max_tokens)]
    return [chunk for chunk in chunks if len(chunk) > 1]


def pack(tokenizer: PreTrainedTokenizerBase, texts: list[str], block: int, seed: int) -> list[list[int]]:
    """Documents in random order, separated by a blank line (MUSE's .txt form), in blocks of at most ``block`` tokens.

    Every block starts with the tokenizer's start token and the start of a document; a longer document is cut.
    """
    order = random.Random(seed).sample(range(len(texts)), len(texts))
    start, gap = list(tokenizer("")["input_ids"]), list(tokenizer("\n\n", add_special_tokens=False)["input_ids"])
    blocks: list[list[int]] = []
    for i in order:
        ids = list(tokenizer(texts[i], add_special_tokens=False)["input_ids"])
        if blocks and len(blocks[-1]) + len(gap) + len(ids) <= block:
            blocks[-1] += gap + ids
        else:
            room = block - len(start)
            blocks += [start + ids[k : k + room] for k in range(0, len(ids), room)]
    return [b for b in blocks if len(b) > 1]


def batch_order(size: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Which examples stand in the batch of a step: passes over a permutation that is new in every epoch.

    A pure function of its arguments, so that a resumed run sees the same batches.
    """
    places = range(step * batch_size, (step + 1) * batch_size)
    orders: dict[int, list[int]] = {}
    chosen = []
    for place in places:
        epoch, position = divmod(place, size)
        if epoch not in orders:
            orders[epoch] = random.Random(f"{seed}-{epoch}").sample(range(size), size)
        chosen.append(orders[epoch][position])
    return chosen


def collate(examples: list[list[int]], pad: int, where: torch.device) -> Batch:
    """Pad token lists on the right; padding is neither attended nor counted."""
    longest = max(len(e) for e in examples)
    ids = torch.tensor([e + [pad] * (longest - len(e)) for e in examples], device=where)
    lengths = torch.tensor([len(e) for e in examples], device=where)
    mask = (torch.arange(longest, device=where) < lengths[:, None]).long()
    return Batch(ids, mask, ids.masked_fill(mask == 0, IGNORED))
