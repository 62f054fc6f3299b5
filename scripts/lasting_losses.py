"""Forget and retain loss of unlearned models under grids, and of one of them behind a promise.

python scripts/lasting_losses.py TARGET CORPUS NAME=MODEL... [--promise NAME] [--grids int4,nf4]

Losses are in nats per token on the first texts of both sides. The promised model is made of the
run NAME in bfloat16, to its own forget loss in full precision. Prints a table in Markdown, forget
loss / retain loss; the last line is one JSON object.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.corpus.prepared import raw_texts
from remnant.methods import Step, grid
from remnant.model.load import in_dtype, open_model, open_tokenizer
from remnant.model.rounding import rounded
from remnant.records import Certificate, PromiseSpec
from remnant.training.promise import Given, keep

GRIDS = "int8,int4-tensor,int4,int4-g128,int4-g64,int3,nf4,fp4,nvfp4,mxfp4,q4_0"
MOST_TOKENS = 256


def losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Callable[[], float]:
    """The mean over texts of a model's cross entropy, as a function of what its weights are."""
    every = [tokenizer(text, return_tensors="pt")["input_ids"][:, :MOST_TOKENS] for text in texts]

    @torch.no_grad()
    def mean() -> float:
        found = [float(model(input_ids=ids, labels=ids).loss) for ids in every if ids.shape[1] > 1]
        return sum(found) / len(found)

    return mean


def row(
    model: PreTrainedModel, sides: Sequence[Callable[[], float]], grids: dict[str, Step]
) -> dict[str, list[float]]:
    """Both losses in full precision and under every grid."""
    found = {"full": [side() for side in sides]}
    for name, by in grids.items():
        with rounded(model, by):
            found[name] = [side() for side in sides]
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--promise", metavar="NAME", default="")
    parser.add_argument("--grids", default=GRIDS)
    parser.add_argument("--texts", type=int, default=24)
    given = parser.parse_args()
    torch.set_num_threads(1)
    grids = {name: grid(name) for name in given.grids.split(",")}
    tokenizer = open_tokenizer(given.target)
    both = [raw_texts(given.corpus, split)[: given.texts] for split in ("forget", "retain1")]
    rows: dict[str, dict[str, list[float]]] = {}
    certificate: Certificate | None = None
    for name, path in {"target": given.target, **dict(m.split("=") for m in given.models)}.items():
        model = open_model(path)
        sides = [losses(model, tokenizer, texts) for texts in both]
        rows[name] = row(model, sides, grids)
        if name == given.promise:
            origin = in_dtype(in_dtype(open_model(given.target), torch.bfloat16), torch.float32)
            spec = PromiseSpec(use=tuple(grids))
            with_loss = Given(model, origin, tokenizer, sides[0])
            certificate = keep(spec, with_loss, torch.bfloat16, lambda done, most, note: None)
            rows[f"{name}, promised"] = row(model, sides, grids)
    print(f"| format | {' | '.join(rows)} |\n|{'---|' * (len(rows) + 1)}")
    for form in ("full", *grids):
        cells = (
            f"{forget:.2f} / {retain:.2f}" for forget, retain in (r[form] for r in rows.values())
        )
        print(f"| {form} | {' | '.join(cells)} |")
    print(json.dumps(certificate.model_dump(mode="json") if certificate else {}))


if __name__ == "__main__":
    main()
