"""MUSE (arXiv 2407.06460): continuations, questions and membership on a corpus in its layout.

The sets of items that every prepared corpus has, and all that is measured on them as they are.
"""

from functools import partial
from pathlib import Path
from typing import Any

from remnant.corpus.base import (
    Asking,
    Benchmark,
    Item,
    ItemSet,
    Material,
    Reader,
    SetEntry,
    half_of,
    question,
)
from remnant.corpus.forms import PUBLISHED
from remnant.corpus.outside import checked, load_json, read_utf8
from remnant.corpus.prepared import records, texts
from remnant.errors import UserError, first_line
from remnant.functional.text import STOPS
from remnant.metrics import EXACT, MEMBERS, MEMBERSHIP, MORE, OTHERS, Metric, Reduce, Role, attack

ANSWER_TOKENS = 32
FILES = {
    "knowmem/forget_qa": ("question", "answer"),
    "knowmem/retain_qa": ("question", "answer"),
    "knowmem/forget_qa_icl": ("question", "answer"),
    "knowmem/retain_qa_icl": ("question", "answer"),
    "verbmem/forget": ("prompt", "gt"),
    "privleak/forget": (),
    "privleak/retain": (),
    "privleak/holdout": (),
    "raw/forget": (),
    "raw/retain1": (),
    "raw/retain2": (),
    "raw/holdout": (),
}


def verbmem(folder: Path, side: str = "forget") -> list[Item]:
    """Prompts cut from forget (or retain) text, with the text that follows."""
    rows = records(folder / "verbmem" / f"{side}.json", "prompt", "gt")
    return [
        Item(f"{side}-text-{i}", half_of(i), row["prompt"], row["gt"]) for i, row in enumerate(rows)
    ]


def knowmem(folder: Path, side: str) -> list[Item]:
    """Questions about forget or retain text, behind the shown examples of that side.

    A row may have ``answers`` that are right beside its answer.
    """
    shown = records(folder / "knowmem" / f"{side}_qa_icl.json", "question", "answer")
    pairs = tuple((row["question"], row["answer"]) for row in shown)
    context = "".join(question(*pair) for pair in pairs)
    rows = records(folder / "knowmem" / f"{side}_qa.json", "question", "answer")
    return [
        Item(
            f"{side}-question-{i}",
            half_of(i),
            question(row["question"]),
            row["answer"],
            context,
            answers=_right_too(row),
            question=row["question"],
            shown=pairs,
        )
        for i, row in enumerate(rows)
    ]


def _right_too(row: dict[str, Any]) -> tuple[str, ...]:
    found = row.get("answers")
    return tuple(a for a in found if isinstance(a, str)) if isinstance(found, list) else ()


def privleak_texts(folder: Path, split: str) -> list[str]:
    """Texts for the membership test."""
    return texts(folder / "privleak" / f"{split}.json")


def privleak(folder: Path, side: str) -> list[Item]:
    """Texts of one side as a whole."""
    found = privleak_texts(folder, side)
    return [Item(f"{side}-{i}", half_of(i), "", text) for i, text in enumerate(found)]


def continued(items: list[Item], asking: Asking) -> ItemSet:
    """Continuations of as many tokens as the truth is cut to, start token counted.

    Source: MUSE's VerMem.
    """
    most = asking.answer_tokens
    cut = [i._replace(truth=asking.first_tokens(i.truth, most)) for i in items]
    return ItemSet(cut, most)


def answered(items: list[Item], _: Asking) -> ItemSet:
    """Answers that end at a blank line or the next question."""
    return ItemSet(items, ANSWER_TOKENS, STOPS)


SETS = {
    "verbmem": SetEntry(
        "prompts cut from forget text",
        "text",
        "verbmem/forget",
        partial(verbmem, side="forget"),
        continued,
        absent="verbmem",
    ),
    "verbmem_retain": SetEntry(
        "prompts cut from retain text",
        "text",
        "verbmem/retain",
        partial(verbmem, side="retain"),
        continued,
        without="there are questions about the retain text, so no prompts were cut from it",
    ),
    "knowmem_forget": SetEntry(
        "questions about forget text, behind ten answered ones",
        "answer",
        "knowmem/forget_qa",
        partial(knowmem, side="forget"),
        answered,
        absent="knowmem_forget",
    ),
    "knowmem_published": SetEntry(
        "questions about forget text as published, where another form was chosen",
        "answer",
        "knowmem/forget_qa",
        partial(knowmem, side="forget"),
        answered,
        absent="knowmem_forget",
        form=PUBLISHED,
    ),
    "knowmem_retain": SetEntry(
        "questions about retain text, behind ten answered ones",
        "answer",
        "knowmem/retain_qa",
        partial(knowmem, side="retain"),
        answered,
        absent="knowmem_retain",
    ),
    "privleak_forget": SetEntry(
        "forget text as a whole",
        "whole",
        "privleak/forget",
        partial(privleak, side=MEMBERS),
        split=MEMBERS,
        absent="privleak",
    ),
    "privleak_holdout": SetEntry(
        "text like it that was never read",
        "whole",
        "privleak/holdout",
        partial(privleak, side=OTHERS),
        split=OTHERS,
        absent="privleak",
    ),
}

