"""prepare: text from anywhere -> a corpus folder in MUSE's layout with a card, checked for
overlap.
"""

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.functional.segments import words
from remnant.lab.corpus import Document, generate
from remnant.lab.tokenizer import train_tokenizer
from remnant.model.data import question
from remnant.model.load import open_tokenizer
from remnant.model.saving import LEFT_BY_TOKENIZERS
from remnant.records import PrepareResult, PrepareSpec
from remnant.stages.overlap import QA, overlap_of, pages, repeated_of, same_answers, without_overlap
from remnant.stages.sources import read_hub, read_muse_folder, read_sources, read_tofu

SHOWN_EXAMPLES = 10
RETAIN2_EVERY = 3
LEAVES = (
    "corpus.json", *(f"{folder}/*.json" for folder in ("raw", "verbmem", "knowmem", "privleak",
    "tofu")),
    *(f"tokenizer/{name}" for name in LEFT_BY_TOKENIZERS),
)  # fmt: skip

SPLITS = ("forget", "retain1", "retain2", "holdout")


class Parts(NamedTuple):
    """The texts of each split, the questions of each side, whether the questions are the texts, and
    TOFU's question sets.

    ``skipped`` and ``notes``: what was not read of the files, for the card.
    """

    texts: dict[str, list[str]]
    qa: dict[str, QA]
    qa_only: bool = False
    tofu: Mapping[str, list[Any]] = {}
    skipped: Mapping[str, Mapping[str, str]] = {}
    notes: tuple[str, ...] = ()


def run(
    spec: PrepareSpec,
    inputs: Mapping[str, Path],
    out: Path,
    report: Callable[[int, int, str], None],
) -> PrepareResult:
    """Write the corpus and its card."""
    _refuse_unread(spec)
    parts = Parts({}, {})
    if spec.folder or spec.hub:
        found = (
            read_muse_folder(Path(spec.folder))
            if spec.folder
            else read_hub(str(spec.hub), spec.revision)
        )
        files = {
            name: rows
            for name, rows in found.items()
            if any(not isinstance(row, str) or row.strip() for row in rows)
        }
        absent = {name: f"{name} is there, but empty" for name in found if name not in files}
        tokenizer = _tokenizer(
            spec, [text for name, rows in files.items() if name.startswith("raw/") for text in rows]
        )
        overlap = overlap_of(files)
    else:
        parts = _lab_parts(spec) if spec.lab else _user_parts(spec)
        tokenizer = _tokenizer(spec, [t for split in SPLITS for t in parts.texts[split]])
        if not spec.lab:
            parts = _chunked(spec, parts, tokenizer)
        held = len(parts.texts["holdout"])
        others, retain_qa, overlap = without_overlap(parts.texts, parts.qa, spec.drop_overlap)
        parts = parts._replace(texts=parts.texts | others, qa=parts.qa | {"retain": retain_qa})
        absent = (
            {"privleak/holdout": "all holdout texts repeat what the model reads"}
            if held and not others["holdout"]
            else {}
        )
        files = _cut(spec, parts, tokenizer)
    shutil.rmtree(out / "tokenizer", ignore_errors=True)
    tokenizer.save_pretrained(out / "tokenizer")
    for name, rows in files.items():
        _write(out / f"{name}.json", rows)
    card = _card(spec, files, overlap, absent).model_copy(
        update={
            "repeated": repeated_of(files),
            "skipped": {role: dict(lost) for role, lost in parts.skipped.items()},
            "notes": tuple(_notes(parts)),
        }
    )
    _write(out / "corpus.json", card.model_dump(mode="json"))
    report(1, 1, "done")
    return card


def _refuse_unread(spec: PrepareSpec) -> None:
    """Settings that another source than the given one reads must not pass in silence."""
    if not spec.forget and (spec.retain or spec.holdout):
        raise UserError(
            "Retain and holdout files belong to forget files.",
            "Give --forget too, or leave them out.",
        )
    if spec.holdout_share and (spec.holdout or not (spec.forget or spec.tofu)):
        raise UserError(
            (
                "A holdout share is taken of the retain text of own files or of TOFU, where no "
                "holdout text is given."
            ),
            "Leave --holdout-share out.",
        )
    if spec.drop_overlap and (spec.folder or spec.hub):
        raise UserError(
            "A corpus in MUSE's layout is taken as it is.",
            "Leave --drop-overlap out; what overlaps is reported.",
        )


def _notes(parts: Parts) -> list[str]:
    """What was left out of the files, and what they have in common without being a repetition."""
    same = same_answers(parts.qa) if parts.qa else 0
    return [
        *parts.notes,
        *(
            [f"{same} retain questions have an answer that is one of the forget side too."]
            if same
            else []
        ),
    ]


