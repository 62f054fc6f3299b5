"""GGUF files by llama.cpp: written from a model, quantized by its own code, read back and run."""

import ctypes
import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.formats.llamacpp import GGUF, TYPES
from remnant.functional.quantized import Quantized
from remnant.model.data import prompt_ids
from remnant.packing import gguf_library
from remnant.runtimes.families import family
from remnant.runtimes.order import Order, Saved

INSTALL = f"{GGUF.install} (compiles llama.cpp)"


def gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, type: str = "Q4_K_M"
) -> dict[str, Quantized]:
    """Quantize a whole model as llama.cpp does, embeddings and output head included, and take the
    decoded weights back.

    Args:
        model: changed in place to its dense quantized copy.
        tokenizer: the model's.
        type: one of ``formats.llamacpp.TYPES``.

    Returns:
        For every quantized weight its decoded values; codes are not unpacked, ``scale`` is the mean
            step of the weight.

    Raises:
        UserError: the libraries are missing, or llama.cpp's form of this architecture is not known
            here.
    """
    library = gguf_library()
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder) / "F32.gguf", Path(folder) / "packed.gguf"
        write(model, tokenizer, plain)
        quantize_file(plain, packed, type)
        decoded = read(model, packed)
        plain_types = {int(library.GGMLQuantizationType.F32), int(library.GGMLQuantizationType.F16)}
        quantized = {name for name, (kind, _) in decoded.items() if kind not in plain_types}
        model.load_state_dict({name: weight for name, (_, weight) in decoded.items()}, strict=False)
    return {
        name: Quantized(
            torch.empty(0, dtype=torch.int8), _mean_step(decoded[name][1]), None, decoded[name][1]
        )
        for name in sorted(quantized)
    }


