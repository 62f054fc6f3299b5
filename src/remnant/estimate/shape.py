"""How large a model is, by its configuration alone. No torch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from remnant.errors import UserError

# Models whose blocks are built as Llama's: two norms by root mean square, four projections of
# attention, three of a gated MLP. Small additions (norms and biases of queries) are left out: less
# than a thousandth of the weights.
LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "granite", "phi3")


class Shape(NamedTuple):
    """The sizes of a model of Llama's kind. ``head``: numbers of a query of one attention head.
    ``tied``: the output head is the table of embeddings. ``saved``: bytes of a weight in its files.
    """

    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    tied: bool = False
    saved: int = 4

    @property
    def query(self) -> int:
        """Numbers of all queries of a token."""
        return self.heads * self.head

    @property
    def table(self) -> int:
        """Weights of the embeddings, and of an output head."""
        return self.vocabulary * self.width

    @property
    def block(self) -> int:
        """Weights of the linear layers of one block."""
        return sum(a * b for a, b in self.matrices().values()) // self.layers

    @property
    def weights(self) -> int:
        """All of them.

        >>> KNOWN["8B"].weights
        8030261248
        """
        norms = self.width * (2 * self.layers + 1)
        return self.layers * self.block + self.tables * self.table + norms

    @property
    def tables(self) -> int:
        """How many tables of the vocabulary there are: one where they are tied, else two."""
        return 1 if self.tied else 2

    def matrices(self) -> dict[str, tuple[int, int]]:
        """The linear layers of all blocks: name -> (numbers that go in, that come out)."""
        kept = self.kv_heads * self.head
        block = {
            "self_attn.q_proj": (self.width, self.query),
            "self_attn.k_proj": (self.width, kept),
            "self_attn.v_proj": (self.width, kept),
            "self_attn.o_proj": (self.query, self.width),
            "mlp.gate_proj": (self.width, self.inner),
            "mlp.up_proj": (self.width, self.inner),
            "mlp.down_proj": (self.inner, self.width),
        }
        found: dict[str, tuple[int, int]] = {}
        for layer in range(self.layers):
            found |= {f"model.layers.{layer}.{name}": size for name, size in block.items()}
        return found


# Source: config.json of meta-llama/Llama-3.2-1B, Llama-3.1-8B and Llama-3.1-70B.
KNOWN: Mapping[str, Shape] = {
    "1B": Shape(128256, 2048, 8192, 16, 32, 8, 64, tied=True, saved=2),
    "8B": Shape(128256, 4096, 14336, 32, 32, 8, 128, saved=2),
    "70B": Shape(128256, 8192, 28672, 80, 64, 8, 128, saved=2),
}


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape that a config.json tells.

    Raises:
        UserError: it is of a model whose blocks are built otherwise.

    >>> llama = dict(model_type="llama", vocab_size=9, hidden_size=8, intermediate_size=16)
    >>> shape_of(llama | dict(num_hidden_layers=1, num_attention_heads=2)).head
    4
    """
    kind = config.get("model_type")
    if kind not in LIKE_LLAMA:
        raise UserError(
            f"What a model of the kind '{kind}' needs cannot be told from its configuration.",
            f"Run it; an estimate knows {', '.join(LIKE_LLAMA)}.",
        )
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    return Shape(
        int(config["vocab_size"]),
        width,
        int(config["intermediate_size"]),
        int(config["num_hidden_layers"]),
        heads,
        int(config.get("num_key_value_heads") or heads),
        int(config.get("head_dim") or width // heads),
        bool(config.get("tie_word_embeddings", False)),
        2 if str(config.get("dtype") or config.get("torch_dtype")).endswith("float16") else 4,
    )
