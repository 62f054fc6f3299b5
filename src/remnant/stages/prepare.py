"""prepare: text from anywhere -> a corpus folder in MUSE's layout with a card, checked for overlap."""

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.functional.text import ngrams, words
from remnant.lab.corpus import Document, generate
from remnant.lab.tokenizer import train_tokenizer
from remnant.model.data import question
from remnant.model.load import open_tokenizer
from remnant.model.saving import LEFT_BY_TOKENIZERS
from remnant.records import PrepareSpec
from remnant.stages.sources import read_hub, read_muse_folder, read_sources, read_tofu

SHOWN_EXAMPLES = 10
OVERLAP_WORDS = 13
RETAIN2_EVERY = 3
LEAVES = (
    "corpus.json", *(f"{folder}/*.json" for folder in ("raw", "verbmem", "knowmem", "privleak", "tofu")),
    *(f"tokenizer/{name}" for name in LEFT_BY_TOKENIZERS),
)  # fmt: skip

QA = list[tuple[str, str]]
SPLITS = ("forget", "retain1", "retain2", "holdout")


class Parts(NamedTuple):
    """The texts of each split, the questions of each side, whether the questions are the texts, and TOFU's question sets."""

    texts: dict[str, list[str]]
    qa: dict[str, QA]
    qa_only: bool = False
    tofu: Mapping[str, list[Any]] = {}


