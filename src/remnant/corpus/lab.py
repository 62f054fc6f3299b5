"""The lab's fictional corpora: documents with questions that nobody could guess."""

import random

from remnant.corpus.base import QA, Material, pages
from remnant.lab.corpus import Document, Form, generate


def read(kind: Form, sizes: tuple[int, int, int], seed: int) -> Material:
    """The lab's documents.

    Their questions are also training text, as a small model does not answer from prose alone.

    Utility is asked about all retain text: a model made of memory alone cannot keep what no
    regulariser shows it.

    Args:
        kind: "news" or "books".
        sizes: how many documents are forgotten, retained (a quarter of them not trained on) and
            held out.
        seed: of all that is drawn.
    """
    forget, retain, holdout = sizes
    retain2 = max(1, retain // 4)
    corpus = generate(
        kind,
        forget=forget,
        retain1=max(1, retain - retain2),
        retain2=retain2,
        holdout=holdout,
        seed=seed,
    )
    texts = {name: _texts(docs) for name, docs in corpus._asdict().items()}
    asked = {
        name: _questions(docs, seed) for name, docs in corpus._asdict().items() if name != "holdout"
    }
    retained = [*asked["retain1"], *asked["retain2"]]
    qa = {
        "forget": asked["forget"],
        "retain": random.Random(seed).sample(retained, len(retained)),
    }
    beside = {name: pages(pairs) for name, pairs in asked.items()}
    return Material(texts, qa, beside, cut=False)


def _texts(documents: list[Document]) -> list[str]:
    return [d.text for d in documents]


def _questions(documents: list[Document], seed: int) -> QA:
    found = [pair for d in documents for pair in d.qa]
    return random.Random(seed).sample(found, len(found))
