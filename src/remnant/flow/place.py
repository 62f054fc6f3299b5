"""What a user names: a folder, a model of the hub, or an artefact of the store.

Told apart before any work begins. No torch.
"""

import functools
import json
import os
import re
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from remnant.adapterfiles import is_adapter
from remnant.corpus.hub import PREFIX, reference
from remnant.durable import digest_of
from remnant.errors import UserError
from remnant.flow.digests import digest_outside, digest_path
from remnant.flow.store import MANIFEST, RECORD, Store
from remnant.names import fault_of_name
from remnant.packing import Packing, gguf_in, packing_in
from remnant.remotecode import runs_code
from remnant.weightfiles import config_of, shown

MODEL_STAGES = ("train", "unlearn", "merge", "dequantize", "transform", "deploy")
# What a GGUF file begins with.
MAGIC = b"GGUF"
# The hub's own rule for owner/name. Source: huggingface_hub, utils/_validators.py.
_HUB_ID = re.compile(r"\b[\w\-.]{1,96}\b/\b[\w\-.]{1,96}\b", re.ASCII)
# Ends of names of files; no model of the hub that is known here ends so.
_SUFFIXES = (
    ".json", ".jsonl", ".toml", ".txt", ".md", ".csv", ".py", ".safetensors", ".bin", ".pt", ".pth",
    ".parquet", ".gz", ".zip", ".yaml",
)  # fmt: skip
# Longest name of a path that systems take.
MOST_LETTERS = 4000
# A hub that does not answer within so many seconds is out of reach; trying it costs transformers
# most of a minute.
HUB_SECONDS = 5.0


@dataclass(frozen=True)
class Outside:
    """Something that Remnant did not make, known by the digest of its content (of its name, for a
    hub id).
    """

    source: str

    @cached_property
    def packing(self) -> Packing | None:
        """What the weights are packed by; None for plain ones, and for a hub id."""
        return packing_in(Path(self.source))

    @cached_property
    def digest(self) -> str:
        """sha256 of the content, or of the hub id and revision."""
        path = Path(self.source)
        return digest_path(path) if path.exists() else digest_of(["hub", self.source])


@dataclass(frozen=True)
class Made:
    """An artefact that is in the store already; ``packing``: what its weights are packed by."""

    name: str
    digest: str
    packing: Packing | None = None


def given(store: Store, reference: str, stage: str | tuple[str, ...]) -> Made | Outside:
    """What a user names: a folder, a hub id, or an artefact of the store by its name or the start
    of its key.

    Args:
        store: where artefacts are looked for.
        reference: what was named.
        stage: "prepare" where a corpus is wanted, else the stages that make models.

    Raises:
        UserError: nothing fits, or what is there is something else than what is wanted.
    """
    stages = (stage,) if isinstance(stage, str) else stage
    check_reference(reference, stages)
    path = Path(reference)
    if path.exists() and store.path(owner := store.owner(path) or "").resolve() == path.resolve():
        return _made(store, owner, stages)
    if path.exists():
        copy = copy_of(store, path)
        return _made(store, copy, stages) if copy else outside(reference, stages)
    found = [n for s in stages for n in store.matching(reference, s)]
    if len(found) > 1:
        raise UserError(
            f"'{shown(reference)}' is the start of {len(found)} artefacts.", "Give more of the key."
        )
    if found:
        return _made(store, found[0], stages)
    if is_hub_id(reference):
        return outside(reference, stages)
    if others := sorted(
        m
        for m in store.manifests()
        if m.startswith(reference) or m.partition("-")[2].startswith(reference)
    ):
        return _made(store, others[0], stages)
    raise UserError(
        (
            f"'{shown(reference)}' is neither a folder, nor a hub id, nor a {' or '.join(stages)} "
            f"artefact of {store.root}."
        ),
        "See them with: remnant ls",
    )


def copy_of(store: Store, folder: Path) -> str | None:
    """The artefact that a folder is a copy of, by the record in it and byte for byte: what was
    measured of the one need not be measured again of the other. None of any other folder.
    """
    records = [folder / name for name in (RECORD, MANIFEST)]
    record = next((path for path in records if path.is_file()), None)
    if record is None:
        return None
    with suppress(OSError, ValueError, AttributeError):
        said = json.loads(record.read_bytes())
        name = f"{said.get('stage')}-{said.get('key')}"
        if not fault_of_name(name) and store.has(name):
            files = {folder / place: one for place, one in store.manifest(name).files.items()}
            there = {p for p in folder.rglob("*") if p.is_file()} - set(records)
            same = there == files.keys() and all(
                path.stat().st_size == one.bytes and digest_outside(path) == one.sha256
                for path, one in files.items()
            )
            return name if same else None
    return None


def origin_of(said: str) -> str:
    """The folder or id of a model from outside, of what a manifest says of it; empty of artefacts.

    >>> origin_of("/models/a (0123456789abcdef)"), origin_of("train-0123456789abcdef")
    ('/models/a', '')
    """
    return said.rpartition(" (")[0]


def outside(reference: str, stages: Sequence[str] = MODEL_STAGES) -> Outside:
    """A folder or a hub id from outside the store, looked at without opening it.

    Raises:
        UserError: there is no such thing, or it is something else than what is wanted.
    """
    check_reference(reference, stages)
    path = Path(reference)
    if path.exists():
        _check_corpus(path) if "prepare" in stages else _check_model(path)
    elif not is_hub_id(reference):
        raise UserError(f"The folder {shown(reference)} does not exist.", _nearest(path))
    elif "prepare" in stages:
        raise UserError(
            f"'{reference}' is no prepared corpus.",
            f"A data set of the hub is prepared first: remnant prepare --hub {reference}",
        )
    return Outside(reference)


