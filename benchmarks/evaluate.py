"""Measuring VerMem, KnowMem and PrivLeak: Remnant against the procedure of the released code, same
model, same items, same run.

The other side is a plain re-implementation: transformers' generate for one prompt at a time, the
ten shown questions read again for each, and for every text a pass for the loss, one for the
lower-cased text, and one whose log-probabilities are read token by token; the retain split is
measured too. Both sides print their numbers, which must agree. Then the share of a measurement that
its checks take, and the memory of long texts with a large vocabulary.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import torch
from rouge_score import rouge_scorer

from remnant.context import Context, ModelCache
from remnant.evaluate.trial import model_checks
from remnant.flow.run import here
from remnant.functional.stats import auc
from remnant.functional.text import cut_answer
from remnant.metrics import MEMBERS, OTHERS, Column
from remnant.model.load import open_model, open_tokenizer
from remnant.model.whole import check_finite, check_ids
from remnant.records import MeasureSpec, PrepareSpec, Row, TrainSpec
from remnant.stages import measure, prepare, train
from remnant.stages.cells import read_rows
from remnant.stages.checks import checks_of

BUDGET_MB = 512


def silent(*anything: object) -> None:
    pass


WORK = Context(silent, ModelCache(), here())


def one_by_one(model: Any, tokenizer: Any, corpus: Path, answer_tokens: int) -> dict[str, float]:
    """The released procedure, without its faults in the numbers."""
    rouge = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)

    def load(name: str) -> Any:
        return json.loads((corpus / f"{name}.json").read_text())

    def write(prompt: str, most: int) -> str:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = model.generate(
            ids, max_new_tokens=most, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    def mean(values: list[float]) -> float:
        return 100 * sum(values) / len(values)

    def read(text: str) -> dict[str, float]:
        def loss(of: str) -> float:
            ids = tokenizer(of, return_tensors="pt").input_ids
            with torch.no_grad():
                return float(model(ids, labels=ids).loss)

        plain, lower = loss(text), loss(text.lower())
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            logp = torch.nn.functional.log_softmax(model(ids).logits[0, :-1], dim=-1)
        tokens = [logp[i, token].item() for i, token in enumerate(ids[0, 1:])]
        lowest = sorted(tokens)[: max(1, int(0.4 * len(tokens)))]
        return {
            "loss": plain,
            "lower": plain / lower,
            "zlib": plain / len(zlib.compress(text.encode())),
            "min40": -sum(lowest) / len(lowest),
        }

    found = {}
    scores = []
    for item in load("verbmem/forget"):
        truth = tokenizer.decode(
            tokenizer(item["gt"]).input_ids[:answer_tokens], skip_special_tokens=True
        )
        scores.append(rouge.score(truth, write(item["prompt"], answer_tokens))["rougeL"].fmeasure)
    found["verbmem"] = mean(scores)
    for side in ("forget", "retain"):
        shown = "".join(
            f"Question: {r['question']}\nAnswer: {r['answer']}\n\n"
            for r in load(f"knowmem/{side}_qa_icl")
        )
        answers = [
            (r["answer"], write(f"{shown}Question: {r['question']}\nAnswer: ", 32))
            for r in load(f"knowmem/{side}_qa")
        ]
        found[f"knowmem_{side}"] = mean(
            [rouge.score(truth, cut_answer(text))["rougeL"].fmeasure for truth, text in answers]
        )
    read_of = {
        split: [read(text) for text in load(f"privleak/{split}")]
        for split in ("forget", "retain", "holdout")
    }
    for name in ("loss", "lower", "zlib", "min40"):
        sides = [
            torch.tensor([r[name] for r in read_of[split]]).double().numpy()
            for split in ("forget", "holdout")
        ]
        found[f"auc_{name}"] = 100 * auc(*sides)
    return found


NAMES = {
    "auc_loss": "mia_loss",
    "auc_lower": "mia_lower",
    "auc_zlib": "mia_zlib",
    "auc_min40": "privleak",
}


def together(folder: Path, corpus: Path, out: Path) -> dict[str, float]:
    """The same numbers by Remnant, opening the model included."""
    out.mkdir()
    spec = MeasureSpec(metrics=("verbmem", "knowmem_forget", "knowmem_retain", *NAMES.values()))
    measure.run(spec, {"model": folder, "corpus": corpus}, out, WORK)
    sheet = read_rows(out / "rows.jsonl")
    found = {
        m: 100 * float(sheet.column(Column(m)).mean())
        for m in ("verbmem", "knowmem_forget", "knowmem_retain")
    }
    for ours, theirs in NAMES.items():
        sides = [sheet.column(Column(theirs, side)) for side in (MEMBERS, OTHERS)]
        found[ours] = 100 * auc(*sides)
    return found


def checking(folder: Path, out: Path) -> float:
    """Seconds that the checks of the instrument take in a measurement that is in ``out``: at
    opening, of the open model, of the rows.
    """
    model, tokenizer = open_model(str(folder)), open_tokenizer(str(folder))
    lines = {
        name: (out / f"{name}.jsonl").read_text().split("\n")[:-1] for name in ("rows", "texts")
    }
    rows, texts = (
        [Row.model_validate_json(line) for line in lines["rows"]],
        [json.loads(line) for line in lines["texts"]],
    )
    started = time.perf_counter()
    check_finite(model, str(folder))
    check_ids(model, tokenizer)
    model_checks(model, tokenizer)
    checks_of(rows, texts)
    return time.perf_counter() - started


def long_texts(tokens: int, vocabulary: int) -> None:
    """Read long texts with a large vocabulary in this process and print how much memory that took
    beside the model.
    """
    from transformers import PreTrainedTokenizerFast

    from remnant.evaluate.collect import collect
    from remnant.evaluate.local import Local
    from remnant.evaluate.requests import Reading
    from remnant.lab.tokenizer import train_tokenizer
    from remnant.testing import tiny_model

    tokenizer: PreTrainedTokenizerFast = train_tokenizer(["word " * 20], 300)
    model = tiny_model(vocab=vocabulary, max_position_embeddings=tokens)
    texts = [Reading("a b c d e f g h " * tokens + str(i)) for i in range(8)]
    with torch.no_grad():
        model(torch.zeros(1, 8, dtype=torch.long))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _memory("VmRSS")
    with tempfile.TemporaryDirectory() as scratch:
        collect(texts, Local(model, tokenizer), Path(scratch) / "spool", silent)
    print(json.dumps({"added_mb": _memory("VmHWM") - before}))


def _memory(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="Training steps of the model.")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--long", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if given.long:
        return long_texts(2048, 131072)
    with tempfile.TemporaryDirectory() as scratch:
        corpus, folder = Path(scratch) / "corpus", Path(scratch) / "model"
        corpus.mkdir(), folder.mkdir()
        prepare.run(
            PrepareSpec(
                lab="news", max_items=100, prompt_tokens=160, answer_tokens=64, text_tokens=320
            ),
            {},
            corpus,
            WORK,
        )
        train.run(TrainSpec(steps=given.steps, context=1024), {"corpus": corpus}, folder, WORK)
        turns = []
        for turn in range(given.turns):
            started = time.perf_counter()
            fast = together(folder, corpus, Path(scratch) / f"out{turn}")
            middle = time.perf_counter()
            slow = one_by_one(open_model(str(folder)), open_tokenizer(str(folder)), corpus, 64)
            turns.append((middle - started, time.perf_counter() - middle))
            checked = checking(folder, Path(scratch) / f"out{turn}") / turns[-1][0]
            print(f"turn {turn}: Remnant {turns[-1][0]:.1f} s, one by one {turns[-1][1]:.1f} s")
    for name in fast:
        print(f"{name:16} {fast[name]:8.3f} {slow[name]:8.3f}")
    memory = subprocess.run(
        [sys.executable, __file__, "--long"], capture_output=True, text=True, check=True
    )
    added = json.loads(memory.stdout)["added_mb"]
    print(
        f"8 texts of 2,048 tokens, 131,072 vocabulary entries: {added} MB more (budget "
        f"{BUDGET_MB}; whole logits of one text: 1,024)"
    )
    same = all(abs(fast[name] - slow[name]) < 1e-3 for name in fast)
    speedup = min(slow_s / fast_s for fast_s, slow_s in turns)
    found = {
        "speedup": round(speedup, 2),
        "same_numbers": same,
        "long_text_mb": added,
        "within_budget": added <= BUDGET_MB,
    }
    print(json.dumps(found | {"checks_share": round(checked, 4)}))


if __name__ == "__main__":
    main()
