"""A folder of artefacts found by what made them.

An artefact appears under its name only when it is complete.

Nothing is believed that was not checked: a manifest carries the digest of itself, files are
compared with it before they are used, and a lock is tried before it is relied on.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from remnant.durable import SCRATCH, digest_file, digest_of, rename, sync_tree, tell, write_text
from remnant.errors import UserError, some
from remnant.flow.digests import Signature, digest_once, signature
from remnant.names import fault_of_name
from remnant.records import FileRecord, Manifest

MANIFEST = "manifest.json"
# The manifest as it lies in a copy of an artefact outside of the store.
RECORD = "remnant.json"
FOLDERS = ("objects", "partial", "names", "locks")
# Manifests from this schema on carry their own digest; older ones are believed without, their files
# are compared all the same.
SEALED = 2
PROGRESS, FAILURE = "progress.json", "error.json"
# What no stage declares and everybody expects in a scratch folder; other strangers are named when
# they are left out.
EXPECTED = (PROGRESS, FAILURE, MANIFEST, f"*{SCRATCH}")
# What a transformed copy can do without, since it can be made again: weights and codes.
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_FREE, _OTHER = "Free some space; the same command goes on.", "Choose another folder with --store."
_REASONS = {
    errno.ENOSPC: ("The disk is full", _FREE),
    errno.EDQUOT: ("The disk quota is used up", _FREE),
    errno.EFBIG: ("The file system takes no file of this size", _OTHER),
    errno.EROFS: ("The disk is read-only", _OTHER),
    errno.EACCES: ("The folder is not writable", _OTHER),
    errno.EPERM: ("The folder is not writable", _OTHER),
    errno.ENOTDIR: ("A file stands where a folder is needed", _OTHER),
    errno.EISDIR: ("A folder stands where a file is needed", _OTHER),
    errno.ENOENT: ("The folder cannot be made", _OTHER),
    errno.EEXIST: ("A file stands where a folder is needed", _OTHER),
    errno.ENAMETOOLONG: ("A name is too long for the file system", _OTHER),
    errno.EIO: (
        "The disk has a fault",
        "Copy what is there to another disk; the same command goes on.",
    ),
    errno.ESTALE: ("The file system was taken away", "Mount it again; the same command goes on."),
}
# How libraries in Rust (safetensors, tokenizers), and a copy of a folder, report what the system
# told them.
_IN_WORDS = re.compile(r"os error (\d+)|Os \{ code: (\d+)|\[Errno (\d+)\]")


@contextmanager
def disk_errors(root: Path, elsewhere: str = _OTHER) -> Iterator[None]:
    """Faults of the disk as user errors; ``elsewhere`` says how to choose another place."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        if code is None and (match := _IN_WORDS.search(str(error))):
            code = int(match[1] or match[2] or match[3])
        if code not in _REASONS:
            raise
        message, remedy = _REASONS[code]
        place = getattr(error, "filename", None) or root
        raise UserError(
            f"{message} ({place}).", elsewhere if remedy is _OTHER else remedy
        ) from error


