"""Open and save checkpoints in Hugging Face form, and name the weight matrices inside a model."""

import contextlib
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from remnant.errors import UserError
from remnant.functional.touched import KINDS, LEFT_ALONE, kind_of
from remnant.model import nf4
from remnant.model.door import check_codes, check_folder, check_size, packing_at
from remnant.model.shardfiles import save_rows
from remnant.model.sizes import longest_text
from remnant.model.whole import check_finite, check_tied, check_whole
from remnant.packing import DECODED_AT_OPENING, PACKINGS, check_measured, gguf_in
from remnant.ranks import first, in_shards, share_here
from remnant.remotecode import runs_code

BY_LLAMA = "Measure it, or pass --dequantize to decode it first."
# Dtypes that models compute in, as safetensors and pickles name them.
FLOATS = {
    "BF16": torch.bfloat16, "bfloat16": torch.bfloat16,
    "F16": torch.float16, "float16": torch.float16,
    "F32": torch.float32, "float32": torch.float32,
}  # fmt: skip
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def on_device(model: PreTrainedModel, device: str) -> PreTrainedModel:
    """The model, moved to a device if it is not there."""
    moved: PreTrainedModel = _moved(model, device)
    return moved


def in_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model with all of its floats cast to a dtype, in place; one with packed layers as it is,
    since it was opened in the dtype in which they compute.
    """
    if nf4.packed(model):
        return model
    cast: PreTrainedModel = _moved(model, dtype)
    return cast


def _moved(model: nn.Module, to: Any) -> Any:
    """What ``model.to`` does; transformers wraps it in a decorator that hides its signature."""
    return model.to(to)


def _check_source(source: str, what: str) -> None:
    path = Path(source)
    if path.is_dir() or (_HUB_ID.fullmatch(source) and not path.exists()):
        return
    if path.is_file() and not gguf_in(path):
        raise UserError(f"{what} '{source}' is a file.", "Give the folder that it is in.")
    if path.is_file():
        return
    raise UserError(
        f"{what} '{source}' is neither a folder nor a hub id.",
        "Give a folder in Hugging Face form or owner/name.",
    )


def open_model(
    source: str,
    device: str = "cpu",
    *,
    dtype: torch.dtype = torch.float32,
    divide: Callable[[PreTrainedModel], None] | None = None,
    pack: bool = False,
) -> PreTrainedModel:
    """A causal language model in evaluation mode, from a folder or a hub id, all of it and finite.

    Args:
        source: the folder or id.
        device: where it goes, once it was seen to be whole.
        dtype: of its weights.
        divide: called with the model before its weights are read; of parameters that it puts into
            shards only this rank's rows are read. Versions of transformers that cannot do this do
            not call it.
        pack: its linear layers into NF4, one after the other as they are read.

    Raises:
        UserError: no such folder, an adapter, no configuration or one that cannot be built, no
            weights, more than one set of them, damaged, missing, surplus, wrongly shaped or not
            finite weights, another head than a tied one, hub out of reach.
    """
    _check_source(source, "The model")
    folder = Path(source)
    if gguf_in(folder):
        check_measured(PACKINGS["gguf"], source)
        raise UserError(f"{source} is a GGUF file, which llama.cpp opens.", BY_LLAMA)
    stored = check_folder(folder) if folder.is_dir() else None
    with faults_of(source, "The model"):
        packed = packing_at(source)
        if packed:
            check_measured(packed, source)
        if packed and stored:
            check_codes(stored, packed, source)
        # Nobody is asked on the way whether code that comes with a model may run.
        own_code = runs_code(source)
        config = AutoConfig.from_pretrained(source, trust_remote_code=own_code)
        _refuse_encoder_decoder(config, source)
        if stored and not packed:
            width = nf4.BYTES if pack else dtype.itemsize * (share_here() if divide else 1)
            check_size(config, stored, source, own_code, width)
        more: dict[str, Any] = {"quantization_config": nf4.settings(dtype)} if pack else {}
        if packed or pack:
            # Packed weights are unpacked where they are to stay.
            more["device_map"] = device
        if packed and packed.key in DECODED_AT_OPENING:
            config.quantization_config["dequantize"] = True
            more["config"] = config
        # Without the progress bars of the libraries that unpack quantized weights.
        with contextlib.redirect_stderr(io.StringIO()), _before_reading(divide):
            opened: Any = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                trust_remote_code=own_code,
                ignore_mismatched_sizes=True,  # so that they are named below
                output_loading_info=True,
                **more,
            )
    model, info = opened
    _answers_by_name(model)
    check_whole(info, source)
    check_finite(model, source)
    if not (packed or pack or divide):
        check_tied(model, source)
    if pack:
        nf4.check_packed(model, source)
        nf4.let_files_go(model)
    if packed and packed.key in ("compressed-tensors", *DECODED_AT_OPENING):
        _unpack(model, dtype)
    return on_device(model.eval(), device)


def dtype_of(name: str | None, source: Path) -> torch.dtype:
    """The dtype in which a model is opened: by its name in a measurement's settings.

    Args:
        name: "bf16"; "stored" for that of most numbers in the files of a folder; None for float32.
        source: the folder, or an id of the hub.

    >>> dtype_of(None, Path("anywhere"))
    torch.float32
    """
    if name is None:
        return torch.float32
    if name == "bf16":
        return torch.bfloat16
    if not source.is_dir():
        found = AutoConfig.from_pretrained(str(source)).dtype
        return found if found in FLOATS.values() else torch.float32
    stored, numbers = check_folder(source), Counter[str]()
    for weight, kind in stored.dtypes.items():
        numbers[kind] += torch.Size(stored.shapes[weight]).numel()
    return FLOATS.get(numbers.most_common(1)[0][0], torch.float32)


@contextlib.contextmanager
def _before_reading(divide: Callable[[PreTrainedModel], None] | None) -> Iterator[None]:
    """Within, transformers calls a function with every model that it has built and not yet filled.

    It does so with its own for a ``distributed_config``, which knows some architectures only.
    """
    place = "maybe_distribute_model"
    if divide is None or not hasattr(PreTrainedModel, place):
        yield
        return
    found = divide

    def divided(model: PreTrainedModel, *given: Any) -> PreTrainedModel:
        # A weight under two names is to be one shard.
        model.tie_weights()
        found(model)
        return model

    setattr(PreTrainedModel, place, staticmethod(divided))
    try:
        yield
    finally:
        delattr(PreTrainedModel, place)


@torch.no_grad()
def _unpack(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Have compressed-tensors unpack now what it would unpack in the first forward pass.

    Its 4-bit floats, and others that are decoded at opening, come out in bfloat16, whatever was
    asked for, and fit no other layer then.
    """
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if hasattr(quantizer, "compressor") and (
        quantizer.quantization_config.is_quantization_compressed
    ):
        with contextlib.redirect_stderr(io.StringIO()):
            quantizer.compressor.decompress_model(model=model)
    for parameter in model.parameters():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.to(dtype)


