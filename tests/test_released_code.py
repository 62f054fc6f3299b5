"""What released code does otherwise, entry by entry: both numbers are those that follow by hand,
and the page shows them."""

import math
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from remnant.testing import LOSS_LAWS

ROOT = Path(__file__).parent.parent
FILE = runpy.run_path(str(ROOT / "reproductions" / "released_code.py"))
BUGS: tuple[Any, ...] = FILE["BUGS"]
LN2 = math.log(2)


def soft(x: float) -> float:
    return math.log1p(math.exp(x))


def kept_of_undial() -> float:
    """KL at one of eight masked places of nine: of what is left of entry 50 after 10 less."""
    own = math.exp(5) / (math.exp(5) + 149)
    less = math.exp(-5) / (math.exp(-5) + 149)
    at = less * math.log(less / own) + (1 - less) * math.log((1 - less) / (1 - own))
    return 8 / 9 * at


# The formula's number and the released code's.
BY_HAND: Mapping[str, tuple[float, float]] = {
    "raw_logits": (0.0, (5 * soft(5) + 3 * soft(6) - 5 * soft(0) - 3 * soft(1)) / 4),
    "no_labels": (2 * (soft(math.log(0.99)) - soft(math.log(0.01))), 0.0),
    "rows_by_columns": (1.0, (10 + 1 + 10 / 10 + 1 / 10) / 4),
    "mask_of_the_token_itself": (4.0, 0.0),
    "one_token_too_many": (math.log(4), 0.75 * math.log(4)),
    "mean_over_padding": (LN2, 2 / 9 * LN2),
    "label_as_an_index": (0.0, kept_of_undial()),
    "padding_in_a_probability": (1.0, 2 / 8),
    "flat_over_flat": (0.0, (math.tanh(1 / 4) - math.tanh(1)) / 2),
    "tanh_of_the_mean": (math.tanh(1) / 4, math.tanh(0.5) / 2),
    "sigmoid_of_the_mean": (soft(10.0) + soft(-10.0), 2 * LN2),
    "tokens_over_texts": (-6.0, -2.0),
    "constant_penalty": (2.0, 0.0),
    "forget_counted_twice": (2.0, 4.0),
    "name_without_a_branch": (5.0, 4.0),
    "appended_to_a_tensor": (2.0, 0.0),
    "argument_that_is_not_taken": (2.0, 1.0),
    "last_batch_only": (2.0, 1.5),
    "four_updates_a_step": (1.5, 3.0),
    "norm_of_what_was_moved": (10.0, 15.0),
    "floor_under_the_probability": (-0.25, -math.exp(-40) / 12 / (math.exp(-40) / 3 + 1e-12)),
    "constant_below_the_line": (1.0, 2e-8 / (2e-8 + 1e-5)),
    "skipped_before_the_shift": (LN2, (math.log(100) + LN2) / 2),
    "weights_exchanged": (10.0, 0.1),
}
# Laws that are no one's battery: each is a test of its own.
ELSEWHERE = {
    "a run that was cut goes on as the whole one",
    "equal tokens have their own mean",
    "every loss counts once",
    "the first predicted tokens are skipped",
    "the penalty has a gradient",
    "the published setting is the one that is run",
    "the slope in a logit is p - 1/V",
    "the slope in log p is the stated one",
    "two small batches have the gradient of one large one",
    "what is published runs",
}


@pytest.mark.parametrize("bug", BUGS, ids=lambda b: b.measured.__name__)
def test_the_numbers_of_an_entry_follow_by_hand_and_differ(bug: Any) -> None:
    formula, released = bug.measured()
    known = BY_HAND[bug.measured.__name__]
    assert (formula, released) == pytest.approx(known, rel=1e-3, abs=1e-6)
    assert abs(formula - released) > 0.1 * max(abs(formula), abs(released))


def test_every_entry_has_its_own_number_and_names_a_law() -> None:
    assert sorted(BY_HAND) == sorted(bug.measured.__name__ for bug in BUGS)
    laws = {law.name for law in LOSS_LAWS}
    assert {bug.law for bug in BUGS} - laws == ELSEWHERE


def test_rounded_weights_that_are_put_back_before_the_backward_pass_are_straight_through() -> None:
    through, swapped = FILE["weights_swapped_back"]()
    assert through == swapped == 1.0


def test_the_page_shows_every_entry_with_its_numbers() -> None:
    page = (ROOT / "docs" / "methods.md").read_text()
    for bug in BUGS:
        formula, released = bug.measured()
        assert f"| {bug.of} | {formula + 0.0:.3g} | {released + 0.0:.3g} |" in page