def _mean_step(weight: torch.Tensor) -> torch.Tensor:
    """[1, 1] the mean distance of neighbouring values within runs of 32."""
    ordered = weight.reshape(-1, 32).sort(-1).values.diff(dim=-1)
    return (ordered.sum() / (ordered > 0).sum().clamp(min=1)).view(1, 1)


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write a model as a float32 GGUF file with its tokenizer.

    Raises:
        UserError: the architecture or the tokenizer is not known here, or the library is missing.
    """
    library, config = gguf_library(), model.config
    form = family(config)
    writer = library.GGUFWriter(path, form.name)
    form.state(writer, config)
    _add_tokenizer(writer, library, tokenizer, config.vocab_size)
    names = _names(model)
    for name, parameter in model.state_dict().items():
        if name in names:
            writer.add_tensor(names[name], form.keep(parameter.float().numpy(), name, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# Text that a tokenizer may cut in more than one way.
PROBES = (
    "The quick brown fox, it jumps over 12 lazy dogs.",
    "It's 1984; she'll pay $3.50!",
    "  two  spaces\nand a line",
    "Zürich déjà vu",
)


def save(order: Order, out: Path) -> Saved:
    """Write one GGUF file, with the tokenizer's files beside it.

    Returns:
        Facts: ``runtime``; ``tokenizer``: whether llama.cpp cuts some difficult texts into the same
            tokens. Where it does not, text must
        be given to it as token ids.

    Raises:
        UserError: as ``write`` and ``quantize_file``.
    """
    file = out / f"model-{order.params['type']}.gguf"
    with tempfile.TemporaryDirectory(dir=out) as folder:
        write(order.model, order.tokenizer, Path(folder) / "F32.gguf")
        quantize_file(Path(folder) / "F32.gguf", file, order.params["type"])
    order.tokenizer.save_pretrained(out)
    runtime = Runtime(file)
    same = sum(runtime.tokens(text) == prompt_ids(order.tokenizer, text) for text in PROBES)
    alike = (
        "same tokens"
        if same == len(PROBES)
        else f"llama.cpp cuts {len(PROBES) - same} of {len(PROBES)} texts otherwise; give it ids"
    )
    return Saved("llama.cpp", None, alike)


def answers(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """[B, T, V] logits of the file of a deployed model by llama.cpp."""
    runtime = Runtime(next(folder.glob("*.gguf")))
    return torch.stack([torch.from_numpy(runtime.logits(row.tolist())) for row in ids])


def quantize_file(source: Path, out: Path, type: str) -> None:
    """Quantize a GGUF file with llama.cpp's own code.

    Raises:
        UserError: no such type, the library is missing, or it reports a failure.
    """
    if type not in TYPES:
        raise UserError(
            f"llama.cpp's type '{type}' is not known here.", f"Known: {', '.join(TYPES)}."
        )
    library = _llama()
    settings = library.llama_model_quantize_default_params()
    settings.ftype = getattr(library, f"LLAMA_FTYPE_MOSTLY_{type}")
    settings.nthread = torch.get_num_threads()
    if (
        library.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(settings))
        != 0
    ):
        raise UserError(
            f"llama.cpp could not quantize to {type}.",
            "Rows must be multiples of 256 for K-quants; Q8_0 and Q4_0 want 32.",
        )


def read(model: PreTrainedModel, path: Path) -> dict[str, tuple[int, torch.Tensor]]:
    """The matrices of a GGUF file under the names of the model: type and decoded float32 values.

    Raises:
        UserError: the library is missing or the file is of another model.
    """
    library, form = gguf_library(), family(model.config)
    back = {theirs: ours for ours, theirs in _names(model).items()}
    found = {}
    for tensor in library.GGUFReader(path).tensors:
        if tensor.name not in back:
            raise UserError(
                f"{path} has a tensor {tensor.name} that the model has not.",
                "Give the model that the file was made from.",
            )
        if len(tensor.shape) < 2:
            continue
        values = library.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = values.reshape(tuple(int(n) for n in reversed(tensor.shape)))
        values = form.give(values, back[tensor.name], model.config)
        found[back[tensor.name]] = (
            int(tensor.tensor_type),
            torch.from_numpy(np.ascontiguousarray(values)),
        )
    return found


class Runtime:
    """A GGUF file in llama.cpp.

    Text goes in and out as token ids; ``context``: how many at most, 0 for what the file says.

    Raises:
        UserError: the library is missing or cannot open the file.
    """

    def __init__(self, path: Path, context: int = 512) -> None:
        library = _llama()
        # A worker of a sweep has its share of the cores; so has what it calls.
        threads = dict.fromkeys(("n_threads", "n_threads_batch"), torch.get_num_threads())
        try:
            self._model = library.Llama(
                str(path), n_ctx=context, **threads, logits_all=True, verbose=False
            )
        except (ValueError, AssertionError) as error:
            raise UserError(
                f"llama.cpp cannot open {path}: {error}.", "Make the file again."
            ) from error
        self.context = int(self._model.n_ctx())

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """[T, vocabulary] of one text."""
        self._model.reset()
        self._model.eval(ids)
        return np.array(self._model.scores[: len(ids)], np.float32)

    def follow(self, ids: list[int]) -> NDArray[np.float32]:
        """[vocabulary] behind the last of some tokens.

        What they begin with of the tokens before is not computed again.
        """
        known = self._model.input_ids[: self._model.n_tokens].tolist()
        same = next(
            (n for n, (a, b) in enumerate(zip(ids, known, strict=False)) if a != b),
            min(len(ids), len(known)),
        )
        self._model.n_tokens = min(same, len(ids) - 1)
        self._model.eval(ids[self._model.n_tokens :])
        return np.array(self._model.scores[self._model.n_tokens - 1], np.float32)

    def greedy(self, ids: list[int], count: int, stop: int | None = None) -> list[int]:
        """The most likely continuation, at most so many tokens, without the one that stops."""
        found: list[int] = []
        while len(found) < count and (token := int(np.argmax(self.follow([*ids, *found])))) != stop:
            found.append(token)
        return found

    def is_end(self, token: int) -> bool:
        """Whether the file names a token as an end of what is written."""
        library = _llama()
        return bool(
            library.llama_vocab_is_eog(library.llama_model_get_vocab(self._model.model), token)
        )

    def tokens(self, text: str) -> list[int]:
        """The ids of a text as llama.cpp cuts it, the first token of every text included."""
        return list(self._model.tokenize(text.encode(), add_bos=True, special=False))


def _names(model: PreTrainedModel) -> dict[str, str]:
    """Names of transformers -> names in the file. A tied head is left out, as in llama.cpp."""
    library = gguf_library()
    arch = {v: k for k, v in library.MODEL_ARCH_NAMES.items()}[family(model.config).name]
    known = library.get_tensor_name_map(arch, model.config.num_hidden_layers)
    tied = bool(model.config.tie_word_embeddings)
    found = {}
    for name in model.state_dict():
        if tied and name == "lm_head.weight":
            continue
        theirs = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise UserError(
                f"The weight {name} has no place in a GGUF file of this architecture.",
                "Use llama.cpp's own converter.",
            )
        found[name] = theirs
    return found


def _add_tokenizer(
    writer: Any, library: Any, tokenizer: PreTrainedTokenizerBase, vocabulary: int
) -> None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    inner = json.loads(backend.to_str())["model"] if backend else {}
    if inner.get("type") != "BPE" or inner.get("byte_fallback"):
        raise UserError(
            "Only byte-level BPE tokenizers are written to GGUF here.",
            "Use llama.cpp's own converter for this model.",
        )
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids)
    kinds = library.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([by_id.get(i, f"[PAD{i}]") for i in range(vocabulary)])
    writer.add_token_types(
        [
            kinds.CONTROL if i in special else kinds.NORMAL if i in by_id else kinds.UNUSED
            for i in range(vocabulary)
        ]
    )
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in inner["merges"]])
    for add, value in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if value is not None:
            add(value)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])


def decoded_blocks(weight: Tensor, kind: str) -> Tensor:
    """A weight as the package gguf rounds and decodes it.

    Args:
        weight: [..., rows, columns]; whole blocks of columns.
        kind: GGUF's name of the type, such as "Q4_0"; one that the package can make.

    Raises:
        UserError: the package is missing.
    """
    library = gguf_library()
    of = getattr(library.GGMLQuantizationType, kind)
    packed = library.quants.quantize(weight.float().contiguous().cpu().numpy(), of)
    return torch.from_numpy(library.quants.dequantize(packed, of)).view(weight.shape)


@functools.cache
def _llama() -> Any:
    try:
        import llama_cpp as library
    except ImportError as error:
        raise UserError("This format needs llama.cpp, which is not installed.", INSTALL) from error
    library.llama_log_set(_silent(library), ctypes.c_void_p(0))
    return library


@functools.cache
def _silent(library: Any) -> Any:
    """A log that keeps nothing; cached, since the C code goes on calling it."""
    return library.llama_log_callback(lambda level, text, data: None)
