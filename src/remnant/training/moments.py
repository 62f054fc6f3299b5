"""AdamW whose two moments are kept in less than float32 between steps."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from remnant.model.nf4 import bitsandbytes
from remnant.records import OptimSpec

# What torch's AdamW calls them.
NAMES = ("exp_avg", "exp_avg_sq")


def adamw(moved: nn.Parameter, spec: OptimSpec, fused: bool) -> torch.optim.Optimizer:
    """AdamW of one part: torch's, or where moments are to have 8 bits bitsandbytes'.

    Args:
        moved: the part, or what its copies are put into.
        spec: rate, decay, the second beta and ``moments``.
        fused: torch's kernel of one pass.

    Raises:
        UserError: bitsandbytes is asked for and missing.

    Source of the latter: Dettmers et al. 2021 (arXiv 2110.02861), codes in blocks of 256; parts of
    less than 4096 numbers keep float32.
    """
    rates: dict[str, Any] = {
        "lr": spec.lr, "weight_decay": spec.weight_decay, "betas": (0.9, spec.beta2)
    }  # fmt: skip
    if spec.moments == "8bit":
        library: Any = bitsandbytes()
        found: torch.optim.Optimizer = library.optim.AdamW8bit([moved], **rates)
        return found
    return torch.optim.AdamW([moved], **rates, fused=fused)


def widen(optimizer: torch.optim.Optimizer) -> None:
    """The moments in float32, for a step."""
    _each(optimizer, Tensor.float)


def narrow(optimizer: torch.optim.Optimizer, rounded: Callable[[Tensor], Tensor]) -> None:
    """The moments as a function rounds them, until the next step.

    To the nearest would not do: in bfloat16 a second moment that shrinks by a thousandth a step
    (beta2 = 0.999) lies nearer to itself than to any smaller number, and would never shrink.
    """
    _each(optimizer, rounded)


def _each(optimizer: torch.optim.Optimizer, made: Callable[[Tensor], Tensor]) -> None:
    for state in optimizer.state.values():
        for name in NAMES:
            if name in state:
                state[name] = made(state[name])
