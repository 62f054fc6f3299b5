"""Fixtures: a tiny corpus, a tokenizer and models of a few thousand weights, all made here."""

import gc
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.context import Context, ModelCache, Progress
from remnant.model.load import open_tokenizer, save_model
from remnant.records import PrepareSpec
from remnant.stages import prepare
from remnant.testing import tiny_model

torch.set_num_threads(1)
# What models, training and preparing bring along; the tests' own imports come later.
BROUGHT = frozenset(sys.modules)


def pytest_collection_finish() -> None:
    """No collection of garbage looks through what the imports made again: half a second each."""
    gc.collect()
    gc.freeze()


def unheard(done: int, total: int, note: str) -> None:
    """A progress report that nobody reads."""


def hearing(progress: Progress) -> Context:
    """A context that tells somebody how far a stage is."""
    return Context(progress, ModelCache())


silent = hearing(unheard)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Digests that are kept for the user are none of the tests' business, nor theirs of his."""
    os.environ["REMNANT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="module")
def no_worker_left() -> Iterator[None]:
    """Workers that a test starts and forgets go on for minutes, and halve the cores of all tests
    behind it.
    """
    yield
    left = [pid for pid in _children() if b"remnant.flow.run" in _command(pid)]
    assert not left, f"workers are still at work: {left}"


def _children() -> list[str]:
    """The processes that this one has started; none where the system does not tell."""
    found = Path("/proc/self/task").glob("*/children")
    return [pid for file in found for pid in file.read_text().split()]


def _command(pid: str) -> bytes:
    """What a process was started as; nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small newswire in MUSE's layout."""
    out = tmp_path_factory.mktemp("corpus")
    spec = PrepareSpec(
        lab="news",
        forget_docs=6,
        retain_docs=8,
        holdout_docs=6,
        prompt_tokens=40,
        answer_tokens=24,
        text_tokens=200,
        vocab_size=400,
    )
    prepare.run(spec, {}, out, silent)
    return out


@pytest.fixture(scope="session")
def tokenizer(corpus: Path) -> PreTrainedTokenizerBase:
    """The corpus's tokenizer."""
    return open_tokenizer(str(corpus / "tokenizer"))


@pytest.fixture
def folder_of(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> Callable[[PreTrainedModel, str], Path]:
    """Save a model with the tokenizer and give its folder."""

    def save(model: PreTrainedModel, name: str) -> Path:
        out = tmp_path / name
        save_model(model, tokenizer, out)
        return out

    return save


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A random Llama for the corpus."""
    return tiny_model("llama", vocab=len(tokenizer), max_position_embeddings=1024)
