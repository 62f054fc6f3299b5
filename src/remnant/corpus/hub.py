"""Data sets of Hugging Face's library ``datasets``: saved in a folder, or on the hub.

One of the hub is named ``hub:OWNER/NAME``, with ``,config=...``, ``,split=...`` and
``,revision=...`` behind it where they are needed.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from remnant.corpus.files import MOST_BYTES
from remnant.corpus.tables import cells
from remnant.errors import UserError, first_line, some, unknown

PREFIX = "hub:"
_KEYS = ("config", "split", "revision")
_FORM = "Write hub:OWNER/NAME, or hub:OWNER/NAME,config=C,split=S,revision=R."
# The files by which a folder tells what was saved in it.
_ONE, _SPLITS = "state.json", "dataset_dict.json"


class Reference(NamedTuple):
    """A data set of the hub."""

    name: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None


def reference(source: str) -> Reference:
    """What a name of a data set of the hub says.

    Raises:
        UserError: it has another form.

    >>> reference("hub:owner/name,split=train")
    Reference(name='owner/name', config=None, split='train', revision=None)
    """
    name, *settings = source.removeprefix(PREFIX).split(",")
    given = dict[str, str]()
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in _KEYS:
            raise unknown("part of a hub name", key, _KEYS)
        if not value or key in given:
            raise UserError(f"{source} gives {key} no value, or two.", _FORM)
        given[key] = value
    if name.count("/") != 1 or not all(name.split("/")):
        raise UserError(f"{source} names no data set of the hub.", _FORM)
    return Reference(name, **given)


def hub_rows(source: str) -> list[dict[str, object]]:
    """The rows of a data set of the hub.

    Raises:
        UserError: it cannot be reached, or has several splits and none is named.
    """
    import datasets  # heavy, and only for this door

    wanted = reference(source)
    try:
        found = datasets.load_dataset(
            wanted.name, wanted.config, split=wanted.split, revision=wanted.revision
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"The data set {wanted.name} of the hub cannot be opened: {_said(error)}.",
            "Check its name, config and split, or give a file of it (JSON lines, CSV, Parquet).",
        ) from error
    if isinstance(found, datasets.DatasetDict):
        _one_of(source, found, f"{source},split={{}}")
        found = next(iter(found.values()))
    return cells(found.to_list())


def saved_in(folder: Path) -> Path | None:
    """The data set that was saved in a folder, the one split of several; none if there is none.

    Raises:
        UserError: there are several splits, or it is too large.
    """
    if (folder / _SPLITS).is_file():
        try:
            splits = json.loads((folder / _SPLITS).read_text(encoding="utf-8"))["splits"]
            there = [folder / str(name) for name in splits]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise _damaged(folder, f"{_SPLITS} does not list its splits") from error
        _one_of(folder.as_posix(), splits, f"{folder}/{{}}")
        return there[0]
    if not (folder / _ONE).is_file() or not (folder / "dataset_info.json").is_file():
        return None
    size = sum(p.stat().st_size for p in folder.glob("*.arrow"))
    if size > MOST_BYTES:
        raise UserError(
            f"The data set in {folder} has {size / 1e9:.1f} GB; at most {MOST_BYTES >> 30} GB are "
            "read.",
            "Save a part of it (select).",
        )
    return folder


def saved_rows(folder: Path) -> list[dict[str, object]]:
    """The rows of a data set that save_to_disk wrote.

    Raises:
        UserError: it is damaged.
    """
    import datasets  # heavy, and only for this door

    try:
        # A copy, and all of it checked: to read on in a damaged or changing file ends the process.
        found = datasets.load_from_disk(str(folder), keep_in_memory=True)
        found.data.validate(full=True)
        return cells(found.to_list())
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        raise _damaged(folder, _said(error)) from error


def _one_of(where: str, splits: Iterable[str], form: str) -> None:
    names = [str(name) for name in splits]
    if len(names) != 1:
        raise UserError(
            f"{where} holds {len(names)} splits ({some(names)}), and one is read.",
            f"Name it: {some(form.format(name) for name in names)}."
            if names
            else "Save it with its splits.",
        )


def _damaged(folder: Path, why: str) -> UserError:
    return UserError(f"The data set in {folder} is damaged: {why}.", "Save or download it again.")


def _said(error: BaseException) -> str:
    return first_line(error).rstrip(".")