_TEXT, _MEMBER = "remnant.functional.text:", "remnant.functional.membership:"
_MEMORY, _MUSE = "remnant.functional.memory:", "arXiv 2407.06460"
_SIDES = ("privleak_forget", "privleak_holdout")
_GREEDY, _VOCABULARY = ("logp", "rank"), ("logp", "mean", "std")


def _attack(
    function: str,
    meaning: str,
    source: str,
    params: dict[str, object] | None = None,
    columns: tuple[str, ...] = ("logp",),
) -> Metric:
    """A membership attack: AUC, near 0 where forget text is known, 50 where it cannot be told from
    text that was never read.
    """
    return Metric(
        _MEMBER + function,
        1,
        f"membership by {meaning}, AUC",
        source,
        _SIDES,
        "test",
        kind=MEMBERSHIP,
        reduce=attack(),
        params=params or {},
        columns=columns,
    )


def _said_too(function: str, meaning: str, of: str, role: Role) -> Metric:
    """The answers of one set, scored so that what is said around them counts for nothing."""
    side = "retain" if role == "utility" else "forget"
    asked = " as published" if of == "knowmem_published" else ""
    return Metric(
        _TEXT + function,
        1,
        f"{meaning} about {side} text{asked}",
        "own",
        (of,),
        role,
        "high",
        beside=of,
    )


_RECALL, _CONTAINED = "ROUGE-L recall of answers", "share of answers with the truth in them"

METRICS = {
    "verbmem": Metric(
        _TEXT + "overlap",
        3,
        "ROUGE-L F1 of the continuation of forget text",
        f"{_MUSE}, eq. 1",
        ("verbmem",),
        "knowledge",
        "high",
        "VerMem: forget text continued word for word",
        told="continues the text that is to be forgotten with {} overlap",
    ),
    "knowmem_forget": Metric(
        _TEXT + "overlap",
        3,
        "ROUGE-L F1 of answers about forget text",
        f"{_MUSE}, eq. 2",
        ("knowmem_forget",),
        "knowledge",
        "high",
        "KnowMem: questions about forget text",
        told="answers questions about the text that is to be forgotten with {} overlap",
    ),
    "knowmem_published": Metric(
        _TEXT + "overlap",
        3,
        "ROUGE-L F1 of answers about forget text as published, where another form was chosen",
        f"{_MUSE}, eq. 2",
        ("knowmem_published",),
        "knowledge",
        "high",
        "KnowMem as published: the same questions in the published form",
        told="answers, asked as published, with {} overlap",
    ),
    "knowmem_retain": Metric(
        _TEXT + "overlap",
        3,
        "ROUGE-L F1 of answers about retain text (utility)",
        _MUSE,
        ("knowmem_retain",),
        "utility",
        "high",
        "Utility: questions about retain text",
    ),
    "verbmem_retain": Metric(
        _TEXT + "overlap",
        3,
        "ROUGE-L F1 of the continuation of retain text (utility, no questions)",
        "own",
        ("verbmem_retain",),
        "utility",
        "high",
        "Utility: retain text continued",
        instead_of="knowmem_retain",
    ),
    "knowmem_forget_recall": _said_too("recall", _RECALL, "knowmem_forget", "knowledge"),
    "knowmem_forget_contained": _said_too("contained", _CONTAINED, "knowmem_forget", "knowledge"),
    "knowmem_published_recall": _said_too("recall", _RECALL, "knowmem_published", "knowledge"),
    "knowmem_retain_recall": _said_too("recall", _RECALL, "knowmem_retain", "utility"),
    "knowmem_retain_contained": _said_too("contained", _CONTAINED, "knowmem_retain", "utility"),
    "privleak": Metric(
        _MEMBER + "min_k",
        2,
        "Min-40% AUC against the retrain model's",
        f"{_MUSE}, eq. 3",
        _SIDES,
        "test",
        "apart",
        "PrivLeak: can membership be told (0 = as if never read)",
        MEMBERSHIP,
        needed=True,
        reduce=(
            *attack("auc"),
            Reduce(
                "remnant.functional.reductions:relative_area",
                of=((MEMBERS, OTHERS),),
                unread=True,
            ),
        ),
        span="-100 upwards",
    ),
    "mia_loss": _attack("mean_loss", "mean loss", "arXiv 1709.01604"),
    "mia_zlib": _attack("zlib_ratio", "loss over compressed length", "arXiv 2012.07805"),
    "mia_lower": _attack(
        "lower_case_ratio", "loss over that of the lower-cased text", "arXiv 2012.07805"
    ),
    "mia_min20": _attack(
        "min_k", "the lowest fifth of log-probabilities", "arXiv 2310.16789", {"ratio": 0.2}
    ),
    "mia_min60": _attack(
        "min_k",
        "the lowest three fifths of log-probabilities",
        "arXiv 2310.16789",
        {"ratio": 0.6},
    ),
    "mia_min_plus": _attack(
        "min_k_plus_plus", "Min-20%++", "arXiv 2404.02936", columns=_VOCABULARY
    ),
    "mia_recall": _attack("recall", "ReCaLL behind a text that was never read", "arXiv 2406.15968"),
    "mia_reference": _attack(
        "reference_gap", "loss minus that of a reference model", "arXiv 2012.07805"
    ),
    "mia_gradient": _attack("gradient_norm", "norm of the gradient", "arXiv 2104.10706"),
    "exact_memorization": Metric(
        _MEMORY + "exact_memorization",
        1,
        "share of right greedy tokens of forget text",
        "arXiv 2205.10770",
        ("verbmem",),
        "test",
        "high",
        kind=MORE,
        columns=_GREEDY,
    ),
    "extraction_strength": Metric(
        _MEMORY + "extraction_strength",
        1,
        "share of forget text that follows from the rest",
        "arXiv 2012.07805",
        ("verbmem",),
        "test",
        "high",
        kind=MORE,
        columns=_GREEDY,
    ),
    "probability": Metric(
        _MEMORY + "probability",
        1,
        "probability per token of forget text",
        "arXiv 2401.06121",
        ("verbmem",),
        "test",
        "high",
        kind=EXACT,
        needed=True,
    ),
    "probability_answers": Metric(
        _MEMORY + "probability",
        1,
        "probability per token of answers about forget text",
        "arXiv 2401.06121",
        ("knowmem_forget",),
        "test",
        "high",
        kind=EXACT,
        needed=True,
    ),
    "longest_run": Metric(
        _MEMORY + "longest_run",
        2,
        "longest common run of words in the continuation",
        "own",
        ("verbmem",),
        "test",
        "high",
        kind=MORE,
    ),
    "perplexity": Metric(
        _MEMORY + "perplexity",
        1,
        "perplexity of the continuations under the reference model",
        "own",
        ("verbmem",),
        unit="",
        span="1 upwards",
    ),
}