class Store:
    """Artefacts below one folder: objects/ (complete), partial/ (resumable), names/ (labels),
    locks/, damaged/ (set aside).
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._manifests: dict[str, tuple[Signature, Manifest | None]] = {}

    def open(self) -> "Store":
        """Make the folders that are not there, and try the lock.

        Raises:
            UserError: the folders cannot be made, or locks have no effect here.
        """
        with disk_errors(self.root):
            for name in FOLDERS:
                if not (self.root / name).is_dir():
                    (self.root / name).mkdir(parents=True, exist_ok=True)
        self._try_lock()
        return self

    def _try_lock(self) -> None:
        """Take a lock and see that it is refused a second time; takes a tenth of a millisecond."""
        place = self.root / "locks" / "trial"
        try:
            first, second = place.open("a"), place.open("a")
        except OSError:
            return  # nothing can be written here, so nothing will be made
        with first, second:
            if not self._flock(first.fileno()):
                return  # another process is trying it this moment, and was heeded
            if self._flock(second.fileno()):
                raise self._unlocked("has no effect")

    def _flock(self, place: int, *, wait: bool = False, shared: bool = False) -> bool:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(place, kind | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._unlocked(f"is refused: {os.strerror(error.errno or 0)}") from error
        return True

    def _unlocked(self, how: str) -> UserError:
        return UserError(
            (
                f"The file system of {self.root} has no working locks (flock {how}), so two runs "
                "could spoil each other's files."
            ),
            _OTHER,
        )

    def path(self, name: str) -> Path:
        """Where an artefact stands once it is complete."""
        return self.root / "objects" / name

    def scratch(self, name: str) -> Path:
        """Where an artefact is being made."""
        return self.root / "partial" / name

    def has(self, name: str) -> bool:
        """Whether an artefact is complete: its manifest is there, whole, and this artefact's."""
        return self._read(name) is not None

    def manifest(self, name: str) -> Manifest:
        """The manifest of a complete artefact; raises UserError if it is missing or damaged."""
        found = self._read(name)
        if found is None:
            raise self.refusal(name, [MANIFEST])
        return found

    def _read(self, name: str) -> Manifest | None:
        path = self.path(name) / MANIFEST
        try:
            now = signature(path)
            known = self._manifests.get(name)
            if known is None or known[0] != now:
                self._manifests[name] = known = (now, _believed(name, path.read_bytes()))
        except OSError:
            return None
        return known[1]

    def manifests(self) -> dict[str, Manifest]:
        """All complete artefacts, oldest first.

        What is damaged, or was written by another version, is left out.
        """
        names = (path.parent.name for path in self.root.glob(f"objects/*/{MANIFEST}"))
        found = {name: manifest for name in names if (manifest := self._read(name))}
        return dict(sorted(found.items(), key=lambda item: item[1].created))

    @contextmanager
    def lock(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Hold the lock of an artefact.

        Yields False at once if another process holds it and ``wait`` is False.
        """
        path, held = self.root / "locks" / name, True
        while held:
            with path.open("w") as file:
                held = self._flock(file.fileno(), wait=wait)
                if held and not _stands(file.fileno(), path):
                    continue  # it was broken while it was waited for
                yield held
                return

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Hold an artefact's files as they are; several may read them at the same time."""
        path, held = self.root / "locks" / name, False
        while not held:
            with path.open("w") as file:
                self._flock(file.fileno(), wait=True, shared=True)
                if held := _stands(file.fileno(), path):
                    yield

    def break_lock(self, name: str) -> None:
        """Let a lock be taken anew whose holder is gone for good.

        A file server may hold the lock of a machine that died; see design/002-store.md for who may
        say that it did.
        """
        (self.root / "locks" / name).unlink(missing_ok=True)

    def locked(self) -> list[str]:
        """The artefacts that a process is making, or reads copies of, at this moment."""
        found = []
        for place in sorted((self.root / "locks").iterdir()):
            with self.lock(place.name, wait=False) as free:
                found += [] if free else [place.name]
        return found

    def seal(
        self,
        name: str,
        manifest: Manifest,
        leaves: Collection[str] = ("*",),
        goes_on_from: Collection[str] = (),
    ) -> Path:
        """Turn what a scratch folder has come to into an artefact: digests, manifest, everything on
        the disk, rename.

        Args:
            name: of the artefact.
            manifest: without files.
            leaves: the names (patterns) of what belongs to the artefact.
            goes_on_from: the names of what a stage that was killed goes on from. All of the scratch
                folder stays as it is until the artefact is there, so that a kill at any moment
                loses no work; then it is removed.
        """
        scratch, final, whole = self.scratch(name), self.path(name), self.scratch(f"{name}~")
        for left_over in (whole, self.scratch(f"{name}~~")):
            shutil.rmtree(left_over, ignore_errors=True)
        files = {}
        for path in sorted(p for p in scratch.rglob("*") if p.is_file()):
            place = path.relative_to(scratch).as_posix()
            if _fits(place, EXPECTED) or not _fits(place, leaves):
                if not _fits(place, (*EXPECTED, *goes_on_from)):
                    tell(
                        f"{place} is nothing that {manifest.stage} leaves behind; it is left "
                        f"out of {name}."
                    )
                continue
            files[place] = FileRecord(sha256=digest_file(path), bytes=path.stat().st_size)
            (whole / place).parent.mkdir(parents=True, exist_ok=True)
            _second_name(path, whole / place)
        whole.mkdir(exist_ok=True)
        write_text(
            whole / MANIFEST,
            _sealed(manifest.model_copy(update={"files": files})).model_dump_json(indent=1) + "\n",
        )
        sync_tree(whole)
        if final.exists() and self.sound(name):
            rename(final, self.scratch(f"{name}~~"))
        elif final.exists():
            self.set_aside(name)
        rename(whole, final)
        shutil.rmtree(self.scratch(f"{name}~~"), ignore_errors=True)
        shutil.rmtree(scratch, ignore_errors=True)
        return final

    def faults(self, name: str) -> list[str]:
        """Files of an artefact that are missing, differ from its manifest, or are not in it.

        Read once per process.
        """
        manifest = self._read(name)
        if manifest is None:
            return [MANIFEST]
        folder = self.path(name)
        found = []
        for place, recorded in manifest.files.items():
            with suppress(OSError):
                if (folder / place).stat().st_size == recorded.bytes and digest_once(
                    folder / place
                ) == recorded.sha256:
                    continue
            found.append(place)
        strange = (
            p.relative_to(folder).as_posix()
            for p in folder.rglob("*")
            if p.is_file() and not p.name.startswith(".")
        )
        # A kill may leave weights that are let go; they are nobody's fault.
        going = () if manifest.kept else WEIGHTS
        known = {*manifest.files, MANIFEST}
        return found + sorted(s for s in strange if s not in known and not _fits(s, going))

    def sound(self, name: str) -> bool:
        """Whether an artefact is there and as it was made."""
        return self.has(name) and not self.faults(name)

    def checked(self, name: str) -> Manifest:
        """The manifest of an artefact whose files were compared with it.

        Raises:
            UserError: it is damaged; names the folder to delete.
        """
        if faults := self.faults(name):
            raise self.refusal(name, faults)
        return self.manifest(name)

    def refusal(self, name: str, faults: Collection[str]) -> UserError:
        """What is said of an artefact that is not as it was made."""
        manifest = self._read(name)
        again = (
            f"the command that made it makes it again: {manifest.command}"
            if manifest
            else "the command that made it makes it again"
        )
        return UserError(
            f"The artefact {name} is damaged ({some(faults)}).",
            f"Delete the folder {self.path(name)}; {again}.",
        )

    def keep(self, name: str) -> None:
        """Note that the files of a copy are no longer there for other pieces alone."""
        self._noted(name, self.manifest(name).model_copy(update={"kept": True}))

    def lighten(self, name: str) -> None:
        """Delete the weights of a copy that is not kept; nothing where somebody reads them.

        They are struck from the manifest first, so that a kill leaves no damaged artefact.
        """
        if not any(_fits(path.name, WEIGHTS) for path in self.path(name).iterdir()):
            return  # so that a store that is done needs no lock, which a read-only disk has not
        with self.lock(name, wait=False) as free:
            manifest = self._read(name) if free else None
            if manifest is None or manifest.kept:
                return
            if has_weights(manifest):
                left = {f: r for f, r in manifest.files.items() if not _fits(f, WEIGHTS)}
                self._noted(name, manifest.model_copy(update={"files": left}))
            for path in [p for p in self.path(name).iterdir() if _fits(p.name, WEIGHTS)]:
                path.unlink()

    def _noted(self, name: str, manifest: Manifest) -> None:
        text = _sealed(manifest).model_dump_json(indent=1) + "\n"
        write_text(self.path(name) / MANIFEST, text)

    def set_aside(self, name: str) -> None:
        """Move a damaged artefact out of the way, so that it is made again."""
        place = self.root / "damaged" / name
        place.parent.mkdir(exist_ok=True)
        faults = self.faults(name)
        shutil.rmtree(place, ignore_errors=True)
        rename(self.path(name), place)
        tell(
            f"the artefact {name} is damaged ({some(faults)}) and is made again; what is left "
            f"of it lies in {place}."
        )

    def owner(self, path: Path) -> str | None:
        """The artefact of this store that a path lies in; None for a path outside."""
        objects, place = (self.root / "objects").resolve(), path.resolve()
        return place.relative_to(objects).parts[0] if objects in place.parents else None

    def label(self, label: str, data: dict[str, Any]) -> None:
        """Keep a human name for some artefacts.

        Raises UserError where the disk does not take it.
        """
        path = self.root / "names" / f"{label}.json"
        plain = json.loads(json.dumps(data))
        with disk_errors(self.root):
            write_text(path, json.dumps({"seal": digest_of(plain), **plain}, indent=1) + "\n")

    def labels(self) -> list[str]:
        """The human names that some artefacts are kept under."""
        return sorted(p.stem for p in (self.root / "names").glob("*.json"))

    def labelled(self, label: str) -> dict[str, Any]:
        """What stands under a human name, as it was put there; raises UserError if nothing does,
        or it is damaged.
        """
        path = self.root / "names" / f"{label}.json"
        if fault_of_name(label) or not path.is_file():
            known = ", ".join(self.labels()) or "none yet"
            raise UserError(
                f"There is no run named '{label[:100]}' in {self.root}.", f"Known runs: {known}."
            )
        try:
            data = json.loads(path.read_bytes())
            whole = data.pop("seal") == digest_of(data)
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise UserError(
                f"{path} is damaged.",
                "Run the sweep again: its name is written anew, nothing is repeated.",
            )
        return dict(data)

    def matching(self, reference: str, stage: str) -> list[str]:
        """Artefacts of a stage, damaged ones too, whose name or key starts like this."""
        names = sorted(p.name for p in self.root.glob(f"objects/{stage}-*"))
        return [
            n for n in names if n.startswith(reference) or n.split("-", 1)[1].startswith(reference)
        ]


def copied(made: Path, manifest: Manifest, out: Path) -> None:
    """The files of an artefact in a folder of the user's, with its record as remnant.json."""
    scratch = out.with_name(f".{out.name}.tmp")
    with disk_errors(out.parent):
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            shutil.copytree(made, scratch, ignore=shutil.ignore_patterns(MANIFEST))
            record = manifest.model_dump_json(indent=1) + "\n"
            (scratch / RECORD).write_text(record, encoding="utf-8")
            sync_tree(scratch)
            rename(scratch, out)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)  # a full disk has no room for half of it
            raise


