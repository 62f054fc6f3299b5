"""Tests on the weights of one model, and what came of them beside the rows."""

from pydantic import Field

from remnant.records.base import Record


class AttackSpec(Record):
    """Which tests are made (``remnant.attacks``). ``seed``: of what is drawn among the texts."""

    tests: tuple[str, ...]
    seed: int = 0


class AttackResult(Record):
    """What tests on weights came to, beside their rows.

    ``items``: forget passages that are read, none of them learned again; ``lessons``: texts that
    are. ``passes``: what all tests cost, as much as reading so many texts. ``rates``: way of
    relearning -> learning rate. ``absent``: test -> why it was not made.
    """

    items: int
    lessons: int
    passes: int
    rates: dict[str, float]
    absent: dict[str, str] = Field(default_factory=dict)
