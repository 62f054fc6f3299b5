"""A folder of artefacts found by what made them. An artefact appears under its name only when it is complete."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from remnant.errors import UserError
from remnant.records import FileRecord, Manifest

MANIFEST = "manifest.json"


def digest_of(data: Any) -> str:
    """sha256 of the canonical JSON form of some data, in hex."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of a file's content, in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_path(path: Path) -> str:
    """sha256 over the names and contents of a file or of all files below a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return digest_of([[p.relative_to(path).as_posix(), digest_file(p)] for p in files])


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Faults of the disk as user errors."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: ("The disk is full", "Free some space; the same command goes on."),
            errno.EDQUOT: ("The disk quota is used up", "Free some space; the same command goes on."),
            errno.EROFS: ("The disk is read-only", "Choose another folder with --store."),
            errno.EACCES: ("The folder is not writable", "Choose another folder with --store."),
            errno.EPERM: ("The folder is not writable", "Choose another folder with --store."),
            errno.ENOTDIR: ("A file stands where a folder is needed", "Choose another folder with --store."),
            errno.ENOENT: ("The folder cannot be made", "Choose another folder with --store."),
            errno.EEXIST: ("A file stands where a folder is needed", "Choose another folder with --store."),
        }
        if error.errno not in reasons:
            raise
        message, remedy = reasons[error.errno]
        raise UserError(f"{message} ({error.filename or root}).", remedy) from error


class Store:
    """Artefacts below one folder: objects/ (complete), partial/ (resumable), names/ (labels), locks/."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self) -> "Store":
        """Make the folders; raises UserError where that is not possible."""
        with disk_errors(self.root):
            for name in ("objects", "partial", "names", "locks"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        return self

    def path(self, name: str) -> Path:
        """Where an artefact stands once it is complete."""
        return self.root / "objects" / name

    def scratch(self, name: str) -> Path:
        """Where an artefact is being made."""
        return self.root / "partial" / name

    def has(self, name: str) -> bool:
        """Whether an artefact is complete."""
        return (self.path(name) / MANIFEST).is_file()

    def manifest(self, name: str) -> Manifest:
        """The manifest of a complete artefact."""
        return Manifest.model_validate_json((self.path(name) / MANIFEST).read_text(encoding="utf-8"))

    def manifests(self) -> dict[str, Manifest]:
        """All complete artefacts, oldest first; what another version of the store wrote is left out."""
        found = {}
        for path in self.root.glob(f"objects/*/{MANIFEST}"):
            try:
                found[path.parent.name] = self.manifest(path.parent.name)
            except ValidationError:
                continue
        return dict(sorted(found.items(), key=lambda item: item[1].created))

    @contextmanager
    def lock(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Hold the lock of an artefact; yields False at once if another process holds it and ``wait`` is False."""
        with (self.root / "locks" / name).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True

    def seal(self, name: str, manifest: Manifest) -> Path:
        """Turn a finished scratch folder into an artefact: digests, manifest, rename."""
        scratch, final = self.scratch(name), self.path(name)
        (scratch / "progress.json").unlink(missing_ok=True)
        files = {
            p.relative_to(scratch).as_posix(): FileRecord(sha256=digest_file(p), bytes=p.stat().st_size)
            for p in sorted(scratch.rglob("*"))
            if p.is_file() and p.name != MANIFEST
        }
        complete = manifest.model_copy(update={"files": files})
        (scratch / MANIFEST).write_text(complete.model_dump_json(indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(scratch, final)
        return final

    def faults(self, name: str) -> list[str]:
        """Files of an artefact that are missing or differ from its manifest."""
        recorded = self.manifest(name).files
        return [f for f, r in recorded.items() if not (p := self.path(name) / f).is_file() or digest_file(p) != r.sha256]

    def label(self, label: str, data: dict[str, Any]) -> None:
        """Keep a human name for some artefacts."""
        path = self.root / "names" / f"{label}.json"
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        os.replace(scratch, path)

    def labelled(self, label: str) -> dict[str, Any]:
        """What stands under a human name; raises UserError if nothing does."""
        path = self.root / "names" / f"{label}.json"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in path.parent.glob("*.json"))) or "none yet"
            raise UserError(f"There is no run named '{label}' in {self.root}.", f"Known runs: {known}.")
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def matching(self, reference: str, stage: str) -> list[str]:
        """Complete artefacts of a stage whose name or key starts like this."""
        names = [p.parent.name for p in self.root.glob(f"objects/{stage}-*/{MANIFEST}")]
        return [n for n in names if n.startswith(reference) or n.split("-", 1)[1].startswith(reference)]


def write_progress(scratch: Path, done: int, total: int, note: str) -> None:
    """Say how far a piece of work is, for whoever is watching the store."""
    path = scratch / "progress.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"done": done, "total": total, "note": note, "time": time.time()}), encoding="utf-8")
    os.replace(temporary, path)
