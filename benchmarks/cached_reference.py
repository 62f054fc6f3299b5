"""Unlearning step (npo_klr) with the cached reference against a live second model: time, memory,
and the loss itself.

Each side runs in a process of its own, in turns, so that peak memory is its own. The last line is
one JSON object: speedup (live / cached seconds per step, above 1 is faster), memory_ratio (cached /
live peak bytes above an idle process, below 1 is less) and loss_max_diff (largest difference of any
loss over all steps).
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from shape import SHAPE

ROUNDS = 2
EXAMPLES = 32
LENGTH = 128
BATCH = 8


def build(side: str) -> tuple[Callable[[int], Any], Any]:
    """The loss of a micro-step for one side, and the policy."""
    import torch
    from transformers import PreTrainedModel

    from remnant.functional.losses import klr, npo
    from remnant.functional.view import View
    from remnant.model.data import batch_order, collate
    from remnant.model.examples import pool_of
    from remnant.model.terms import make_loss, make_streams, terms_of
    from remnant.records import UnlearnSpec
    from remnant.testing import tiny_model

    def model() -> PreTrainedModel:
        return tiny_model(vocab=1024, **SHAPE)

    generator = torch.Generator().manual_seed(0)
    examples = {
        s: torch.randint(4, 1024, (EXAMPLES, LENGTH), generator=generator).tolist()
        for s in ("forget", "retain")
    }
    policy, spec = model(), UnlearnSpec(method="npo_klr", batch_size=BATCH)
    if side == "cached":
        terms = terms_of(spec)
        pools = {name: pool_of(chunks) for name, chunks in examples.items()}
        return make_loss(policy, terms, make_streams(policy, terms, pools, 0, 0), BATCH, 0), policy
    reference = model()

    def live(micro: int) -> tuple[torch.Tensor, dict[str, float]]:
        views = {}
        for offset, name in enumerate(("forget", "retain")):
            batch = collate(
                [examples[name][i] for i in batch_order(EXAMPLES, BATCH, micro, offset)],
                0,
                torch.device("cpu"),
            )
            views[name] = View(
                policy(input_ids=batch.ids, attention_mask=batch.mask).logits, batch.labels
            )
            with torch.no_grad():
                views["ref_" + name] = View(
                    reference(input_ids=batch.ids, attention_mask=batch.mask).logits, batch.labels
                )
        parts = {
            "npo": npo(views["forget"], views["ref_forget"].seq_logp()).mean(),
            "klr": klr(views["retain"], views["ref_retain"]).mean(),
        }
        return parts["npo"] + parts["klr"], {k: v.item() for k, v in parts.items()}

    return live, policy


def side(name: str, steps: int) -> None:
    """Run one side in this process and print what it cost."""
    import torch

    from remnant.records import OptimSpec
    from remnant.trainable.layers import everything
    from remnant.training.stepper import Stepper

    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    loss_at, policy = build(name)
    built = time.perf_counter() - started
    stepper = Stepper(everything(policy).parts, OptimSpec(lr=1e-4))
    seconds, losses = [], []
    for step in range(steps + 1):
        started = time.perf_counter()
        loss, parts = loss_at(step)
        loss.backward()
        stepper.step(1e-4)
        if step:  # the first step warms up
            seconds.append(time.perf_counter() - started)
        losses.append([loss.item(), parts["npo"], parts["klr"]])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle
    print(
        json.dumps(
            {
                "seconds": median(seconds),
                "built": built,
                "peak": peak,
                "losses": losses,
                "threads": torch.get_num_threads(),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=["cached", "live"])
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    if args.side:
        side(args.side, args.steps)
        return
    found: dict[str, list[dict[str, Any]]] = {"live": [], "cached": []}
    for _ in range(ROUNDS):
        for name in found:
            command = [sys.executable, __file__, "--side", name, "--steps", str(args.steps)]
            found[name].append(
                json.loads(
                    subprocess.run(
                        command, capture_output=True, text=True, check=True
                    ).stdout.splitlines()[-1]
                )
            )
            print(
                f"{name:7} {found[name][-1]['seconds']:.3f} s a step, "
                f"{found[name][-1]['peak'] / 1024:.0f} MB"
            )
    best = {name: min(r["seconds"] for r in runs) for name, runs in found.items()}
    peak = {name: min(r["peak"] for r in runs) for name, runs in found.items()}
    pairs = zip(found["live"][0]["losses"], found["cached"][0]["losses"], strict=True)
    print(
        json.dumps(
            {
                "speedup": round(best["live"] / best["cached"], 3),
                "memory_ratio": round(peak["cached"] / peak["live"], 3),
                "loss_max_diff": max(
                    abs(a - b) for live, cached in pairs for a, b in zip(live, cached, strict=True)
                ),
                "cache_seconds": round(min(r["built"] for r in found["cached"]), 2),
                "threads": found["cached"][0]["threads"],
            }
        )
    )


if __name__ == "__main__":
    main()
