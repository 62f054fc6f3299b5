"""A step of unlearning (ga_gdr, npo_klr) against the plain loop that one writes with transformers,
with a second model in memory where the method reads a reference.

    python benchmarks/step.py [FOLDER of a model] [--steps N]

Each side runs in a process of its own, in turns, so that peak memory is its own: texts of 128
tokens, 4 a side, float32, one process. Remnant's side is the training loop itself, with its
checkpoints. The plain loop steps by the fused AdamW, as transformers' Trainer does by default.
Seconds are the processor's, so that other work on the machine says little.

The last line is one JSON object: step_ratio (Remnant's seconds a step over the plain loop's, the
worse of both methods; below 1 is faster), memory_ratio (peak bytes above an idle process, npo_klr,
below 1 is less), bytes_written_per_step (in a long run, the most of both: what the steps here
wrote, and a checkpoint as often as the run's own rule allows one that is written as fast as the
last file was), written_of_model_per_minute (the same as a share of the weights, a minute), and by
method what they come of. No checkpoint is due within the steps that are timed, so that none is
counted twice; what a run writes once, behind its last step, is no part of a step. Bytes
are those that the process handed to the system (wchar of /proc/self/io, so Linux only): blocks that
the system counts for a process say nothing of files in memory or of pages that are written twice.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from shape import SHAPE

METHODS = ("ga_gdr", "npo_klr")
SIDES = ("plain", "remnant")
EXAMPLES, LENGTH, BATCH = 16, 128, 4
RATE = 1e-5
BETA = 0.1


def texts(vocabulary: int) -> dict[str, Any]:
    """Random token lists of both sides."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return {
        side: torch.randint(4, vocabulary, (EXAMPLES, LENGTH), generator=generator)
        for side in ("forget", "retain")
    }


def chosen(step: int, side: int) -> list[int]:
    """The examples of a step that Remnant draws too."""
    from remnant.model.data import batch_order

    return batch_order(EXAMPLES, BATCH, step, side)


def plain(method: str, folder: str, steps: int) -> dict[str, Any]:
    """The loop that one writes by hand."""
    import torch
    from torch.nn.functional import cross_entropy, kl_div, logsigmoid
    from transformers import AutoModelForCausalLM

    def opened() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    policy = opened()
    reference = opened().requires_grad_(False) if method == "npo_klr" else None
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    data = texts(policy.config.vocab_size)

    def logits(model: Any, ids: Any) -> Any:
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1]

    def logp(found: Any, ids: Any) -> Any:
        loss = cross_entropy(found.transpose(1, 2), ids[:, 1:], reduction="none")
        return -loss

    seconds, losses = [], []
    for step in range(steps):
        started = time.process_time()
        forget, retain = (data[s][chosen(step, i)] for i, s in enumerate(data))
        own = logp(logits(policy, forget), forget)
        if reference is None:
            loss = own.mean() - logp(logits(policy, retain), retain).mean()
        else:
            kept = logits(policy, retain)
            with torch.no_grad():
                known = logp(logits(reference, forget), forget).sum(-1)
                was = logits(reference, retain).log_softmax(-1)
            ratio = own.sum(-1) - known
            npo = -(2 / BETA) * logsigmoid(-BETA * ratio).mean()
            klr = kl_div(kept.log_softmax(-1), was, log_target=True, reduction="none")
            loss = npo + klr.sum(-1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - started)
        losses.append(loss.item())
    return {"seconds": seconds, "losses": losses}


