"""From a corpus to the training examples of every side: documents, or questions with their
answers.
"""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from remnant.corpus.base import Item
from remnant.corpus.prepared import raw_texts, settings
from remnant.errors import UserError
from remnant.evaluate.items import AS_PUBLISHED, Manner, items_of
from remnant.flow.alternatives import Alternatives, read_alternatives
from remnant.flow.tokenweights import TokenWeights, read_token_weights
from remnant.methods import sides_read
from remnant.model.data import cut, encode, frame, head_of, pack, prompt_ids
from remnant.model.examples import Example, Pool, beside, joined, passes, pool_of
from remnant.readings import SIDES
from remnant.records import TrainSpec, UnlearnSpec
from remnant.stages.tokenweights import by_spans, weighed

# Sets of questions about each side, the first that a corpus has.
QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "forget": ("tofu_forget", "knowmem_forget"),
    "retain": ("tofu_retain", "knowmem_retain"),
}


def read_examples(
    spec: UnlearnSpec,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Path,
    alternatives: Path | None = None,
    manner: Manner = AS_PUBLISHED,
    token_weights: Path | None = None,
) -> dict[str, Pool]:
    """The examples of every side, as far as the corpus has them; questions in a form of asking, and
    tokens of forget text with the weights of a file.

    Retain questions are those of the development half: the other half is what a report measures
    utility by, and has not been trained on.

    Raises:
        UserError: the corpus has no questions, one is too long, or alternatives or weights do not
            fit.
    """
    pools = {side: Pool([]) for side in SIDES}
    weights = read_token_weights(str(token_weights)) if token_weights is not None else None
    if spec.examples == "documents":
        return pools | {
            "forget": _weighed(spec, tokenizer, corpus, weights)
            if weights
            else _documents(spec, tokenizer, corpus, ("forget",)),
            "retain": _documents(spec, tokenizer, corpus, spec.retain or ("retain1",)),
        }
    items = {side: questions_about(side, tokenizer, corpus, manner) for side in QUESTIONS}
    items["retain"] = [item for item in items["retain"] if item.half == "dev"]
    for side, found in items.items():
        pools[side] = Pool([_answered(spec, tokenizer, item, item.truth) for item in found])
    if weights:
        pools["forget"] = _weighed_answers(tokenizer, pools["forget"], items["forget"], weights)
    given = read_alternatives(str(alternatives)) if alternatives is not None else None
    for side in ("alternative", *sides_read(spec)):
        partner = SIDES[side].paired_with
        if partner and given:
            pools[side] = _alternatives(spec, tokenizer, items[partner], given)
    return pools


def questions_of(
    spec: TrainSpec, tokenizer: PreTrainedTokenizerBase, corpus: Path
) -> list[Example]:
    """The questions about all splits that are trained on, those of both halves, each once.

    Raises:
        UserError: the corpus has no questions about one of them, or the tokenizer no chats.
    """
    sides = dict.fromkeys("forget" if split == "forget" else "retain" for split in spec.splits)
    found: dict[str, Example] = {}
    for side in sides:
        for item in chain.from_iterable(_questions(side, tokenizer, corpus, Manner(spec.form))):
            found.setdefault(item.question, _example(spec, tokenizer, item, item.truth))
    return list(found.values())


def questions_about(
    side: str, tokenizer: PreTrainedTokenizerBase, corpus: Path, manner: Manner = AS_PUBLISHED
) -> list[Item]:
    """The questions about a side, in the order in which lists of alternatives belong to them.

    Raises:
        UserError: the corpus has none.
    """
    return _questions(side, tokenizer, corpus, manner)[0]


def _documents(
    spec: UnlearnSpec, tokenizer: PreTrainedTokenizerBase, corpus: Path, splits: tuple[str, ...]
) -> Pool:
    """Each text an example, cut at ``max_tokens``.

    Or several short ones packed into one of up to ``pack_tokens``, as MUSE's code does.
    """
    there = [split for split in splits if split == "forget" or _has(corpus, split)]
    texts = [text for split in there for text in raw_texts(corpus, split)]
    if spec.pack_tokens is not None:
        return pool_of(pack(tokenizer, texts, spec.pack_tokens, spec.seed), splits[0])
    return pool_of(encode(tokenizer, texts, spec.max_tokens), splits[0])