def run(spec: PrepareSpec, inputs: Mapping[str, Path], out: Path, report: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Write the corpus; the summary holds its card."""
    if spec.folder or spec.hub:
        files = read_muse_folder(Path(spec.folder)) if spec.folder else read_hub(str(spec.hub), spec.revision)
        tokenizer = _tokenizer(spec, [text for name, rows in files.items() if name.startswith("raw/") for text in rows])
        overlap: dict[str, int] = {}
    else:
        parts = _lab_parts(spec) if spec.lab else _user_parts(spec)
        tokenizer = _tokenizer(spec, [t for split in SPLITS for t in parts.texts[split]])
        if not spec.lab:
            parts = _chunked(spec, parts, tokenizer)
        parts, overlap = _without_overlap(spec, parts)
        files = _cut(spec, parts, tokenizer)
    shutil.rmtree(out / "tokenizer", ignore_errors=True)
    tokenizer.save_pretrained(out / "tokenizer")
    for name, rows in files.items():
        _write(out / f"{name}.json", rows)
    card = _card(spec, files, overlap)
    _write(out / "corpus.json", card)
    report(1, 1, "done")
    return card


def _write(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _tokenizer(spec: PrepareSpec, texts: list[str]) -> PreTrainedTokenizerBase:
    return open_tokenizer(spec.tokenizer) if spec.tokenizer else train_tokenizer(texts, spec.vocab_size)


def _lab_parts(spec: PrepareSpec) -> Parts:
    """The lab's documents; their questions are also training text, as a small model does not answer from prose alone.

    Utility is asked about all retain text: a model made of memory alone cannot keep what no regulariser shows it.
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
    asked = {name: _questions(docs, spec.seed) for name, docs in corpus._asdict().items() if name != "holdout"}
    retained = [*asked["retain1"], *asked["retain2"]]
    qa = {"forget": asked["forget"], "retain": random.Random(spec.seed).sample(retained, len(retained))}
    return Parts(texts | {f"{name}-qa": _pages(pairs) for name, pairs in asked.items()}, qa)


def _questions(documents: list[Document], seed: int) -> QA:
    return random.Random(seed).sample(found := [pair for d in documents for pair in d.qa], len(found))


def _pages(qa: QA) -> list[str]:
    return [question(q, a).rstrip("\n") for q, a in qa]


def _user_parts(spec: PrepareSpec) -> Parts:
    """The user's texts; where there are only questions (as in TOFU) each question is a text of its own."""
    if spec.tofu:
        tofu, *sides = read_tofu(Path(spec.tofu), spec.tofu_split, spec.tofu_retain)
        pages = {"forget": _pages(sides[0]), "retain1": _pages(sides[1]), "retain2": [], "holdout": []}
        return Parts(pages, {"forget": sides[0], "retain": sides[1]}, True, tofu)
    forget, retain = read_sources(spec.forget, "forget"), read_sources(spec.retain, "retain")
    held = read_sources(spec.holdout, "holdout") if spec.holdout else None
    qa_only = not forget.texts
    if qa_only and not retain.qa:
        raise UserError("The forget set holds questions but the retain set holds none.", "Give --retain a file of questions too.")
    texts = {
        "forget": _pages(forget.qa) if qa_only else forget.texts,
        "retain1": _pages(retain.qa) if qa_only else retain.texts,
        "retain2": [],
        "holdout": (_pages(held.qa) if qa_only else held.texts) if held else [],
    }
    return Parts(texts, {"forget": forget.qa, "retain": retain.qa}, qa_only)


def _chunked(spec: PrepareSpec, parts: Parts, tokenizer: PreTrainedTokenizerBase) -> Parts:
    """Long texts cut at token boundaries; retain text split for training and evaluation, its last part held out if asked for."""
    texts = {name: [c for t in parts.texts[name] for c in _chunks(tokenizer, t, spec.text_tokens)] for name in SPLITS}
    retain, retain_qa = texts["retain1"], parts.qa["retain"]
    if spec.holdout_share and not texts["holdout"]:
        kept = len(retain) - max(1, round(len(retain) * spec.holdout_share))
        retain, texts["holdout"] = retain[:kept], retain[kept:]
        retain_qa = retain_qa[:kept] if parts.qa_only else retain_qa
    second = range(RETAIN2_EVERY - 1, len(retain), RETAIN2_EVERY)
    texts["retain2"] = [retain[i] for i in second]
    texts["retain1"] = [t for i, t in enumerate(retain) if i not in second] or retain
    return parts._replace(texts=texts, qa=parts.qa | {"retain": retain_qa})


def _chunks(tokenizer: PreTrainedTokenizerBase, text: str, size: int) -> list[str]:
    """The text cut where ``size`` tokens are full, by character offsets, so that the pieces joined are the text."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    starts = [int(offsets[i][0]) for i in range(0, len(offsets), size)]
    return [text[a:b] for a, b in zip([0, *starts[1:]], [*starts[1:], len(text)], strict=True)] if starts else []


def _without_overlap(spec: PrepareSpec, parts: Parts) -> tuple[Parts, dict[str, int]]:
    """Count the texts that share a long run of words with forget text; holdout text must not."""
    known = {gram for text in parts.texts["forget"] for gram in ngrams(words(text), OVERLAP_WORDS)}

    def is_clean(text: str) -> bool:
        return known.isdisjoint(ngrams(words(text), OVERLAP_WORDS))

    texts, qa, counts = dict(parts.texts), dict(parts.qa), {}
    for name in SPLITS[1:]:
        clean = [t for t in texts[name] if is_clean(t)]
        counts[name] = len(texts[name]) - len(clean)
        if counts[name] and name == "holdout" and not spec.drop_overlap:
            raise UserError(
                f"{counts[name]} of {len(texts[name])} holdout texts share {OVERLAP_WORDS} words in a row with the forget text.",
                "Give holdout text that the model has never seen, or leave those texts out with --drop-overlap.",
            )
        if spec.drop_overlap:
            texts[name] = clean
    if spec.drop_overlap and parts.qa_only:
        qa["retain"] = [pair for pair in qa["retain"] if is_clean(*_pages([pair]))]
    return parts._replace(texts=texts, qa=qa), counts


def _cut(spec: PrepareSpec, parts: Parts, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
    """All files of the layout for which there is material."""
    files: dict[str, list[Any]] = {f"raw/{name}": parts.texts[name] for name in SPLITS if parts.texts[name]}
    for name in ("forget", "retain1", "retain2") if spec.lab else ():
        files[f"raw/{name}"] = parts.texts[name] + parts.texts[f"{name}-qa"]
    files["verbmem/forget"] = _verbmem(spec, parts, tokenizer, ("forget",), parts.qa["forget"])
    for side, pairs in parts.qa.items():
        if len(pairs) > SHOWN_EXAMPLES:
            records = [{"question": q, "answer": a} for q, a in pairs]
            files[f"knowmem/{side}_qa_icl"] = records[:SHOWN_EXAMPLES]
            files[f"knowmem/{side}_qa"] = _spread(records[SHOWN_EXAMPLES:], spec.max_items)
    if "knowmem/retain_qa" not in files:
        files["verbmem/retain"] = _verbmem(spec, parts, tokenizer, ("retain1", "retain2"), [])
    for split, name in (("forget", "forget"), ("retain", "retain2"), ("holdout", "holdout")):
        if parts.texts[name]:
            files[f"privleak/{split}"] = _spread(parts.texts[name], spec.max_items)
    files |= {f"tofu/{name}": _spread(rows, spec.max_items) for name, rows in parts.tofu.items()}
    if not files["verbmem/forget"]:
        raise UserError("The forget text is too short to cut a single prompt from.", "Give more text, or lower --answer-tokens.")
    return files


def _spread(rows: list[Any], most: int) -> list[Any]:
    """At most so many rows, evenly spread over the list."""
    return rows if len(rows) <= most else [rows[i * len(rows) // most] for i in range(most)]


def _verbmem(spec: PrepareSpec, parts: Parts, tokenizer: PreTrainedTokenizerBase, splits: tuple[str, ...], qa: QA) -> list[dict[str, str]]:
    """Prompts and the text that follows; for question-only corpora the question and its answer."""
    if parts.qa_only and qa:
        return _spread([{"prompt": question(q), "gt": a} for q, a in qa], spec.max_items)
    return _spread([cut for split in splits for text in parts.texts[split] for cut in _windows(spec, tokenizer, text)], spec.max_items)


def _windows(spec: PrepareSpec, tokenizer: PreTrainedTokenizerBase, text: str) -> list[dict[str, str]]:
    """A text cut at ``cuts_per_text`` evenly spaced places: up to ``prompt_tokens`` before, ``answer_tokens`` behind.

    No prompt is shorter than a third of the answer; a text too short for that gives nothing.
    """
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    room = len(offsets) - spec.answer_tokens
    cuts = [room * (i + 1) // spec.cuts_per_text for i in range(spec.cuts_per_text)]
    found = []
    for cut in (c for c in cuts if c >= max(1, spec.answer_tokens // 3)):
        first, middle = int(offsets[max(0, cut - spec.prompt_tokens)][0]), int(offsets[cut][0])
        found.append({"prompt": text[first:middle], "gt": text[middle : int(offsets[cut + spec.answer_tokens - 1][1])]})
    return found


def _card(spec: PrepareSpec, files: Mapping[str, list[Any]], overlap: dict[str, int]) -> dict[str, Any]:
    absent = {}
    for side in ("forget", "retain"):
        if f"knowmem/{side}_qa" not in files:
            absent[f"knowmem_{side}"] = f"no questions about the {side} text were given (more than {SHOWN_EXAMPLES} are needed)"
    if "privleak/holdout" not in files or "privleak/forget" not in files:
        absent["privleak"] = "no holdout text was given, so there are no non-members to compare with"
    if "verbmem/forget" not in files:
        absent["verbmem"] = "no prompts were given"
    return {
        "source": spec.lab or spec.hub or ("MUSE folder" if spec.folder else "TOFU" if spec.tofu else "own text"),
        "answer_tokens": spec.answer_tokens,
        "counts": {name: len(rows) for name, rows in files.items()},
        "overlapping_texts": overlap,
        "absent": absent,
    }