def handed() -> int:
    """Bytes that this process has written to anything."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


def in_a_long_run(checkpoint: int, model: int, pace: float, second: float) -> float:
    """Bytes of checkpoints a step: of so many bytes, of a model of so many, written at so many
    bytes a second, steps of so many seconds.
    """
    from remnant.training.checkpoints import SHARE, apart

    between = max(apart(checkpoint, model), checkpoint / pace / SHARE)
    return checkpoint * second / between


def ours(method: str, folder: str, steps: int) -> dict[str, Any]:
    """Remnant's own loop, with what it writes."""
    from remnant.context import Context, ModelCache
    from remnant.model.examples import pool_of
    from remnant.model.load import open_model
    from remnant.model.terms import make_loss, make_streams, terms_of
    from remnant.records import UnlearnSpec
    from remnant.trainable.attach import attach
    from remnant.training.checkpoints import Pace, size_of
    from remnant.training.loop import fit

    spec = UnlearnSpec(method=method, steps=steps, batch_size=BATCH, lr=RATE)
    policy = open_model(folder)
    terms = terms_of(spec)
    pools = {name: pool_of(t.tolist()) for name, t in texts(policy.config.vocab_size).items()}
    streams = make_streams(policy, terms, pools, 0, spec.seed)
    moving = attach(policy, spec)
    seconds: list[float] = []
    losses: list[float] = []
    last = time.process_time()
    ends: list[tuple[float, int]] = []

    def after_step(step: int, parts: dict[str, float], memory: dict[str, Any]) -> bool:
        nonlocal last
        seconds.append(time.process_time() - last)
        losses.append(sum(parts[term.label] * term.weight for term in terms))
        ends.append((time.monotonic(), handed()))
        last = time.process_time()
        return False

    work = Context(lambda done, total, note: None, ModelCache())
    loss_at = make_loss(policy, terms, streams, BATCH, 0)
    never = patch.object(Pace, "due", lambda pace: False)
    with tempfile.TemporaryDirectory() as out, never:
        last = time.process_time()
        fit(moving, spec, loss_at, Path(out), work, after_step)
        ended = (time.monotonic(), handed())
    (first, before), (done, after) = ends[0], ends[-1]
    pace = (ended[1] - after) / (ended[0] - done)
    second, number = (done - first) / (steps - 1), steps - 1
    size = sum(p.nbytes for p in policy.parameters())
    written = (after - before) / number + in_a_long_run(size_of(moving), size, pace, second)
    share = written * 60 / second / size
    told = {"a step": written, "share a minute": share, "bytes a second": pace}
    return {"seconds": seconds, "losses": losses, "written": told}


def side(name: str, method: str, folder: str, steps: int) -> None:
    """Run one side in this process and print what it cost."""
    import torch
    import transformers

    from remnant.training.loop import fit

    # An idle process holds the same libraries on both sides.
    assert transformers.AutoModelForCausalLM is not None
    assert fit is not None
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ways: dict[str, Callable[[str, str, int], dict[str, Any]]]
    ways = {"plain": plain, "remnant": ours}
    found = ways[name](method, folder, steps + 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle
    print(json.dumps(found | {"peak": peak * 1024, "threads": torch.get_num_threads()}))


def measured(folder: str, steps: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Both sides of both methods, by method and side."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for method in METHODS:
        for name in SIDES:
            command = [sys.executable, __file__, folder, "--steps", str(steps)]
            command += ["--side", name, "--method", method]
            ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            one = json.loads(ran.stdout.splitlines()[-1])
            # The first step warms up.
            one["second"] = median(one["seconds"][1:])
            found.setdefault(method, {})[name] = one
            print(f"{method:8} {name:8} {one['second']:.2f} s a step, {one['peak'] / 1e6:.0f} MB")
    return found


def main() -> None:
    """Run all sides and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--method", choices=METHODS)
    args = parser.parse_args()
    if args.side:
        side(args.side, args.method, args.folder, args.steps)
        return
    with tempfile.TemporaryDirectory() as scratch:
        if not args.folder:
            from remnant.testing import tiny_model

            tiny_model(vocab=1024, **SHAPE).save_pretrained(scratch)
        found = measured(args.folder or scratch, args.steps)
    ratios = {m: s["remnant"]["second"] / s["plain"]["second"] for m, s in found.items()}
    peaks = {m: s["remnant"]["peak"] / s["plain"]["peak"] for m, s in found.items()}
    written = [s["remnant"]["written"] for s in found.values()]
    pairs = [
        (a, b)
        for s in found.values()
        for a, b in zip(s["plain"]["losses"], s["remnant"]["losses"], strict=True)
    ]
    print(
        json.dumps(
            {
                "step_ratio": round(max(ratios.values()), 3),
                "memory_ratio": round(peaks["npo_klr"], 3),
                "bytes_written_per_step": round(max(w["a step"] for w in written)),
                "written_of_model_per_minute": round(max(w["share a minute"] for w in written), 3),
                "step_ratios": {m: round(r, 3) for m, r in ratios.items()},
                "memory_ratios": {m: round(r, 3) for m, r in peaks.items()},
                "loss_max_diff": max(abs(a - b) / max(1.0, abs(a)) for a, b in pairs),
                "threads": found["ga_gdr"]["plain"]["threads"],
            }
        )
    )


if __name__ == "__main__":
    main()