@contextlib.contextmanager
def faults_of(source: str, what: str) -> Iterator[None]:
    """Whatever a library says of what it cannot open, in one sentence.

    Libraries raise errors of any kind on broken files.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError, KeyboardInterrupt):
        raise
    except SafetensorError as error:
        raise UserError(
            f"The weights in {source} are damaged or cut short ({error}).",
            "Copy or download the model again.",
        ) from error
    except Exception as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        kind = (
            "" if isinstance(error, OSError | ValueError) and said else f"{type(error).__name__} "
        )
        raise UserError(f"{what} {source} cannot be opened: {kind}{said[:300]}") from error


def _refuse_encoder_decoder(config: Any, source: str) -> None:
    """Half of such a model would open as a causal one, without what it was trained to read."""
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            (
                f"The model {source} ({config.model_type}) is an encoder with a decoder: it "
                "continues another text than it reads."
            ),
            "Give a causal language model.",
        )


def _answers_by_name(model: PreTrainedModel) -> None:
    """Whatever the configuration says of tuples."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.config.return_dict = True


def open_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id, with a padding token; of a GGUF file the one beside it.

    Raises:
        UserError: there is none, or it has no special token that could stand for padding.
    """
    _check_source(source, "The tokenizer")
    folder = Path(source)
    if folder.is_file():
        # What is made from a GGUF file alone cuts text otherwise and adds no first token.
        folder, source = folder.parent, str(folder.parent)
    if folder.is_dir() and not any(
        (folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")
    ):
        raise UserError(
            f"The folder {source} has no tokenizer.",
            "Copy tokenizer.json (or tokenizer.model) of the same model into it.",
        )
    with faults_of(source, "The tokenizer of"):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=runs_code(source))
    if tokenizer.pad_token_id is None:
        # What stands in padding is neither attended nor counted; only a special token is left out
        # of texts that are decoded.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"The tokenizer of {source} has no token for padding.",
            "Name a pad_token in its tokenizer_config.json.",
        )
    return tokenizer


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write weights, configuration and tokenizer as one folder that ``open_model`` and every other
    loader opens; of a model in shards by all ranks at once.
    """
    if in_shards(model.parameters()):
        save_rows(model, out)
    else:
        model.save_pretrained(out)
    if first():
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


def matrices(
    model: nn.Module, skip: Collection[str] = LEFT_ALONE, *, biases: bool = False
) -> Iterator[Matrix]:
    """The weights that a quantizer may touch, each tied weight once.

    ``kind`` is as in ``kind_of``, where the model knows its own head and embeddings whatever they
    are called. A word of ``skip`` leaves out a kind, any other word every weight whose name
    contains it. Biases are listed only where they are asked for.
    """
    words = [word for word in skip if word not in KINDS]
    modules = dict(model.named_modules())
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if getter else None
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        owner = modules[path]
        if ("bias" in leaf and not biases) or not parameter.is_floating_point():
            continue
        known = (
            "lm_head" if owner is head else "embedding" if isinstance(owner, nn.Embedding) else None
        )
        kind = known or kind_of(name, tuple(parameter.shape))
        if kind not in skip and not any(word in name for word in words):
            yield Matrix(name, kind, parameter, isinstance(owner, Conv1D) and parameter.ndim == 2)
