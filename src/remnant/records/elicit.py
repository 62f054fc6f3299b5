"""In which form questions are asked of all models of a comparison."""

from pydantic import Field

from remnant.records.base import Dtype, Record


class ElicitSpec(Record):
    """The choice of a form of asking; ``system``: what every conversation is told first;
    ``dtype``: as a measurement's.
    """

    system: str = ""
    dtype: Dtype = None


class ElicitResult(Record):
    """The form in which a model knows most, told on the development half.

    ``form``: its name, "published" where no other one brings out more. ``published``: the name of
    the published one for this model's tokenizer. ``gain``: by how much more is recalled, of 1, with
    the bounds of its interval. ``recall``: of every form, 0 to 1. ``questions``: how many were
    asked. ``refused``: the forms in which they cannot be asked, and why.
    """

    form: str
    published: str
    gain: tuple[float, float, float]
    recall: dict[str, float]
    questions: int
    refused: dict[str, str] = Field(default_factory=dict)

    @property
    def said(self) -> str:
        """The choice in a sentence, and in which forms nothing could be asked."""
        lost = [f" Not in the form {form}: {why}" for form, why in self.refused.items()]
        return "".join([self._choice, *lost])

    @property
    def _choice(self) -> str:
        if not self.questions and not self.recall:
            return "The corpus has no questions that could be asked in several forms."
        if not self.recall:
            return (
                f"Questions are asked as published ({self.published}): the corpus has too few of "
                "them to tell forms apart."
            )
        if self.form == "published":
            return (
                f"Questions are asked as published ({self.published}): of {self.questions} tried "
                "in every form, no other form brings out more beyond chance."
            )
        gain, low, high = (100 * x for x in self.gain)
        return (
            f"Questions are asked in the form {self.form}: of {self.questions} tried in every "
            f"form it recalls {gain:.0f} points more [{low:.0f}, {high:.0f}] than the published "
            f"one ({self.published})."
        )
