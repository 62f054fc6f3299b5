"""Packed weights: what a folder or a file says that they were packed by, what opens them, and what
decodes them. No torch.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from remnant.errors import UserError
from remnant.installed import is_there

BEFORE = "Give the model from before it was packed."
SUFFIX = ".gguf"
# Sizes of a model in config.json and in a GGUF file, there behind the name of the architecture.
_GGUF_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "vocab_size": "vocab_size",
}
_BY_TRANSFORMERS = "remnant.runtimes.decoding:opened"


class Packing(NamedTuple):
    """One way to keep weights in few bits.

    Attributes:
        key: its name as quant_method in config.json; "gguf" for llama.cpp's files.
        name: for people.
        measured: what computes the answers that are measured; empty where nothing here does.
        needs: modules of the libraries that do, by what installs them.
        decoder: "module:function" that makes a dense model of it; empty where there is none.
        why: why it is not measured, as part of a sentence.
    """

    key: str
    name: str
    measured: str = ""
    needs: Mapping[str, str] = {}
    decoder: str = ""
    why: str = "it is not read here"


_ALL = (
    Packing(
        "bitsandbytes",
        "bitsandbytes",
        "the library's kernels",
        {"bitsandbytes": "-e '.[bitsandbytes]'"},
        "remnant.runtimes.bnb:decoded",
    ),
    Packing(
        "compressed-tensors",
        "compressed-tensors",
        "decoded weights; activations are rounded where the scheme says so",
        {"compressed_tensors": "-e '.[oneshot]'"},
        "remnant.runtimes.decoding:compressed",
    ),
    Packing(
        "torchao",
        "torchao",
        "the library's kernels",
        {"torchao": "-e '.[torchao]'"},
        "remnant.runtimes.torchao:decoded",
    ),
    Packing("fp8", "FP8 in blocks", "decoded weights", decoder=_BY_TRANSFORMERS),
    Packing("mxfp4", "MXFP4", "decoded weights", decoder=_BY_TRANSFORMERS),
    Packing(
        "gptq",
        "GPTQ",
        "the library's kernels",
        {"optimum": "optimum", "gptqmodel": "gptqmodel"},
        "remnant.runtimes.decoding:gptq",
    ),
    Packing(
        "awq",
        "AWQ",
        "the library's kernels",
        {"gptqmodel": "gptqmodel"},
        "remnant.runtimes.decoding:awq",
    ),
    Packing(
        "gguf",
        "GGUF",
        "llama.cpp",
        {"llama_cpp": "-e '.[llamacpp]'"},
        "remnant.runtimes.decoding:gguf",
    ),
    Packing("hqq", "HQQ", why="transformers 5 does not open its files"),
    Packing("auto-round", "AutoRound", why="its loader may end the whole process"),
)
# What is not in the table is refused by the name that it gives itself.
PACKINGS: Mapping[str, Packing] = {found.key: found for found in _ALL}
# transformers decodes these while it opens them, on every machine alike, if it is told to.
DECODED_AT_OPENING = ("fp8", "mxfp4")


def packing_of(config: Mapping[str, Any]) -> Packing | None:
    """What a model's configuration says that its weights were packed by; None for plain ones.

    >>> packing_of({"quantization_config": {"quant_method": "gptq"}}).name
    'GPTQ'
    >>> packing_of({"quantization_config": {"quant_method": "new"}}).measured
    ''
    """
    settings = config.get("quantization_config") or config.get("compression_config")
    if settings is None:
        return None
    given = settings.get("quant_method") if isinstance(settings, Mapping) else None
    key = str(given or "a quantizer without a name")[:40]
    return PACKINGS.get(key, Packing(key, key))


def packing_in(path: Path) -> Packing | None:
    """The same of a folder, or a file, on the disk; None for what is neither packed nor there."""
    if gguf_in(path):
        return PACKINGS["gguf"]
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # told by whoever opens it
    return packing_of(found) if isinstance(found, dict) else None


def gguf_library() -> ModuleType:
    """The package that reads and writes llama.cpp's files.

    Raises:
        UserError: it is not installed.
    """
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise UserError(
            "GGUF needs the package gguf, which is not installed.",
            "Install it in Remnant's folder with: pip install -e '.[gguf]'",
        ) from error
    library: ModuleType = gguf
    return library


def gguf_in(path: Path) -> Path | None:
    """The GGUF file that a path names: itself, or the one in a folder without other weights.

    Raises:
        UserError: the folder holds several, and nobody said which.
    """
    if path.is_file():
        return path if path.suffix.lower() == SUFFIX else None
    if not path.is_dir() or any(path.glob("*.safetensors")) or any(path.glob("*.bin")):
        return None
    found = sorted(path.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        names = ", ".join(f.name for f in found[:5])
        raise UserError(f"{path} holds {len(found)} GGUF files ({names}).", "Name one of them.")
    return found[0] if found else None


@cache
def gguf_config(file: Path) -> Mapping[str, object]:
    """What a GGUF file says of its model's sizes, by the names of a config.json; weights are not
    read.

    Raises:
        UserError: the package gguf is missing.
    """
    reader = gguf_library().GGUFReader(file)
    kind = str(reader.fields["general.architecture"].contents())
    found: dict[str, object] = {
        name: reader.fields[f"{kind}.{own}"].contents()
        for name, own in _GGUF_SIZES.items()
        if f"{kind}.{own}" in reader.fields
    }
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    rows = len(reader.fields["tokenizer.ggml.tokens"].data)
    return {"model_type": kind, "vocab_size": rows, "tie_word_embeddings": tied} | found


def check_measured(packing: Packing, shown: str) -> None:
    """Refuse a packing whose answers nothing here computes.

    Raises:
        UserError: by its name, with what to install or to give instead.
    """
    lacking = [module for module in packing.needs if not is_there(module)]
    if packing.measured and not lacking:
        return
    if not packing.measured:
        raise UserError(f"{_is_packed(packing, shown)}, and {packing.why}.", BEFORE)
    install = " ".join(packing.needs[module] for module in lacking)
    raise UserError(
        f"{_is_packed(packing, shown)}, which {' and '.join(lacking)} opens, not installed here.",
        f"pip install {install}, or pass --dequantize to measure its decoded weights.",
    )


def check_decoded(packing: Packing, shown: str) -> None:
    """Refuse a packing that nothing here decodes.

    Raises:
        UserError: by its name.
    """
    if not packing.decoder:
        raise UserError(f"{_is_packed(packing, shown)}, and nothing here decodes that.", BEFORE)


def refusal(packing: Packing, shown: str, fault: str) -> UserError:
    """What is said of packed weights where dense ones are wanted; ``fault``: what would happen."""
    remedy = (
        "Pass --dequantize to decode it first, or give the model from before."
        if packing.decoder
        else BEFORE
    )
    return UserError(f"{_is_packed(packing, shown)}: {fault}.", remedy)


def _is_packed(packing: Packing, shown: str) -> str:
    return f"The model {shown} is packed as {packing.name}"
