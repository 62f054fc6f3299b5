"""Open and save checkpoints in Hugging Face form, and name the weight matrices inside a model."""

import contextlib
import io
import json
import logging
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from remnant.errors import UserError
from remnant.model.sizes import longest_text

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

_WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check_source(source: str, what: str) -> None:
    folder = Path(source)
    if folder.is_dir() or _HUB_ID.fullmatch(source):
        return
    raise UserError(f"{what} '{source}' is neither a folder nor a hub id.", "Give a folder in Hugging Face form or owner/name.")


def open_model(source: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model in evaluation mode, from a folder or a hub id.

    Raises:
        UserError: no such folder, no configuration, no weights, damaged weights, hub out of reach.
    """
    _check_source(source, "The model")
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"The model folder {source} has no config.json.", "Give a folder written by save_pretrained.")
        if not any(any(folder.glob(pattern)) for pattern in _WEIGHT_FILES):
            raise UserError(f"The model folder {source} has no weights.", "Expected *.safetensors or pytorch_model*.bin in it.")
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars of the libraries that unpack quantized weights
            _refuse_encoder_decoder(source)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **_placed(source))
    except SafetensorError as error:
        raise UserError(f"The weights in {source} are damaged or cut short ({error}).", "Copy or download the model again.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"The model {source} cannot be opened: {str(error).splitlines()[0]}") from error
    return model.eval()  # type: ignore[no-any-return]


def _refuse_encoder_decoder(source: str) -> None:
    """Half of such a model would open as a causal one, without what it was trained to read."""
    config = AutoConfig.from_pretrained(source)
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"The model {source} ({config.model_type}) is an encoder with a decoder: it continues another text than it reads.",
            "Give a causal language model.",
        )


def _placed(source: str) -> dict[str, Any]:
    """Packed weights are unpacked where they are to stay."""
    config = Path(source) / "config.json"
    packed = config.is_file() and "quantization_config" in json.loads(config.read_text(encoding="utf-8"))
    return {"device_map": str(device())} if packed else {}


def open_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id, with a padding token.

    Raises:
        UserError: there is none.
    """
    _check_source(source, "The tokenizer")
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(f"The folder {source} has no tokenizer.", "Copy tokenizer.json (or tokenizer.model) of the same model into it.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(f"The tokenizer of {source} cannot be opened: {str(error).splitlines()[0]}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write weights, configuration and tokenizer as one folder that ``open_model`` and every other loader opens."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def context_length(model: PreTrainedModel) -> int:
    """Longest sequence that the model takes, in tokens."""
    return longest_text(model)


class Matrix(NamedTuple):
    """One weight of a model. ``transposed`` where the module keeps [in, out] (GPT-2's Conv1D)."""

    name: str
    kind: str
    parameter: nn.Parameter
    transposed: bool

    def read(self) -> Tensor:
        """[..., out, in], sharing memory with the parameter."""
        data = self.parameter.data
        return data.T if self.transposed else data

    def write(self, weight: Tensor) -> None:
        """Replace the parameter's values by [..., out, in]."""
        self.parameter.data.copy_(weight.T if self.transposed else weight)


def matrices(model: nn.Module, skip: Collection[str] = ("lm_head", "embedding", "norm")) -> Iterator[Matrix]:
    """The weights that a quantizer may touch, each tied weight once.

    ``kind`` is lm_head, embedding, norm (all one-dimensional weights), router, experts ([experts, out, in]) or linear.
    A word of ``skip`` leaves out a kind, or every weight whose name contains it. Biases are never listed.
    """
    modules = dict(model.named_modules())
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if getter else None
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        owner = modules[path]
        if "bias" in leaf or not parameter.is_floating_point():
            continue
        kind = _kind(name, owner, owner is head, parameter.ndim)
        if kind not in skip and not any(word in name for word in skip):
            yield Matrix(name, kind, parameter, isinstance(owner, Conv1D))


def _kind(name: str, owner: nn.Module, is_head: bool, ndim: int) -> str:
    if is_head:
        return "lm_head"
    if isinstance(owner, nn.Embedding):
        return "embedding"
    if ndim == 1:
        return "norm"
    if ndim == 3:
        return "experts"
    return "router" if re.search(r"(router|\bgate)\.weight$", name) else "linear"