def is_hub_id(reference: str) -> bool:
    """Whether it may be owner/name on the hub: by the hub's rules, and neither below a folder that
    is here nor named like a file.
    """
    owner, _, _ = reference.partition("/")
    fits = (
        _HUB_ID.fullmatch(reference)
        and "--" not in reference
        and ".." not in reference
        and not reference.endswith(".git")
    )
    return bool(fits) and not reference.lower().endswith(_SUFFIXES) and not Path(owner).exists()


def check_reference(reference: str, stages: Sequence[str]) -> None:
    """Refuse what can be no path and no name: nothing, control characters, an address.

    Raises:
        UserError: it is one of these.
    """
    what = "corpus" if "prepare" in stages else "model"
    if not reference.strip():
        raise UserError(f"The name of the {what} is empty.", f"Name a {what}.")
    if (
        not reference.isprintable()
        or len(reference) > MOST_LETTERS
        or any(len(p) > 255 for p in reference.split("/"))
    ):
        raise UserError(f"The name of the {what} is no path: {shown(reference)}.", "Name a folder.")
    if "://" in reference:
        raise UserError(
            f"'{shown(reference)}' is an address, where a {what} is wanted.",
            "Name a folder, or owner/name of the hub; measure and audit ask servers.",
        )


def _made(store: Store, name: str, stages: Sequence[str]) -> Made:
    stage = name.partition("-")[0]
    if stage not in stages and not (stage in MODEL_STAGES and set(stages) & set(MODEL_STAGES)):
        wanted = "a prepared corpus" if "prepare" in stages else "a model"
        raise UserError(
            f"{name} is an artefact of '{stage}', where {wanted} is wanted.",
            "See all with: remnant ls",
        )
    return Made(name, store.manifest(name).digest, packing_in(store.path(name)))


def _nearest(path: Path) -> str:
    """What to say of a path that is not there: the part of it that is."""
    there = next((p for p in path.parents if p.exists() and str(p) != "."), None)
    missing = path.relative_to(there).parts[0] if there else path.parts[0] if path.parts else ""
    if str(path).startswith("~"):
        return "Write the home folder in full; ~ inside quotes is not one."
    return (
        f"{there} is there, but holds no {shown(missing)}."
        if there
        else "Check the path; it is relative to the current folder."
    )


def _check_corpus(path: Path) -> None:
    if (path / "corpus.json").is_file():
        return
    if path.is_file():
        raise UserError(
            f"{path} is a file, not a prepared corpus.",
            f"Prepare it first: remnant prepare --forget {path} --retain ...",
        )
    if (path / "config.json").is_file():
        raise UserError(
            f"{path} is a model, not a prepared corpus.",
            "Name the corpus with --data and the model before it.",
        )
    muse = (path / "raw" / "forget.json").is_file() or (path / "verbmem").is_dir()
    how = (
        f"remnant prepare --folder {path}"
        if muse
        else f"remnant prepare --forget {path}/... --retain {path}/..."
    )
    raise UserError(
        f"{path} is no prepared corpus: it has no corpus.json.", f"Prepare it first: {how}"
    )


def _check_model(path: Path) -> None:
    if path.is_file():
        _check_gguf(path)
        return
    if (path / "config.json").is_file() or any(path.glob("*.gguf")):
        config_of(path)
        runs_code(str(path))
        return
    if is_adapter(path):
        raise UserError(
            f"{path} holds an adapter, not a model.", f"Merge it first: remnant merge {path}"
        )
    if (path / "corpus.json").is_file():
        raise UserError(
            f"{path} is a prepared corpus, not a model.",
            "Name the model, and the corpus with --data.",
        )
    raise UserError(
        f"The model folder {path} has no config.json.", "Give a folder written by save_pretrained."
    )


def _check_gguf(path: Path) -> None:
    if not gguf_in(path):
        raise UserError(
            f"{path} is a file, not the folder of a model.", f"Name its folder: {path.parent}"
        )
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{path} is no GGUF file.", "Copy or download it again.")


@functools.lru_cache(maxsize=64)
def check_hub(source: str) -> None:
    """Refuse a model or a data set of the hub at once where it can be had from nowhere; a folder is
    always fine.

    Raises:
        UserError: it is not in the hub's cache, and the hub is out of reach or switched off.
    """
    if Path(source).exists():
        return
    data = source.startswith(PREFIX)
    name = reference(source).name if data else source
    kind, what = ("datasets", "data set") if data else ("models", "model")
    if not _cached(f"{kind}--{name.replace('/', '--')}"):
        _check_reach(source, f"{what} {name}")


def _check_reach(source: str, what: str) -> None:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UserError(
            f"The {what} is not in the hub's cache, and HF_HUB_OFFLINE is set.",
            "Download it first, or unset it.",
        )
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if any(
        os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    ):
        return  # whether a proxy reaches the hub only the request itself can tell
    if not _answers(
        address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    ):
        raise UserError(
            f"There is no folder {source}, and the hub ({address.hostname}) is out of reach.",
            "Check the path; or the network, then try again.",
        )


def _cached(folder: str) -> bool:
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
    return any((cache / folder).glob("snapshots/*/*"))


def _answers(host: str, port: int) -> bool:
    """Whether a server takes a connection within ``HUB_SECONDS``.

    In a thread, since looking up a name has no time limit of its own.
    """
    found: list[Any] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=HUB_SECONDS).close()
            found.append(True)
        except OSError:
            return

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return bool(found)
