"""prepare: text from anywhere -> a corpus folder in MUSE's layout with a card, checked for
overlap.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from remnant.context import Context
from remnant.corpus import ITEM_SETS, READERS, lab, muse, own_text
from remnant.corpus.base import QA, SPLITS, Material, question
from remnant.errors import UserError
from remnant.functional.segments import words
from remnant.lab.tokenizer import train_tokenizer
from remnant.methods import reader
from remnant.model.data import chunks
from remnant.model.load import open_tokenizer
from remnant.model.saving import LEFT_BY_TOKENIZERS
from remnant.records import PrepareResult, PrepareSpec
from remnant.stages.overlap import overlap_of, repeated_of, same_answers, without_overlap

SHOWN_EXAMPLES = 10
RETAIN2_EVERY = 3
_FOLDERS = ("raw", *dict.fromkeys(Path(e.file).parent.name for e in ITEM_SETS.values()))
LEAVES = (
    "corpus.json",
    *(f"{folder}/*.json" for folder in _FOLDERS),
    *(f"tokenizer/{name}" for name in LEFT_BY_TOKENIZERS),
)


class Made(NamedTuple):
    """A corpus before it is written: its files by name, its tokenizer and its card."""

    files: dict[str, list[Any]]
    tokenizer: PreTrainedTokenizerBase
    card: PrepareResult


def run(spec: PrepareSpec, inputs: Mapping[str, Path], out: Path, work: Context) -> PrepareResult:
    """Write the corpus and its card."""
    made = corpus_of(spec, read(spec))
    shutil.rmtree(out / "tokenizer", ignore_errors=True)
    made.tokenizer.save_pretrained(out / "tokenizer")
    for name, rows in made.files.items():
        _write(out / f"{name}.json", rows)
    _write(out / "corpus.json", made.card.model_dump(mode="json"))
    work.progress(1, 1, "done")
    return made.card


def corpus_of(spec: PrepareSpec, material: Material) -> Made:
    """The corpus that is made of some material.

    Raises:
        UserError: holdout text overlaps with what is read, or there is too little text.
    """
    if material.complete:
        files = {name: rows for name, rows in material.files.items() if _says_anything(rows)}
        absent = {
            name: f"{name} is there, but empty" for name in material.files if name not in files
        }
        tokenizer = _tokenizer(
            spec, [text for name, rows in files.items() if name.startswith("raw/") for text in rows]
        )
        overlap = overlap_of(files)
    else:
        tokenizer = _tokenizer(spec, [t for split in SPLITS for t in material.texts[split]])
        if material.cut:
            material = _chunked(spec, material, tokenizer)
        held = len(material.texts["holdout"])
        others, retain_qa, overlap = without_overlap(material.texts, material.qa, spec.drop_overlap)
        material = material._replace(
            texts={**material.texts, **others}, qa={**material.qa, "retain": retain_qa}
        )
        absent = (
            {"privleak/holdout": "all holdout texts repeat what the model reads"}
            if held and not others["holdout"]
            else {}
        )
        files = _cut(spec, material, tokenizer)
    card = _card(spec, files, overlap, absent).model_copy(
        update={
            "repeated": repeated_of(files),
            "skipped": {role: dict(lost) for role, lost in material.skipped.items()},
            "notes": tuple(_notes(material)),
            "shapes": {role: dict(shapes) for role, shapes in material.shapes.items()},
        }
    )
    return Made(files, tokenizer, card)


def read(spec: PrepareSpec) -> Material:
    """What the source of a spec gives.

    Raises:
        UserError: a setting that its source does not read, what its reader cannot read, or a source
            that lacks one of the splits.
    """
    _refuse_unread(spec)
    if spec.lab:
        return lab.read(
            spec.lab, (spec.forget_docs, spec.retain_docs, spec.holdout_docs), spec.seed
        )
    if spec.hub:
        return muse.read_hub(spec.hub, spec.revision)
    roles = {role: getattr(spec, role) for role in own_text.ROLES}
    if not spec.folder:
        return own_text.read(roles, spec.columns)
    method = reader(spec)
    own = own_text.read(roles, spec.columns) if spec.forget else None
    given = {"folder": Path(spec.folder), "own": own}
    found = method.load()(*(given[name] for name in method.reads), **method.params)
    if not isinstance(found, Material):
        raise UserError(
            f"The benchmark '{spec.benchmark}' gives no material.",
            "Return remnant.corpus.base.Material from its function.",
        )
    return found


def _refuse_unread(spec: PrepareSpec) -> None:
    """Settings that another source than the given one reads must not pass in silence."""
    if not spec.forget and (spec.retain or spec.holdout):
        raise UserError(
            "Retain and holdout files belong to forget files.",
            "Give --forget too, or leave them out.",
        )
    layout = spec.hub or (spec.folder and spec.benchmark == "muse")
    if spec.holdout_share and (spec.holdout or spec.lab or layout):
        raise UserError(
            (
                "A holdout share is taken of the retain text of own files or of a benchmark's "
                "questions, where no holdout text is given."
            ),
            "Leave --holdout-share out.",
        )
    if spec.drop_overlap and layout:
        raise UserError(
            "A corpus in MUSE's layout is taken as it is.",
            "Leave --drop-overlap out; what overlaps is reported.",
        )


def _notes(material: Material) -> list[str]:
    """What was left out of the files, and what they have in common without being a repetition."""
    same = same_answers(material.qa) if material.qa else 0
    return [
        *material.notes,
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


def _says_anything(rows: Sequence[object]) -> bool:
    return any(not isinstance(row, str) or row.strip() for row in rows)


def _chunked(spec: PrepareSpec, material: Material, tokenizer: PreTrainedTokenizerBase) -> Material:
    """Long texts cut at token boundaries.

    Retain text split for training and evaluation, its last part held out if asked for.
    """

    def cut(texts: Iterable[str]) -> list[str]:
        return [chunk for t in texts for chunk in chunks(tokenizer, t, spec.text_tokens)]

    texts = {name: cut(material.texts[name]) for name in SPLITS}
    retain, retain_qa = texts["retain1"], material.qa["retain"]
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
        retain_qa = retain_qa[:kept] if material.qa_only else retain_qa
    second = range(RETAIN2_EVERY - 1, len(retain), RETAIN2_EVERY)
    texts["retain2"] = [retain[i] for i in second]
    texts["retain1"] = [t for i, t in enumerate(retain) if i not in second] or retain
    return material._replace(texts=texts, qa={**material.qa, "retain": retain_qa})


def _cut(
    spec: PrepareSpec, material: Material, tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[Any]]:
    """All files of the layout for which there is material."""
    files: dict[str, list[Any]] = {
        f"raw/{name}": material.texts[name] for name in SPLITS if material.texts[name]
    }
    for name, texts in material.beside.items():
        files[f"raw/{name}"] = material.texts[name] + texts
    asked = material.qa["forget"]
    files["verbmem/forget"] = _verbmem(spec, material, tokenizer, ("forget",), asked)
    for side, pairs in material.qa.items():
        if len(pairs) > SHOWN_EXAMPLES:
            records = [_asked(pair, material.accepted.get(pair, ())) for pair in pairs]
            shown = {tuple(words(q)) for q, _ in pairs[:SHOWN_EXAMPLES]}
            files[f"knowmem/{side}_qa_icl"] = records[:SHOWN_EXAMPLES]
            unshown = [
                record
                for record, (q, _) in zip(
                    records[SHOWN_EXAMPLES:], pairs[SHOWN_EXAMPLES:], strict=True
                )
                if tuple(words(q)) not in shown
            ]
            files |= {f"knowmem/{side}_qa": _spread(unshown, spec.max_items)} if unshown else {}
    if "knowmem/retain_qa" not in files:
        files["verbmem/retain"] = _verbmem(spec, material, tokenizer, ("retain1", "retain2"), [])
    for split, name in (("forget", "forget"), ("retain", "retain2"), ("holdout", "holdout")):
        if material.texts[name]:
            files[f"privleak/{split}"] = _spread(material.texts[name], spec.max_items)
    files |= {name: _spread(rows, spec.max_items) for name, rows in material.files.items()}
    if not files["verbmem/forget"]:
        raise _too_short(spec, material.texts["forget"], tokenizer)
    return files


def _too_short(
    spec: PrepareSpec, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> UserError:
    """What is said of forget texts none of which a prompt and an answer can be cut from."""
    lengths = [len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts]
    needed = spec.answer_tokens + _least_before(spec)
    return UserError(
        "The forget text is too short to cut a single prompt from: the longest of "
        f"{len(texts)} texts has {max(lengths, default=0)} tokens, and {needed} are needed.",
        "Give longer texts, or lower --answer-tokens.",
    )


def _least_before(spec: PrepareSpec) -> int:
    """The shortest prompt, in tokens: a third of the answer."""
    return max(1, spec.answer_tokens // 3)


def _asked(pair: tuple[str, str], others: Sequence[str]) -> dict[str, Any]:
    """A question as a record, with the answers that are right too."""
    question, answer = pair
    record = {"question": question, "answer": answer}
    return record | {"answers": list(others)} if others else record


def _spread(rows: list[Any], most: int) -> list[Any]:
    """At most so many rows, evenly spread over the list."""
    return rows if len(rows) <= most else [rows[i * len(rows) // most] for i in range(most)]


def _verbmem(
    spec: PrepareSpec,
    material: Material,
    tokenizer: PreTrainedTokenizerBase,
    splits: tuple[str, ...],
    qa: QA,
) -> list[dict[str, str]]:
    """Prompts and the text that follows; for question-only corpora the question and its answer."""
    if material.qa_only and qa:
        return _spread([{"prompt": question(q), "gt": a} for q, a in qa], spec.max_items)
    return _spread(
        [
            cut
            for split in splits
            for text in material.texts[split]
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
    for cut in (c for c in cuts if c >= _least_before(spec)):
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
    title = READERS[spec.benchmark].title if spec.benchmark in READERS else spec.benchmark
    return PrepareResult(
        source=spec.lab or spec.hub or (title if spec.folder else "own text"),
        answer_tokens=spec.answer_tokens,
        counts={name: len(rows) for name, rows in files.items()},
        overlapping_texts=overlap,
        absent=absent,
        repeated={},
        skipped={},
        notes=(),
    )
