"""Count what batching changes: greedy texts and log-probabilities of a model asked together and one
by one, in float32 and bfloat16.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from remnant.corpus.muse import privleak_texts, verbmem
from remnant.evaluate.collect import collect
from remnant.evaluate.local import Local
from remnant.evaluate.requests import Reading, Request, Writing
from remnant.functional.tokens import Tokens
from remnant.model.load import open_model, open_tokenizer


def main() -> None:
    """Print one line per dtype."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="A folder.")
    parser.add_argument("corpus", type=Path, help="A prepared corpus.")
    given = parser.parse_args()
    tokenizer = open_tokenizer(given.model)
    texts: list[Request] = [
        Reading(t) for s in ("forget", "holdout") for t in privleak_texts(given.corpus, s)
    ]
    prompts: list[Request] = [Writing(i.prompt, 64) for i in verbmem(given.corpus)]
    for dtype in (torch.float32, torch.bfloat16):
        backend = Local(open_model(given.model, dtype=dtype), tokenizer)
        with tempfile.TemporaryDirectory() as folder:
            together = collect(
                texts + prompts, backend, Path(folder) / "spool", lambda done, total: None
            )
        alone = {r: backend.answer([r])[0] for r in texts + prompts}
        apart, tokens = [], 0
        for r in texts:
            a, b = together[r], alone[r]
            assert isinstance(a, Tokens)
            assert isinstance(b, Tokens)
            apart.append(np.abs(a.logp - b.logp))
            tokens += len(a.logp)
        same = sum(together[r] == alone[r] for r in prompts)
        worst, mean = max(x.max() for x in apart), np.concatenate(apart).mean()
        told = (
            f"{same} of {len(prompts)} texts equal; {tokens} log-probabilities apart by "
            f"{mean:.1e} on average, {worst:.1e} at most"
        )
        print(f"{dtype!s:15} {told}")


if __name__ == "__main__":
    main()
