"""What stands in the folder of a prepared corpus: its card, and files that are lists of JSON."""

import json
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from remnant.errors import UserError


def read_list(path: Path) -> list[JsonValue]:
    """A JSON list from a corpus folder.

    Raises:
        UserError: missing, not UTF-8, not JSON, not a list, or with half a surrogate pair in it.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"The corpus has no {path.parent.name}/{path.name}.", "Prepare it again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON in UTF-8: {error}.") from error
    if not isinstance(data, list):
        raise UserError(
            f"{path} holds no list.", "MUSE's files are lists of strings or of records."
        )
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path} holds half of a surrogate pair, which is no text.",
            "Write the text in Unicode again.",
        ) from error
    return data


def settings(corpus: Path) -> dict[str, JsonValue]:
    """The corpus card: name, token lengths, counts, and the metrics that are absent with the
    reason.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = corpus / "corpus.json"
    try:
        card = json.loads(path.read_bytes())
    except OSError as error:
        remedy = (
            f"Prepare it first: remnant prepare --forget {corpus} --retain ..., and give the "
            "folder that this prints as --data."
        )
        raise UserError(
            f"{corpus} is no prepared corpus: it has no corpus.json.", remedy
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged: it is not JSON.", "Prepare the corpus again."
        ) from error
    whole = (
        isinstance(card, dict)
        and isinstance(card.get("absent"), dict)
        and type(card.get("answer_tokens")) is int
    )
    if not whole or card["answer_tokens"] < 1:
        raise UserError(
            f"{path} is damaged: it does not say answer_tokens and what is absent.",
            "Prepare the corpus again.",
        )
    return dict(card)


def records(path: Path, *keys: str) -> list[dict[str, Any]]:
    """A JSON list of records that have all these keys, each a string, and any others.

    Raises:
        UserError: as ``read_list``, or a record has not.
    """
    rows: list[Any] = read_list(path)
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
            raise UserError(
                f"{path}: record {i + 1} lacks {' or '.join(keys)}, or one of them is no string.",
                "Prepare the corpus again.",
            )
    return rows


def texts(path: Path) -> list[str]:
    """A JSON list of strings; raises UserError as ``read_list`` or for anything else among them."""
    rows = read_list(path)
    for i, row in enumerate(rows, 1):
        if not isinstance(row, str):
            raise UserError(f"{path}: entry {i} is no string.", "Prepare the corpus again.")
    return [str(row) for row in rows]


def raw_texts(corpus: Path, split: str) -> list[str]:
    """The documents of one split: forget, retain1, retain2 or holdout."""
    return [text for text in texts(corpus / "raw" / f"{split}.json") if text.strip()]