def _stands(file: int, path: Path) -> bool:
    """Whether an open file is still the one that stands under its name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False


def has_weights(manifest: Manifest) -> bool:
    """Whether weights are among the files of an artefact."""
    return any(_fits(place, WEIGHTS) for place in manifest.files)


def _fits(place: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(place, pattern) for pattern in patterns)


def _second_name(path: Path, other: Path) -> None:
    """The same file by another name; a copy where the file system knows no hard links."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def _own_digest(manifest: Manifest) -> str:
    # Where no such code was run, and what is kept is all, manifests are what they were before that
    # was recorded.
    usual = {"remote_code": not manifest.remote_code, "kept": manifest.kept}
    out = {"seal", *(name for name, left_out in usual.items() if left_out)}
    return digest_of(manifest.model_dump(mode="json", exclude=out))


def _sealed(manifest: Manifest) -> Manifest:
    """The manifest as it will be read again, with its own digest in it."""
    plain = Manifest.model_validate_json(
        manifest.model_copy(update={"schema_version": SEALED}).model_dump_json()
    )
    return plain.model_copy(update={"seal": _own_digest(plain)})


def _believed(name: str, text: bytes) -> Manifest | None:
    """A manifest that is whole and of this artefact; else None."""
    try:
        found = Manifest.model_validate_json(text)
    except ValueError:
        return None
    own = found.key == found.digest[:16] and name == f"{found.stage}-{found.key}"
    whole = found.seal == _own_digest(found) if found.seal else found.schema_version < SEALED
    return found if own and whole else None


def write_progress(scratch: Path, done: int, total: int, note: str) -> None:
    """Say how far a piece of work is, for whoever is watching the store.

    Where the disk takes nothing more, nothing is said.
    """
    path = scratch / PROGRESS
    temporary = path.with_suffix(SCRATCH)
    with suppress(OSError):
        temporary.write_text(
            json.dumps({"done": done, "total": total, "note": note, "time": time.time()}),
            encoding="utf-8",
        )
        os.replace(temporary, path)
