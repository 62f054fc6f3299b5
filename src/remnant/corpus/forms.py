"""Forms of asking: how a question, with its shown examples, becomes a prompt. No torch.

A model is asked in the form in which it was made to be asked; in another it may know and not say.
To add a form, write its function and name it in ``FORMS``.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from remnant.corpus.base import Item, ItemSet, question
from remnant.errors import UserError, unknown

# What is asked for by name and stands for a form: the one that the benchmark was published in, and
# the one in which a model knows most.
PUBLISHED, BEST = "published", "best"
# Where an answer in a conversation ends, besides at the model's own end of a turn: it may have
# paragraphs, and whatever goes on with questions is no answer.
CHAT_STOPS = ("\nQuestion", "Question:")
# Stands for an answer in a conversation that is written to see what a template puts around one; a
# word that no template writes.
STAND_IN = "quokka"
# A sentence around an answer takes so many tokens beside those of the answer itself.
CHAT_ROOM = 32


class Turn(NamedTuple):
    """One turn of a conversation: ``role`` is system, user or assistant."""

    role: str
    content: str


# A conversation as a model reads it: its turns, and whether the model is to go on.
Chat = Callable[[Sequence[Turn], bool], str]


class Form(NamedTuple):
    """One form of asking.

    ``write``: an item with its question as a prompt. ``chat``: a conversation in the template of
    the model's tokenizer, which must have one.
    """

    meaning: str
    write: Callable[[Item, Chat], Item]
    chat: bool = False


def muse(item: Item, _: Chat) -> Item:
    r"""MUSE's form (arXiv 2407.06460), which ends with a space.

    >>> asked = Item("", "dev", "", "Ada", question="Who?", shown=(("Where?", "Here"),))
    >>> muse(asked, lambda turns, go_on: "")[2:5]
    ('Question: Who?\nAnswer: ', 'Ada', 'Question: Where?\nAnswer: Here\n\n')
    """
    shown = "".join(question(asked, answer) for asked, answer in item.shown)
    prompt = f"{question(item.question)}{item.given}"
    return item._replace(context=shown, prompt=prompt, framed=True)


def plain(item: Item, chat: Chat) -> Item:
    r"""The same without the space at the end, which belongs to the answer.

    >>> asked = Item("", "dev", "", "Ada", question="Who?")
    >>> plain(asked, lambda turns, go_on: "")[2:4]
    ('Question: Who?\nAnswer:', ' Ada')
    """
    return space_behind(muse(item, chat))


def chat(item: Item, render: Chat) -> Item:
    """A conversation that goes on with the answer; shown examples are turns before it.

    What the template puts between its opening of a turn and the answer belongs to the answer.
    """
    before = [
        turn
        for asked, answer in item.shown
        for turn in (Turn("user", asked), Turn("assistant", answer))
    ]
    whole = [*before, Turn("user", item.question)]
    prompt, shown = render(whole, True), render(before, False) if before else ""
    shown = shown if prompt.startswith(shown) else ""
    gap, end = _around(whole, prompt, render)
    asked = item._replace(context=shown, prompt=prompt[len(shown) :], framed=False, end=end)
    if not item.given:
        return behind(asked, gap)
    return space_behind(asked._replace(prompt=f"{asked.prompt}{gap}{item.given}"))


def _around(turns: Sequence[Turn], prompt: str, render: Chat) -> tuple[str, str]:
    """The space that a template puts before an answer, none where it puts anything else, and what
    it puts behind one.
    """
    told = render([*turns, Turn("assistant", STAND_IN)], False)
    before, found, end = told.rpartition(STAND_IN)
    gap = before[len(prompt) :] if before.startswith(prompt) else ""
    return "" if gap.strip() else gap, end if found else ""


def space_behind(item: Item) -> Item:
    """The last space of a prompt at the beginning of what follows: a lone space would make a model
    whose words begin with one write digits, not words.
    """
    if not item.prompt.endswith(" "):
        return item
    return behind(item._replace(prompt=item.prompt[:-1]), " ")


def behind(item: Item, space: str) -> Item:
    """The item with this before everything that may follow its prompt."""
    return item._replace(
        truth=f"{space}{item.truth}" if item.truth else "",
        paraphrased=f"{space}{item.paraphrased}" if item.paraphrased else "",
        wrong=tuple(f"{space}{text}" for text in item.wrong),
        choices=tuple(f"{space}{text}" for text in item.choices),
    )


def _alone(item: Item, render: Chat, write: Callable[[Item, Chat], Item]) -> Item:
    return write(item._replace(shown=()), render)


FORMS: Mapping[str, Form] = {
    "muse": Form("MUSE's: Question, Answer and a space, behind answered ones", muse),
    "muse-0shot": Form("MUSE's, without answered ones", partial(_alone, write=muse)),
    "plain": Form("MUSE's without the space at its end, behind answered ones", plain),
    "plain-0shot": Form(
        "without that space and without answered ones", partial(_alone, write=plain)
    ),
    "chat": Form("a conversation in the model's template", partial(_alone, write=chat), True),
    "chat-shots": Form("a conversation, with answered questions as turns before it", chat, True),
}


def in_form(name: str, found: ItemSet, render: Chat) -> ItemSet:
    """Questions asked in a form; other items as they are.

    Raises:
        UserError: no such form, or one of chats for a model without them.
    """
    check_form(name)
    form = FORMS[name]
    items = [form.write(item, render) if item.question else item for item in found.items]
    if not form.chat:
        return found._replace(items=items)
    return found._replace(items=items, stops=CHAT_STOPS, max_new=found.max_new + CHAT_ROOM)


def check_form(name: str) -> None:
    """Raises UserError where a name stands for no form."""
    if name not in (PUBLISHED, BEST, *FORMS):
        raise unknown("form", name, (PUBLISHED, BEST, *FORMS))


def no_chat(_: Sequence[Turn], go_on: bool) -> str:
    """A conversation with a model that has no template for one.

    Raises:
        UserError: always.
    """
    raise UserError(
        "The model's tokenizer has no chat template.",
        f"Ask it in another form: {', '.join(n for n, f in FORMS.items() if not f.chat)}.",
    )