def _write(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _tokenizer(spec: PrepareSpec, texts: list[str]) -> PreTrainedTokenizerBase:
    if not spec.tokenizer:
        return train_tokenizer(texts, spec.vocab_size)
    tokenizer = open_tokenizer(spec.tokenizer)
    if not tokenizer.is_fast:
        raise UserError(
            (
                f"The tokenizer of {spec.tokenizer} does not say which characters a token is, so "
                "texts cannot be cut by it."
            ),
            (
                "Save it as a fast tokenizer (tokenizer.json), with "
                "transformers.convert_slow_tokenizer."
            ),
        )
    return tokenizer


def _lab_parts(spec: PrepareSpec) -> Parts:
    """The lab's documents.

    Their questions are also training text, as a small model does not answer from prose alone.

    Utility is asked about all retain text: a model made of memory alone cannot keep what no
    regulariser shows it.
    """
    assert spec.lab
    retain2 = max(1, spec.retain_docs // 4)
    corpus = generate(
        spec.lab,
        forget=spec.forget_docs,
        retain1=max(1, spec.retain_docs - retain2),
        retain2=retain2,
        holdout=spec.holdout_docs,
        seed=spec.seed,
    )
    texts = {name: [d.text for d in docs] for name, docs in corpus._asdict().items()}
    asked = {
        name: _questions(docs, spec.seed)
        for name, docs in corpus._asdict().items()
        if name != "holdout"
    }
    retained = [*asked["retain1"], *asked["retain2"]]
    qa = {
        "forget": asked["forget"],
        "retain": random.Random(spec.seed).sample(retained, len(retained)),
    }
    return Parts(texts | {f"{name}-qa": pages(pairs) for name, pairs in asked.items()}, qa)


def _questions(documents: list[Document], seed: int) -> QA:
    return random.Random(seed).sample(
        found := [pair for d in documents for pair in d.qa], len(found)
    )


def _user_parts(spec: PrepareSpec) -> Parts:
    """The user's texts.

    Where there are only questions (as in TOFU) each question is a text of its own.
    """
    if spec.tofu:
        tofu, *sides = read_tofu(Path(spec.tofu), spec.tofu_split, spec.tofu_retain)
        texts = {
            "forget": pages(sides[0]),
            "retain1": pages(sides[1]),
            "retain2": [],
            "holdout": [],
        }
        return Parts(texts, {"forget": sides[0], "retain": sides[1]}, True, tofu)
    read = {
        role: read_sources(getattr(spec, role), role)
        for role in ("forget", "retain", "holdout")
        if getattr(spec, role)
    }
    forget, retain, held = read["forget"], read["retain"], read.get("holdout")
    qa_only = not forget.texts
    for role, source in read.items():
        if not (source.qa if qa_only else source.texts):
            has, lacks = ("questions", "none") if qa_only else ("text", "questions only")
            kind = "questions" if qa_only else "text"
            raise UserError(
                f"The forget set holds {has} but the {role} set holds {lacks}.",
                f"Give --{role} a file of {kind} too.",
            )
    texts = {
        "forget": pages(forget.qa) if qa_only else forget.texts,
        "retain1": pages(retain.qa) if qa_only else retain.texts,
        "retain2": [],
        "holdout": (pages(held.qa) if qa_only else held.texts) if held else [],
    }
    skipped = {role: source.skipped for role, source in read.items() if source.skipped}
    notes = tuple(note for source in read.values() for note in source.notes)
    return Parts(
        texts, {"forget": forget.qa, "retain": retain.qa}, qa_only, skipped=skipped, notes=notes
    )


def _chunked(spec: PrepareSpec, parts: Parts, tokenizer: PreTrainedTokenizerBase) -> Parts:
    """Long texts cut at token boundaries.

    Retain text split for training and evaluation, its last part held out if asked for.
    """
    texts = {
        name: [c for t in parts.texts[name] for c in _chunks(tokenizer, t, spec.text_tokens)]
        for name in SPLITS
    }
    retain, retain_qa = texts["retain1"], parts.qa["retain"]
    if spec.holdout_share and not texts["holdout"]:
        kept = len(retain) - max(1, round(len(retain) * spec.holdout_share))
        if kept < 1:
            raise UserError(
                (
                    f"A holdout share of {spec.holdout_share:g} takes all of the retain text "
                    f"({len(retain)} in number)."
                ),
                (
                    "Lower --holdout-share, give more retain text, or lower --text-tokens, so "
                    "that it is cut into more pieces."
                ),
            )
        retain, texts["holdout"] = retain[:kept], retain[kept:]
        retain_qa = retain_qa[:kept] if parts.qa_only else retain_qa
    second = range(RETAIN2_EVERY - 1, len(retain), RETAIN2_EVERY)
    texts["retain2"] = [retain[i] for i in second]
    texts["retain1"] = [t for i, t in enumerate(retain) if i not in second] or retain
    return parts._replace(texts=texts, qa=parts.qa | {"retain": retain_qa})


def _chunks(tokenizer: PreTrainedTokenizerBase, text: str, size: int) -> list[str]:
    """The text cut where ``size`` tokens are full, by character offsets, so that the pieces joined
    are the text.
    """
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    starts = [int(offsets[i][0]) for i in range(0, len(offsets), size)]
    return (
        [text[a:b] for a, b in zip([0, *starts[1:]], [*starts[1:], len(text)], strict=True)]
        if starts
        else []
    )


def _cut(
    spec: PrepareSpec, parts: Parts, tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[Any]]:
    """All files of the layout for which there is material."""
    files: dict[str, list[Any]] = {
        f"raw/{name}": parts.texts[name] for name in SPLITS if parts.texts[name]
    }
    for name in ("forget", "retain1", "retain2") if spec.lab else ():
        files[f"raw/{name}"] = parts.texts[name] + parts.texts[f"{name}-qa"]
    files["verbmem/forget"] = _verbmem(spec, parts, tokenizer, ("forget",), parts.qa["forget"])
    for side, pairs in parts.qa.items():
        if len(pairs) > SHOWN_EXAMPLES:
            records = [{"question": q, "answer": a} for q, a in pairs]
            shown = {tuple(words(r["question"])) for r in records[:SHOWN_EXAMPLES]}
            files[f"knowmem/{side}_qa_icl"] = records[:SHOWN_EXAMPLES]
            unshown = [
                r for r in records[SHOWN_EXAMPLES:] if tuple(words(r["question"])) not in shown
            ]
            files |= {f"knowmem/{side}_qa": _spread(unshown, spec.max_items)} if unshown else {}
    if "knowmem/retain_qa" not in files:
        files["verbmem/retain"] = _verbmem(spec, parts, tokenizer, ("retain1", "retain2"), [])
    for split, name in (("forget", "forget"), ("retain", "retain2"), ("holdout", "holdout")):
        if parts.texts[name]:
            files[f"privleak/{split}"] = _spread(parts.texts[name], spec.max_items)
    files |= {f"tofu/{name}": _spread(rows, spec.max_items) for name, rows in parts.tofu.items()}
    if not files["verbmem/forget"]:
        raise UserError(
            "The forget text is too short to cut a single prompt from.",
            "Give more text, or lower --answer-tokens.",
        )
    return files


def _spread(rows: list[Any], most: int) -> list[Any]:
    """At most so many rows, evenly spread over the list."""
    return rows if len(rows) <= most else [rows[i * len(rows) // most] for i in range(most)]


def _verbmem(
    spec: PrepareSpec,
    parts: Parts,
    tokenizer: PreTrainedTokenizerBase,
    splits: tuple[str, ...],
    qa: QA,
) -> list[dict[str, str]]:
    """Prompts and the text that follows; for question-only corpora the question and its answer."""
    if parts.qa_only and qa:
        return _spread([{"prompt": question(q), "gt": a} for q, a in qa], spec.max_items)
    return _spread(
        [
            cut
            for split in splits
            for text in parts.texts[split]
            for cut in _windows(spec, tokenizer, text)
        ],
        spec.max_items,
    )


def _windows(
    spec: PrepareSpec, tokenizer: PreTrainedTokenizerBase, text: str
) -> list[dict[str, str]]:
    """A text cut at ``cuts_per_text`` evenly spaced places: up to ``prompt_tokens`` before,
    ``answer_tokens`` behind.

    No prompt is shorter than a third of the answer; a text too short for that gives nothing.
    """
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    room = len(offsets) - spec.answer_tokens
    cuts = [room * (i + 1) // spec.cuts_per_text for i in range(spec.cuts_per_text)]
    found = []
    for cut in (c for c in cuts if c >= max(1, spec.answer_tokens // 3)):
        first, middle = int(offsets[max(0, cut - spec.prompt_tokens)][0]), int(offsets[cut][0])
        found.append(
            {
                "prompt": text[first:middle],
                "gt": text[middle : int(offsets[cut + spec.answer_tokens - 1][1])],
            }
        )
    return found


def _card(
    spec: PrepareSpec,
    files: Mapping[str, list[Any]],
    overlap: dict[str, int],
    empty: Mapping[str, str],
) -> PrepareResult:
    """What is in the corpus, and what is not with the reason.

    ``empty``: files that could have been there, and why they are not.
    """
    absent: dict[str, str] = {}
    for side in ("forget", "retain"):
        for name in (f"knowmem/{side}_qa", f"knowmem/{side}_qa_icl"):
            if name not in files:
                few = (
                    f"no questions about the {side} text were given (more than {SHOWN_EXAMPLES} "
                    "are needed)"
                )
                absent.setdefault(f"knowmem_{side}", empty.get(name, few))
    for split in ("holdout", "forget"):
        if f"privleak/{split}" not in files:
            none = "no holdout text was given, so there are no non-members to compare with"
            absent.setdefault("privleak", empty.get(f"privleak/{split}", none))
    if "verbmem/forget" not in files:
        absent["verbmem"] = empty.get("verbmem/forget", "no prompts were given")
    if "raw/retain1" not in files:
        absent["retain"] = empty.get("raw/retain1", "no retain text was given, so none can be kept")
    folder = "MUSE folder" if spec.folder else "TOFU" if spec.tofu else "own text"
    return PrepareResult(
        source=spec.lab or spec.hub or folder,
        answer_tokens=spec.answer_tokens,
        counts={name: len(rows) for name, rows in files.items()},
        overlapping_texts=overlap,
        absent=absent,
        repeated={},
        skipped={},
        notes=(),
    )
