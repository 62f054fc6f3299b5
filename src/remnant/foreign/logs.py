"""What all logs share: JSON from outside, numbers that are checked before they count, and the cells
of one model. No torch.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from remnant.errors import Unscorable, UserError
from remnant.functional.stats import (
    Interval,
    auc,
    bootstrap,
    bootstrap_auc,
    bootstrap_mean,
    privleak,
)
from remnant.functional.text import overlap
from remnant.records import Cell, Rule, Variant, status_of

Array = NDArray[np.float64]
NO_ITEMS = "ok, no interval: the log holds no items"
NO_NUMBER = "the log holds no number"
NO_REFERENCE = "no reference: give the retrain model's log (--retrain) or AUC (--auc-retrain)"
# Sums of floats may leave [0, 1] by so much.
ROUNDING = 1e-6
# The comparison keeps a table of words by words: this many take seconds and a few hundred
# megabytes.
MOST_PAIRS = 10_000_000
LARGEST = 2 * 2**30


class Log(NamedTuple):
    """One file of a log: what it is, where it lies, and its content."""

    kind: str
    file: Path
    data: Any


class Reference(NamedTuple):
    """The model that never read the forget text: its AUC with Min-40 %, its truth ratios by
    question, and whether a log was given.
    """

    auc: float | None = None
    ratios: Mapping[str, float] | None = None
    log: Path | None = None

    @property
    def given(self) -> bool:
        """Whether the user named one."""
        return self.auc is not None or self.log is not None


def read_text(path: Path) -> str:
    """A file as text in UTF-8, with or without a mark at its head; raises UserError."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{shown(path)} is no file.")
        if path.stat().st_size > LARGEST:
            raise UserError(
                f"{shown(path)} is larger than {LARGEST // 2**30} GiB; no tool writes such a log."
            )
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"The file {shown(path)} does not exist.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            (
                f"{shown(path)} is not UTF-8 (byte {error.start}); it is not JSON as the tools "
                "write it."
            ),
            "Convert it, for example with iconv -t UTF-8.",
        ) from error
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read: {error.strerror}.") from error


def parse_json(text: str) -> JsonValue:
    """One JSON value; raises ValueError, also for what is nested without end."""
    try:
        found: JsonValue = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return found


def shown(what: object) -> str:
    """Text from outside for a message: one line, characters that cannot be written as escapes."""
    text = str(what).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else " " for c in text)[:300]


def number(where: str, value: Any, low: float = 0.0, high: float = 1.0) -> float | None:
    """A number of a log within its range; None for null and NaN.

    Raises:
        UserError: a text, a truth value or a list, or a number out of its range: such a log says
            something else than is read.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(
            f"{where} holds {shown(repr(value))[:60]}, which is no number.",
            "Is it the log that the tool wrote?",
        )
    if isinstance(value, float) and math.isnan(value):
        return None
    if not low - ROUNDING <= value <= high + ROUNDING or abs(value) == math.inf:
        bounds = (
            f"between {low:g} and {high:g}"
            if high < math.inf
            else f"of at least {low:g}"
            if low > -math.inf
            else "finite"
        )
        raise UserError(
            f"{where} holds {float_shown(value)}, which is no number {bounds}.",
            "Is it the log that the tool wrote?",
        )
    try:
        return float(value)
    except OverflowError as error:
        raise UserError(
            f"{where} holds a number beyond all measure.", "Is it the log that the tool wrote?"
        ) from error


def float_shown(value: float) -> str:
    """A number in a message, also an integer beyond floats."""
    try:
        return f"{value:g}"
    except OverflowError:
        return "a number without end"


def rouge(truth: str, generated: str) -> float | str:
    """ROUGE-L of one text as MUSE counts it, or why it has none.

    Texts that would take for ever are not compared.
    """
    sizes = [len(re.findall(r"[a-z0-9]+", text.lower())) for text in (truth, generated)]
    if sizes[0] * sizes[1] > MOST_PAIRS:
        return f"its texts are too long to compare ({sizes[0]} and {sizes[1]} words)"
    try:
        return overlap(truth, generated)
    except Unscorable as error:
        return str(error)


class Cells:
    """Cells of one model: from the values of items, with an interval, or from a stored number,
    without.
    """

    def __init__(self, variant: Variant, rule: Rule) -> None:
        self._about, self.rule = dict(variant), rule

    def cell(
        self, metric: str, found: Interval | tuple[float, None, None] | None, n: int, status: str
    ) -> Cell:
        """One cell, x100."""
        value, low, high = (
            (None if x is None else 100 * x for x in found) if found else (None, None, None)
        )
        return Cell(
            **self._about, metric=metric, value=value, low=low, high=high, n=n, status=status
        )

    def stored(self, metric: str, value: float | None, n: int = 0, status: str = "") -> Cell:
        """A number as the log has it, 0 to 1 (PrivLeak: a share); None where it has none."""
        known = value is not None and math.isfinite(value)
        found = (float(value), None, None) if known and value is not None else None
        return self.cell(metric, found, n, status or (NO_ITEMS if known else NO_NUMBER))

    def of_items(
        self,
        metric: str,
        values: Sequence[float | str | None],
        of: Callable[[Array], float] | None = None,
    ) -> Cell:
        """The mean of items (or a function of them) with its interval.

        What is no number says why.
        """
        column = np.array([v for v in values if not isinstance(v, str | None)], dtype=np.float64)
        lost = Counter(
            v if isinstance(v, str) else NO_NUMBER for v in values if isinstance(v, str | None)
        )
        if of:
            found = bootstrap(
                lambda i: of(column[i[0]]), (len(column),), self.rule.resamples, self.rule.seed
            )
        else:
            found = bootstrap_mean(column, self.rule.resamples, self.rule.seed)
        return self.cell(metric, found, len(column), status_of(found is not None, lost))

    def of_sides(
        self, metric: str, forget: Array, holdout: Array, reference: float | None = None
    ) -> Cell:
        """AUC of an attack's values on both sides, or with a reference its relative distance from
        it (PrivLeak).
        """
        of = (lambda a: privleak(a, reference)) if reference is not None else (lambda a: a)
        found = bootstrap_auc(forget, holdout, self.rule.resamples, self.rule.seed, of)
        return self.cell(
            metric, found, len(forget) + len(holdout), status_of(found is not None, None)
        )

    def privleak(self, own: tuple[Array, Array] | float | None, reference: Reference) -> Cell:
        """PrivLeak from both sides' values or a stored AUC against a given reference.

        Without a number where one of them is missing.
        """
        if reference.auc is None:
            lacking = (
                f"{shown(reference.log)} holds no AUC with Min-40%"
                if reference.log
                else NO_REFERENCE
            )
            return self.stored("privleak", None, status=lacking)
        if own is None:
            return self.stored(
                "privleak",
                None,
                status="the log holds no AUC with Min-40% to compare with the given reference",
            )
        if isinstance(own, float):
            return self.stored("privleak", privleak(own, reference.auc))
        return self.of_sides("privleak", *own, reference.auc)


def usable(where: str, value: float | None) -> float | None:
    """The AUC of a reference, which is divided by; raises UserError for 0."""
    if value is not None and value <= 0:
        raise UserError(
            f"The retrain model's AUC in {where} is 0; PrivLeak divides by it.",
            "Give another reference with --auc-retrain.",
        )
    return value


def side_auc(sides: tuple[Array, Array] | float | None) -> float | None:
    """AUC as MUSE counts it, of two sides or as stored."""
    return auc(*sides) if isinstance(sides, tuple) else sides