def _weighed(
    spec: UnlearnSpec, tokenizer: PreTrainedTokenizerBase, corpus: Path, given: TokenWeights
) -> Pool:
    """The forget texts as ``_documents`` cuts them, the weights of their tokens cut alike."""
    texts = raw_texts(corpus, "forget")
    _check_number(given, len(texts), "forget texts")
    around = frame(tokenizer)
    examples: list[Example] = []
    for i, text in enumerate(texts):
        ids = prompt_ids(tokenizer, text, around)
        own = weighed(tokenizer, text, given.of(i, text), f"forget text {i + 1}")
        pieces = cut([*zip(ids, own, strict=True)], head_of(ids, around), spec.max_tokens)
        for piece in pieces:
            tokens, weights = zip(*piece, strict=True)
            examples.append(Example(f"forget-{len(examples)}", [*tokens], weights=weights))
    return Pool(examples)


def _weighed_answers(
    tokenizer: PreTrainedTokenizerBase, pool: Pool, items: list[Item], given: TokenWeights
) -> Pool:
    """Questions whose answers' tokens have weights."""
    _check_number(given, len(items), "forget questions")
    examples = []
    for i, (example, item) in enumerate(zip(pool.examples, items, strict=True)):
        answer = item.truth.lstrip()
        own = given.of(i, answer)
        if own.tokens:
            raise UserError(
                "The tokens of an answer hang on its question, so they have no list of numbers.",
                "Give [start, end, weight] in characters of the answer.",
            )
        before = item.prompt + item.truth.removesuffix(answer)
        parts = (before, answer, end_of_turn(tokenizer, item.end))
        weights = by_spans(tokenizer, parts, own.spans, framed=item.framed)
        examples.append(example._replace(weights=weights))
    return Pool(examples)


def _check_number(given: TokenWeights, number: int, what: str) -> None:
    if given.each and len(given.each) != number:
        raise UserError(
            f"There are token weights of {len(given.each)} texts for {number} {what}.",
            "Give one entry for each, in the order of the corpus.",
        )


def _has(corpus: Path, split: str) -> bool:
    return (corpus / "raw" / f"{split}.json").is_file()


def _questions(
    side: str, tokenizer: PreTrainedTokenizerBase, corpus: Path, manner: Manner
) -> list[list[Item]]:
    """The sets of questions about one side, at least one, in the form in which they are asked,
    without shown examples.
    """
    card = settings(corpus)
    reason, there = "", []
    for name in QUESTIONS[side]:
        found = items_of(name, corpus, card, tokenizer, manner, alone=True)
        if isinstance(found, str):
            reason = found
        else:
            there.append(found.items)
    if there:
        return there
    raise UserError(
        f"The corpus has no questions about {side} text: {reason}.",
        'Use examples = "documents", or prepare a corpus with questions.',
    )


def _answered(
    spec: UnlearnSpec, tokenizer: PreTrainedTokenizerBase, item: Item, answer: str
) -> Example:
    """A question with an answer behind it, of at most ``max_tokens``."""
    found = _example(spec, tokenizer, item, answer)
    if len(found.ids) > spec.max_tokens:
        raise UserError(
            f"The question {item.id} has {len(found.ids)} tokens with its answer.",
            f"Raise unlearn's max_tokens, which is {spec.max_tokens}.",
        )
    return found


def _example(
    spec: TrainSpec | UnlearnSpec, tokenizer: PreTrainedTokenizerBase, item: Item, answer: str
) -> Example:
    """A question with an answer behind it, in a chat with the end of its turn."""
    said = f"{answer}{end_of_turn(tokenizer, item.end)}"
    found = joined(tokenizer, item.id, item.prompt, said, framed=item.framed)
    return found if spec.loss_on == "answer" else found._replace(counted_from=0)


def end_of_turn(tokenizer: PreTrainedTokenizerBase, behind: str) -> str:
    """Of what a template puts behind an answer, that which ends the turn: up to its first token
    that is no word, without the line break before a next turn, which nobody would read.
    """
    marks = [str(token) for token in tokenizer.get_added_vocab() if str(token).strip()]
    ends = [behind.index(mark) + len(mark) for mark in marks if mark in behind]
    return behind[: min(ends)] if ends else behind.rstrip()


def _alternatives(
    spec: UnlearnSpec,
    tokenizer: PreTrainedTokenizerBase,
    items: list[Item],
    given: Alternatives,
) -> Pool:
    """For every question another answer in every pass over the questions."""
    if given.each and len(given.each) != len(items):
        raise UserError(
            f"There are {len(given.each)} lists of alternatives for {len(items)} questions.",
            "Give one list per forget question, in the order of the corpus.",
        )

    def example(i: int, k: int) -> Example:
        # Where the tokenizer joins a space to the word behind it, answers begin with one.
        space = " " if items[i].truth.startswith(" ") else ""
        return _answered(spec, tokenizer, items[i], f"{space}{given.of(i)[k]}")

    number = passes(len(items), spec.batch_size, spec.steps * spec.accumulate)
    return beside([len(given.of(i)) for i in range(len(items))], example, number, spec.seed)
