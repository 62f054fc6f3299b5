"""What grids leave of an update on the outputs that some text makes: `predict --text`."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.corpus.base import pages
from remnant.corpus.own_text import read_sources
from remnant.errors import UserError
from remnant.forecast.grids import DEFAULT
from remnant.methods import grid
from remnant.model.data import encode
from remnant.model.load import context_length, open_model, open_tokenizer
from remnant.model.on_text import OnText, survival_on_text
from remnant.report import terminal

# A few hundred tokens are enough for sums over all layers; more only cost time.
MOST_TOKENS = 4096


def check_text(text: Path) -> None:
    """See that a file has something in it, before any model is read.

    Raises:
        UserError: it is empty.
    """
    if text.is_file() and not text.read_bytes().strip():
        raise UserError(f"{text} is empty.", "Give a file of what was to be forgotten.")


def show(target: str, unlearned: str, text: Path, quantizers: Sequence[str]) -> None:
    """Print what every grid leaves on the text of a file."""
    found = on_text(target, unlearned, text, quantizers)
    shown = Table("grid", "gain on the text's outputs", "signal to noise")
    for name, left in found.items():
        shown.add_row(name, f"{left.gain:.2f}", f"{left.signal_to_noise:.2f}")
    terminal.console().print(shown)


def on_text(
    target: str, unlearned: str, text: Path, quantizers: Sequence[str]
) -> dict[str, OnText]:
    """What grids leave of an update on some text, by their names.

    Args:
        target: the model before unlearning.
        unlearned: the model behind it.
        text: of what was to be forgotten, in any form that ``prepare`` reads.
        quantizers: names of grids; the forecast's own where there are none.

    Raises:
        UserError: a grid that is none, no text in the file, or models of other shapes.
    """
    grids = {use: grid(use) for use in quantizers or DEFAULT}
    check_text(text)
    source = read_sources([str(text)], "forget", {})
    before, after = open_model(target), open_model(unlearned)
    written = source.texts or pages(source.qa)
    pieces = batches(open_tokenizer(unlearned), after, written)
    if not pieces:
        raise UserError(f"{text} holds no text.", "Give a file of what was to be forgotten.")
    return survival_on_text(before, after, grids, pieces)


def batches(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, written: Sequence[str]
) -> list[Tensor]:
    """The first few thousand tokens of some texts, each piece [1, T] as the model takes it."""
    found, tokens = [], 0
    for piece in encode(tokenizer, written, min(512, context_length(model))):
        if tokens < MOST_TOKENS:
            found.append(torch.tensor([piece]))
            tokens += len(piece)
    return found
