"""elicit: model + corpus -> the form of asking in which it knows most, on the development half.

All models of a comparison are then asked in that form, the target's: in another one it might know
and not say, and nothing could be told from others that say nothing.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remnant.context import Context
from remnant.corpus.base import Item, ItemSet
from remnant.corpus.forms import PUBLISHED
from remnant.corpus.prepared import settings
from remnant.evaluate.elicit import FEWEST, Choice, asked_in, choose, means, scores_by_form, some
from remnant.evaluate.items import chat_of, forms_for, published_form, unasked
from remnant.evaluate.llamacpp import LlamaCpp
from remnant.evaluate.local import Local
from remnant.evaluate.requests import Backend
from remnant.model.load import open_tokenizer
from remnant.model.versions import opened
from remnant.records import ElicitResult, ElicitSpec
from remnant.stages.measure import gguf_file

LEAVES = ("form.json",)
GOES_ON_FROM = ("answers.jsonl",)
# About forget and retain text alike: what a model knows of either, it must be able to say.
SETS = ("knowmem_forget", "knowmem_retain")


def run(spec: ElicitSpec, inputs: Mapping[str, Path], out: Path, work: Context) -> ElicitResult:
    """Write form.json, which says how questions are to be asked.

    Raises:
        UserError: the model cannot be opened.
    """
    tokenizer = open_tokenizer(str(inputs["model"]))
    published, forms = published_form(tokenizer), forms_for(tokenizer)
    questions, forget = _questions(inputs["corpus"], tokenizer)
    sets, refused = asked_in(forms, questions, chat_of(tokenizer, spec.system))
    choice, recall = Choice(published), {}
    if len(questions.items) >= FEWEST:
        file = gguf_file(inputs)
        held = None
        backend: Backend
        if file:
            backend = LlamaCpp(file, tokenizer)
        else:
            held = opened(inputs["model"], work, spec.dtype)
            backend = Local(held.model, tokenizer)
        found = scores_by_form(
            sets,
            backend,
            out / GOES_ON_FROM[0],
            lambda done, total: work.progress(done, total, "asking in every form"),
        )
        if held and not spec.dtype:
            work.models.put(held)
        choice = choose(found, published, forget)
        recall = {form: means(scores).recall for form, scores in found.items()}
    form = PUBLISHED if choice.form == published else choice.form
    (out / LEAVES[0]).write_text(json.dumps({"form": form}) + "\n", encoding="utf-8")
    return ElicitResult(
        form=form,
        published=published,
        gain=choice.gain,
        recall=recall,
        questions=len(questions.items),
        refused=refused,
    )


def _questions(corpus: Path, tokenizer: Any) -> tuple[ItemSet, set[str]]:
    """Questions of the development half about both sides, as far as the corpus has them, and which
    of them are about forget text.
    """
    card = settings(corpus)
    sets = {name: unasked(name, corpus, card, tokenizer) for name in SETS}
    there = {name: found for name, found in sets.items() if isinstance(found, ItemSet)}
    own = {name: _of_development(found) for name, found in there.items()}
    items = [item for name in own for item in own[name]]
    questions = next(iter(there.values()), ItemSet([]))._replace(items=items)
    return questions, {item.id for item in own.get(SETS[0], [])}


def _of_development(found: ItemSet) -> list[Item]:
    return some([item for item in found.items if item.half == "dev"])