def read(folder: Path) -> Material:
    """The files of a MUSE download that are there, checked; raw text may be .json or .txt.

    Raises:
        UserError: no such folder, no forget text, or a file of another shape.
    """
    if not folder.is_dir():
        raise UserError(
            f"The folder {folder} does not exist.",
            "Give the folder of one corpus, with raw/, verbmem/, ... in it.",
        )
    found: dict[str, list[Any]] = {}
    for name, keys in FILES.items():
        path = folder / f"{name}.json"
        if path.is_file():
            found[name] = checked(
                path.as_posix(), load_json(path.as_posix(), read_utf8(path)), keys
            )
        elif name.startswith("raw/") and path.with_suffix(".txt").is_file():
            found[name] = [read_utf8(path.with_suffix(".txt"))]
    if not any(map(str.strip, found.get("raw/forget", []))):
        has = (
            "an empty raw/forget"
            if "raw/forget" in found
            else "no raw/forget.json or raw/forget.txt"
        )
        raise UserError(f"{folder} has {has}.", "Is it a corpus in MUSE's layout?")
    return Material(files=found, complete=True)


def read_hub(name: str, revision: str | None) -> Material:
    """The same files from a data set on the hub (muse-bench/MUSE-News, muse-bench/MUSE-Books).

    Raises:
        UserError: the hub or the data set cannot be reached.
    """
    import datasets  # heavy, and only for this door

    found: dict[str, list[Any]] = {}
    for file, keys in FILES.items():
        config, split = file.split("/")
        try:
            rows = list(datasets.load_dataset(name, config, split=split, revision=revision))
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            # A part that is not there is absent; one that cannot be reached must not look like
            # that.
            if file == "raw/forget" or not isinstance(error, ValueError):
                raise UserError(
                    f"The data set {name} cannot be opened ({file}): {first_line(error)}",
                    "Use a local folder.",
                ) from error
            continue
        found[file] = checked(f"{name}:{file}", [r if keys else r.get("text") for r in rows], keys)
    return Material(files=found, complete=True)


BENCHMARK = Benchmark(
    SETS,
    METRICS,
    {
        "muse": ("verbmem", "knowmem_forget", "knowmem_retain", "privleak"),
        "memorization": (
            "verbmem",
            "exact_memorization",
            "extraction_strength",
            "probability",
            "longest_run",
        ),
    },
    reader=Reader("remnant.corpus.muse:read", 1, "MUSE folder", "A corpus in MUSE's layout."),
)
