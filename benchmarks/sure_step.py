"""SURE's step against the plain step of the same method, and against masks kept in a dictionary per
row as the released code does it.

One model, one process, in turns. The last line is one JSON object: sure_over_plain (seconds per
step, below 1 is faster than plain), paper_code_over_sure, saliency_seconds (once per run) and
saliency_memory_ratio (gradient memory at its peak over one copy of the weights).
"""

import json
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from remnant.model.examples import pool_of
from remnant.model.terms import forget_losses, make_loss, make_streams, terms_of
from remnant.records import SureSpec, UnlearnSpec
from remnant.testing import tiny_model
from remnant.trainable.layers import everything
from remnant.trainable.sure import find
from remnant.training.stepper import Stepper
from shape import SHAPE

ROUNDS = 3
EXAMPLES, LENGTH, BATCH = 16, 128, 8


def dictionary_mask(model: torch.nn.Module, percentile: float) -> None:
    """Norm of every row's gradient in a dictionary, percentile over the list, gradients of the
    other rows set to zero.
    """
    norms = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            for row, value in enumerate(
                parameter.grad.reshape(len(parameter.grad), -1).norm(dim=-1).numpy()
            ):
                norms[name, row] = float(value)
    limit = np.percentile(list(norms.values()), percentile)
    masks = {key: 1.0 if value >= limit else 0.0 for key, value in norms.items()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            for row in range(len(parameter.grad)):
                parameter.grad[row] *= masks[name, row]


def main() -> None:
    """Time the three kinds of step in turns."""
    model = tiny_model(vocab=1024, **SHAPE)
    generator = torch.Generator().manual_seed(0)
    texts = {
        s: pool_of(torch.randint(4, 1024, (EXAMPLES, LENGTH), generator=generator).tolist())
        for s in ("forget", "retain")
    }
    spec = UnlearnSpec(method="npo_klr", lr=1e-5, batch_size=BATCH)
    terms = terms_of(spec)
    streams = make_streams(model, terms, texts, 0, 0)
    loss_at = make_loss(model, terms, streams, BATCH, 0)
    started = time.perf_counter()
    found = find(
        model, SureSpec(percentile=90), lambda: forget_losses(model, terms, streams, BATCH, 0)
    )
    saliency_seconds = time.perf_counter() - started
    gradients = sum(
        p.numel()
        for n, p in model.named_parameters()
        if p.ndim == 2 and "embed" not in n and "lm_head" not in n
    )
    plain, sure = Stepper(everything(model).parts, spec), Stepper(found.moving, spec)
    moving = {id(p.parameter) for p in found.moving}

    def allow(which: Callable[[torch.nn.Parameter], bool]) -> None:
        for parameter in model.parameters():
            parameter.requires_grad_(which(parameter))
            parameter.grad = None

    def one(kind: str, micro: int) -> float:
        allow((lambda p: id(p) in moving) if kind == "sure" else (lambda p: True))
        started = time.perf_counter()
        loss_at(micro)[0].backward()
        if kind == "paper":
            dictionary_mask(model, 90)
        (sure if kind == "sure" else plain).step(1e-5)
        return time.perf_counter() - started

    times: dict[str, list[float]] = {"plain": [], "sure": [], "paper": []}
    for micro in range(ROUNDS + 1):
        for kind, seconds in times.items():
            took = one(kind, micro)
            if micro:  # the first round warms up
                seconds.append(took)
    middle = {kind: median(seconds) for kind, seconds in times.items()}
    for kind, seconds in middle.items():
        print(f"{kind:6} {seconds:.3f} s a step")
    print(
        f"mask: {found.result.moving_units} of {found.result.units} modules, "
        f"{found.result.share_of_weights:.1%} of the weights"
    )
    print(
        json.dumps(
            {
                "sure_over_plain": round(middle["sure"] / middle["plain"], 3),
                "paper_code_over_sure": round(middle["paper"] / middle["sure"], 3),
                "saliency_seconds": round(saliency_seconds, 2),
                "saliency_memory_ratio": round(
                    gradients / sum(p.numel() for p in model.parameters()), 3
                ),
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
