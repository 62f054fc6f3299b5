"""The caller's process as it was: libraries are quiet, and what they change is put back.

Libraries lower and raise the voices of loggers, set variables of the environment and seed global
random numbers, some of them when they are imported. Nobody who calls Remnant wants that.
"""

import logging
import os
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

# Loggers that say at a level of warnings or below what no user of Remnant can act on.
LOUD = (
    "transformers", "huggingface_hub", "torchao", "torch.utils._pytree", "compressed_tensors",
    "autoround", "lm_eval", "lm-eval", "datasets", "httpx", "optuna",
)  # fmt: skip
# What one logger says that nobody can act on: that a faster kernel could be had from the hub.
NOISE: Mapping[str, str] = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}


@contextmanager
def unchanged() -> Iterator[None]:
    """Keep libraries quiet; then put back levels, environment and random numbers."""
    bars = _bars()
    levels = {name: logging.getLogger(name).level for name in LOUD}
    heard = [name for name in NOISE if _unlike_noise not in logging.getLogger(name).filters]
    environment, drawn = dict(os.environ), _random_states()
    new = _transformers() is None
    hush()
    try:
        yield
    finally:
        if new and (came := _transformers()):
            levels["transformers"] = came._default_log_level
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for name in heard:
            logging.getLogger(name).removeFilter(_unlike_noise)
        if (bars or new) and (there := _transformers()):
            there.enable_progress_bar()
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        _put_back(drawn)


def hush() -> None:
    """Lower the voices of the libraries that are there by now."""
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in NOISE:
        logging.getLogger(name).addFilter(_unlike_noise)
    if (there := _transformers()) and _bars():
        there.disable_progress_bar()


def _unlike_noise(record: logging.LogRecord) -> bool:
    """Whether a record is anything but the one sentence that its logger is silenced for."""
    return not record.getMessage().startswith(NOISE[record.name])


def _transformers() -> Any:
    """The module by which transformers says things, if it is imported by now."""
    return sys.modules.get("transformers.utils.logging")


def _bars() -> bool:
    """Whether transformers, where it is imported, draws bars of progress."""
    there = _transformers()
    return bool(there and there.is_progress_bar_enabled())


def _random_states() -> tuple[Any, ...]:
    """The random numbers to come; of torch also how it prints, which auto-round changes."""
    torch = sys.modules.get("torch")
    own = (torch.get_rng_state(), vars(torch._tensor_str.PRINT_OPTS).copy()) if torch else None
    return random.getstate(), np.random.get_state(), own


def _put_back(states: tuple[Any, ...]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    if states[2] is not None:
        torch = sys.modules["torch"]
        torch.set_rng_state(states[2][0])
        torch.set_printoptions(**states[2][1])
