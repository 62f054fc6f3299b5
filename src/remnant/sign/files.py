"""The files of a model by name and sha256, and in which of them two models differ. No torch."""

from collections.abc import Mapping
from pathlib import Path

from remnant.durable import digest_file
from remnant.errors import UserError

Files = Mapping[str, str]
# What no runtime reads, and what others put beside a model; signed, it must be as it was.
BESIDE = frozenset(["README.md", ".gitattributes", ".gitignore", "manifest.json", "remnant.json"])


def files_of(path: Path) -> dict[str, str]:
    """Name -> sha256 of every file below a folder, or of the one file that a model is.

    A link to a folder counts as a file of its own, as what lies behind it could change.

    Raises:
        UserError: there is nothing, or it cannot be read.
    """
    try:
        if path.is_file():
            return {path.name: digest_file(path)}
        found = {
            p.relative_to(path).as_posix(): digest_file(p) if p.is_file() else "a link to a folder"
            for p in sorted(path.rglob("*"))
            if p.is_file() or p.is_symlink()
        }
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be read ({error.strerror}).", "Mend its rights."
        ) from error
    if not found:
        raise UserError(f"{path} holds no file.", "Name the folder of a model.")
    return found


def differences(found: Files, signed: Files) -> list[str]:
    """In which files a model is not what was signed, in words; none where it is.

    >>> differences({"a": "1", "b": "2", "README.md": "3"}, {"a": "0", "c": "2"})
    ['a was changed', 'c is missing', 'b was added']
    """
    changed = [f"{n} was changed" for n in signed if n in found and found[n] != signed[n]]
    missing = [f"{n} is missing" for n in signed if n not in found]
    added = [f"{n} was added" for n in found if n not in signed and n not in BESIDE]
    return changed + missing + added


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
