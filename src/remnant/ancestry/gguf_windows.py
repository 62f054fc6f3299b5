"""Windows of the matrices of a GGUF file, under the names and in the order of transformers."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remnant.errors import UserError, first_line
from remnant.packing import gguf_library
from remnant.weightfiles import COPY_AGAIN

Array = NDArray[np.float32]
Rows = NDArray[np.int64]
# Architectures of llama.cpp whose layers have the parts below; in some the rows of queries and keys
# stand in pairs. Source: gguf, tensor_mapping.py; llama.cpp, conversion of each family.
PAIRED = {"llama"}
KNOWN = PAIRED | {"qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "smollm3", "olmo2"}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
PARTS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_qkv": "self_attn.qkv_proj",
}  # fmt: skip


def windows(
    file: Path, rows_of: Callable[[int], Rows], columns: int
) -> dict[str, tuple[tuple[int, int], Array]]:
    """Shape [out, in] and window of every matrix of the layers, as transformers keeps it.

    Raises:
        UserError: gguf is not installed, the file is damaged, or of an architecture that is not
            known here.
    """
    library = gguf_library()
    try:
        reader = library.GGUFReader(file)
        kind = str(reader.fields["general.architecture"].contents())
        if kind not in KNOWN:
            raise UserError(f"The weights of '{kind}' in {file} are not read here.")
        return {
            f"model.layers.{place[1]}.{PARTS[place[2]]}.weight": _window(
                tensor, _order(reader, kind, place[2]), rows_of, columns
            )
            for tensor in reader.tensors
            if (place := _LAYER.fullmatch(tensor.name)) and place[2] in PARTS
        }
    except (ValueError, KeyError, IndexError, TypeError, OSError, NotImplementedError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}).", COPY_AGAIN) from error


def _order(reader: Any, kind: str, part: str) -> int | None:
    """How many heads have their rows in pairs; None where they lie as in transformers."""
    name = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(part)
    if name is None or kind not in PAIRED:
        return None
    field = reader.fields.get(f"{kind}.attention.{name}")
    return int((field or reader.fields[f"{kind}.attention.head_count"]).contents())


def _window(
    tensor: Any, heads: int | None, rows_of: Callable[[int], Rows], columns: int
) -> tuple[tuple[int, int], Array]:
    inputs, out = (int(n) for n in tensor.shape)
    rows = rows_of(out)
    if heads is not None:
        if heads < 1 or out % (2 * heads):
            raise ValueError(f"{out} rows of {tensor.name} are not of {heads} heads")
        rows = paired(rows, heads, out)
    decoded = gguf_library().quants.dequantize(np.array(tensor.data[rows]), tensor.tensor_type)
    return (out, inputs), np.ascontiguousarray(decoded[:, :columns], np.float32)


def paired(rows: Rows, heads: int, out: int) -> Rows:
    """Where the rows of halves (transformers) stand among the pairs of llama.cpp.

    >>> paired(np.arange(4), 1, 4).tolist()
    [0, 2, 1, 3]
    """
    size = out // heads
    head, inside = rows // size, rows % size
    half, place = inside // (size // 2), inside % (size // 2)
    return np.asarray(head * size + 2 * place + half)
