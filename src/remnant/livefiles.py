"""Live objects of the caller's as files of a store, named by their content, so that they go the way
that every file goes.
"""

import importlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from remnant.durable import digest_of, write_text
from remnant.flow.digests import digest_path
from remnant.flow.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Texts = str | Path | Sequence[str] | Sequence[Path] | Sequence[Mapping[str, str]]


def text_files(store: Store, texts: Texts) -> tuple[str, ...]:
    """Texts as files: paths as they are, live texts in a file of the store."""
    if isinstance(texts, str | Path):
        return (str(texts),)
    if all(isinstance(text, Path) for text in texts):
        return tuple(map(str, texts))
    rows = [dict(text) if isinstance(text, Mapping) else text for text in texts]
    path = store.root / "given" / f"{digest_of(rows)[:16]}.json"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps(rows, ensure_ascii=False))
    return (str(path),)


def saved(store: Store, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> Path:
    """The folder of a live model, named by its content."""
    scratch = store.root / "given" / "model"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    importlib.import_module("remnant.model.saving").save(model, tokenizer, scratch)
    final = scratch.with_name(digest_path(scratch)[:16])
    if final.exists():
        shutil.rmtree(scratch)
    else:
        scratch.rename(final)
    return final
