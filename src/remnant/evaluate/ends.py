"""Where an answer ends: all tokens that a model's own files name as its end."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from transformers import PreTrainedTokenizerBase

from remnant.model.door import read_json

FILES = ("generation_config.json", "config.json")


def end_ids(tokenizer: PreTrainedTokenizerBase, *configs: Any) -> frozenset[int]:
    """The ids at which an answer ends: the tokenizer's end token, and what configurations name
    beside it.

    Args:
        tokenizer: the model's.
        configs: a model's configuration and generation configuration, as objects or as what is in
            their files; chat models name several ids there.

    An id of a configuration counts only where the tokenizer knows it as a special or added token:
    architectures have numbers of their own for it (2 in Llama), which other tokenizers use for
    words.
    """
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    own = {tokenizer.eos_token_id} - {None}
    return frozenset(own | (set(named_ends(configs)) & special))


def named_ends(configs: Iterable[Any]) -> list[int]:
    """The end tokens that configurations name, each once, whatever they are."""
    found: list[int] = []
    for config in configs:
        for part in (config, _of(config, "text_config")):
            named = _of(part, "eos_token_id")
            found += [
                i
                for i in (named if isinstance(named, list | tuple) else [named])
                if isinstance(i, int)
            ]
    return list(dict.fromkeys(found))


def _of(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def configs_of(source: str) -> list[Mapping[str, JsonValue]]:
    """The configurations in a model's folder, for engines that open it themselves.

    None for a hub id.
    """
    return [read_json(Path(source) / name) for name in FILES if (Path(source) / name).is_file()]


def before_end(written: Sequence[int], ends: frozenset[int]) -> list[int]:
    """What stands before the first end token."""
    return list(
        written[: next((n for n, token in enumerate(written) if token in ends), len(written))]
    )
