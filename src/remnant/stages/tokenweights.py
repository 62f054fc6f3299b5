"""From weights of characters or tokens, as a user gives them, to those of a text's token ids."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.flow.tokenweights import OfText, Span
from remnant.model.data import frame, head_of, prompt_ids


def weighed(
    tokenizer: PreTrainedTokenizerBase, text: str, given: OfText, where: str
) -> tuple[float, ...]:
    """The weights of a document's tokens as ``prompt_ids`` gives them, 1 of what the tokenizer puts
    before it.

    Args:
        tokenizer: the model's.
        text: the document.
        given: what is said of it.
        where: which text, for messages.

    Raises:
        UserError: another number of weights than tokens, or as ``by_spans``.
    """
    if not given.tokens:
        return by_spans(tokenizer, ("", text, ""), given.spans)
    around = frame(tokenizer)
    ids = prompt_ids(tokenizer, text, around)
    head = head_of(ids, around)
    if len(given.tokens) != len(ids) - head:
        raise UserError(
            f"There are {len(given.tokens)} weights for the {len(ids) - head} tokens of {where}.",
            "Give one for each, without the tokens that the tokenizer adds.",
        )
    return (1.0,) * head + given.tokens


def by_spans(
    tokenizer: PreTrainedTokenizerBase,
    parts: tuple[str, str, str],
    spans: Iterable[Span],
    *,
    framed: bool = True,
) -> tuple[float, ...]:
    """The weights of the tokens of three texts that are encoded as one: a token has the weight of
    the last span that shares a character with it, 1 without any.

    Args:
        tokenizer: the model's.
        parts: what stands before the text, the text, and what stands behind it.
        spans: in characters of the text.
        framed: as ``prompt_ids``.

    Raises:
        UserError: a span beyond the text, or a tokenizer that does not say where its tokens stand.
    """
    before, text, _ = parts
    spans = [*spans]
    if beyond := [span for span in spans if span.end > len(text)]:
        raise UserError(
            f"A text of {len(text)} characters has a weight up to character {beyond[0].end}.",
            "Count characters from 0 within the text, of a question within its answer.",
        )
    if not tokenizer.is_fast:
        raise UserError(
            "This tokenizer does not say where in a text its tokens stand.",
            "Give a list of numbers, one a token.",
        )
    whole = "".join(parts)
    count = len(prompt_ids(tokenizer, whole, framed=framed))
    given = tokenizer(whole, add_special_tokens=framed, return_offsets_mapping=True)
    found = []
    for start, end in given["offset_mapping"][:count]:
        here, there = start - len(before), end - len(before)
        own = [s.weight for s in spans if s.start < there and here < s.end]
        found.append(own[-1] if own else 1.0)
    return tuple(found)
