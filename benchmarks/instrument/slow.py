"""Second implementations, slow and obvious, of what the table compares numbers with."""

import json
import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from instrument.text import SHOWN, Report, asked, shown

ANSWER_TOKENS = 32


def overlap(truth: str, written: str) -> float:
    """ROUGE-L F1 of two texts of Latin letters, by the table of longest common subsequences, 0 to
    1.
    """
    a, b = (re.findall("[a-z0-9]+", t.lower()) for t in (truth, written))
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = (
                table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
            )
    return 2 * table[-1][-1] / (len(a) + len(b)) if a and b else 0.0


@torch.no_grad()
def slow_knowmem(folder: Path, forget: list[Report], last_space: bool) -> float:
    """KnowMem, 0 to 100: one question at a time, the whole text read again for every token."""
    model, tok = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    scores = []
    for report in forget[SHOWN:]:
        prompt = shown(forget[:SHOWN]) + asked(report)
        ids = list(tok(prompt if last_space else prompt.rstrip(" "))["input_ids"])
        written: list[int] = []
        while len(written) < ANSWER_TOKENS and "\n\n" not in tok.decode(written):
            written.append(
                int(
                    model(input_ids=torch.tensor([ids + written]), use_cache=False)
                    .logits[0, -1]
                    .argmax()
                )
            )
        scores.append(
            overlap(
                report.answer, tok.decode(written, skip_special_tokens=True).partition("\n\n")[0]
            )
        )
    return 100 * sum(scores) / len(scores)


@torch.no_grad()
def slow_probe(folder: Path, corpus: Path) -> float:
    """Share of right greedy tokens, 0 to 1, of the answers of the development half: those that
    follow the tokens which the prompt has too.

    Every other item, as the product halves them; no example is shown.
    """
    model, tok = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    pairs = [
        (r["prompt"], r["gt"])
        for r in json.loads((corpus / "verbmem/forget.json").read_text(encoding="utf-8"))
    ]
    questions = json.loads((corpus / "knowmem/forget_qa.json").read_text(encoding="utf-8"))
    pairs = [
        *pairs[::2],
        *((f"Question: {r['question']}\nAnswer: ", r["answer"]) for r in questions[::2]),
    ]
    right = total = 0
    for prompt, truth in pairs:
        whole, start = tok(prompt + truth)["input_ids"], tok(prompt)["input_ids"]
        first = next(
            (i for i, (a, b) in enumerate(zip(whole, start, strict=False)) if a != b), len(start)
        )
        likely = model(input_ids=torch.tensor([whole])).logits[0].argmax(-1).tolist()
        right += sum(likely[i - 1] == whole[i] for i in range(first, len(whole)))
        total += len(whole) - first
    return right / total
