"""The files of a model by name and sha256, and in which of them two models differ. No torch."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from remnant.durable import digest_file
from remnant.errors import UserError
from remnant.weightfiles import shown

Files = Mapping[str, str]
# In the place of a digest: a link to a folder or to nothing, a pipe. What lies behind may change.
NO_FILE = "no file"
# What no runtime reads, and what others put beside a model; signed, it must be as it was.
BESIDE = frozenset(["README.md", ".gitattributes", ".gitignore", "manifest.json", "remnant.json"])


def files_of(path: Path) -> dict[str, str]:
    """Name -> sha256 of every file below a folder, or of the one file that a model is.

    What is neither a file nor a folder (a link to one, too) has ``NO_FILE`` for a digest.

    Raises:
        UserError: there is nothing, or it or a folder below it cannot be read.
    """
    try:
        if path.is_file():
            return {path.name: digest_file(path)}
        found = {
            p.relative_to(path).as_posix(): digest_file(p) if p.is_file() else NO_FILE
            for p in sorted(_below(path))
        }
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be read ({error.strerror}).",
            "Name a model that is there.",
        ) from error
    if not found:
        raise UserError(f"{path} holds no file.", "Name the folder of a model.")
    return found


def _below(folder: Path) -> Iterator[Path]:
    """All that is no folder below one; links to folders are not followed."""
    for place, folders, names in os.walk(folder, onerror=_raised):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        yield from (Path(place, name) for name in (*names, *links))


def _raised(error: OSError) -> None:
    """A folder that cannot be listed may hold anything."""
    raise error


def differences(found: Files, signed: Files) -> list[str]:
    """In which files a model is not what was signed, in words; none where it is.

    >>> differences({"a": "1", "b": "2", "README.md": "3"}, {"a": "0", "c": "2"})
    ['a was changed', 'c is missing', 'b was added']
    """
    both = [n for n in signed if n in found]
    links = [f"{shown(n)} is {NO_FILE}" for n in both if NO_FILE in (found[n], signed[n])]
    changed = [f"{shown(n)} was changed" for n in both if found[n] != signed[n]]
    missing = [f"{shown(n)} is missing" for n in signed if n not in found]
    added = [f"{shown(n)} was added" for n in found if n not in signed and n not in BESIDE]
    return links + changed + missing + added


def nearest(found: Files, models: Mapping[str, Files]) -> str:
    """The signed model that shares most files with a folder, by content, then by name.

    >>> nearest({"a": "1", "b": "2"}, {"full": {"a": "1", "b": "3"}, "int4": {"a": "0", "b": "0"}})
    'full'
    """

    def shared(name: str) -> tuple[int, int, int]:
        own = models[name]
        pairs, names = found.items() & own.items(), found.keys() & own.keys()
        return len(pairs), len(names), -len(own)

    return max(models, key=shared)
