"""Instrument checks: what must be right before a number is believed. No torch.

A check that failed makes the numbers that depend on it "not measured"; it never makes them low.
"""

import json
from collections.abc import Collection, Iterable
from pathlib import Path

from remnant.errors import UserError
from remnant.records import Check

FILE = "checks.json"


def write_checks(folder: Path, checks: Iterable[Check]) -> None:
    """Keep the checks of a measurement beside its rows."""
    text = (
        json.dumps([c.model_dump(mode="json") for c in checks], indent=1, ensure_ascii=False) + "\n"
    )
    (folder / FILE).write_text(text, encoding="utf-8")


def read_checks(folder: Path) -> list[Check] | None:
    """The checks of a measurement; None where none were made.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return [Check.model_validate(c) for c in data] if isinstance(data, list) else None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} is damaged.", "Delete its folder and measure again.") from error


def are_complete(checks: Collection[Check] | None) -> bool:
    """Whether the checks that every measurement has were made."""
    return {c.name for c in checks or ()} >= {"logits", "texts"}


def faults_of(checks: Iterable[Check], metric: str, but: str = "") -> list[str]:
    """What the failed checks say that concern a metric, those of one name (``but``) that concern
    some metrics only left out.
    """
    return [
        c.said
        for c in checks
        if not c.ok and (not c.metrics or (metric in c.metrics and c.name != but))
    ]
