"""Does a GGUF file say in llama.cpp what its dense copy says? Greedy continuations of a corpus,
token by token.

    python scripts/greedy_in_llamacpp.py DEPLOYED DENSE CORPUS

DEPLOYED is a folder of `remnant deploy`, DENSE one of `remnant transform` with the same format,
CORPUS a prepared corpus. Where they part, the gap between the dense copy's favourite and the other
token says how near a tie it was: llama.cpp also rounds activations. Last line: JSON.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from remnant.corpus.prepared import raw_texts
from remnant.model.load import open_model, open_tokenizer
from remnant.runtimes.llamacpp import Runtime

PROMPT, ANSWER, CUTS = 48, 32, (0, 24, 48, 72, 96)


def main() -> None:
    """Compare all prompts; print where they part."""
    arguments = argparse.ArgumentParser(description=__doc__)
    for name in ("deployed", "dense", "corpus"):
        arguments.add_argument(name, type=Path)
    given = arguments.parse_args()
    tokenizer, dense = open_tokenizer(str(given.dense)), open_model(str(given.dense))
    runtime = Runtime(next(given.deployed.glob("*.gguf")))
    texts = [
        tokenizer(t)["input_ids"]
        for split in ("forget", "retain1")
        for t in raw_texts(given.corpus, split)
    ]
    prompts = [ids[cut : cut + PROMPT] for cut in CUTS for ids in texts if len(ids) >= cut + PROMPT]
    same, gaps, typical = 0, [], []
    for prompt in prompts:
        theirs = runtime.greedy(prompt, ANSWER, tokenizer.eos_token_id)
        with torch.no_grad():
            scores = (
                dense(input_ids=torch.tensor([prompt + theirs]))
                .logits[0, len(prompt) - 1 :]
                .float()
            )
        top = scores.topk(2).values
        typical += (top[:, 0] - top[:, 1]).tolist()
        said = theirs + [tokenizer.eos_token_id] * (len(theirs) < ANSWER)
        parted = next(
            (
                i
                for i, (a, b) in enumerate(zip(scores.argmax(-1).tolist(), said, strict=False))
                if a != b
            ),
            None,
        )
        same += parted is None
        if parted is not None:
            gaps.append(float(top[parted, 0] - scores[parted, said[parted]]))
            print(f"parts at token {parted}: the dense copy prefers its own by {gaps[-1]:.3f}")
    result = {
        "prompts": len(prompts),
        "same_text": same,
        "largest_gap_where_parted": round(max(gaps), 3) if gaps else None,
        "median_gap_everywhere": round(float(np.median(typical)), 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
