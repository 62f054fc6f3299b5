"""What a measured model is, told by values: how it came about and behind which transforms."""

from remnant.records.base import Record

FULL, PACKED = "full", "packed"
# The only step of a model that somebody else has measured: nobody knows its form.
AS_GIVEN = "as given"
# Between the steps of a form, as people read and write it.
BETWEEN = "+"
REFERENCES = ("target", "retrain")


class Variant(Record):
    """One model of a comparison, as it is measured.

    ``corpus``: its name. ``model``: "target", "retrain", or the name of an unlearning run or of a
    file; empty for the corpus itself. ``steps``: the transforms that it has gone through, in order,
    by the names that tables show; none in full precision. ``packed``: asked through the runtime
    that opens the files of the last step, not as a dense copy.
    """

    corpus: str | None = None
    model: str = ""
    method: str | None = None
    weights: str | None = None
    seed: int | None = None
    steps: tuple[str, ...] = ()
    packed: bool = False

    @property
    def form(self) -> str:
        """Steps and runtime as tables show them; nothing reads it again.

        >>> Variant(steps=("prune20", "int4")).form, Variant().form
        ('prune20+int4', 'full')
        """
        return " ".join([BETWEEN.join(self.steps) or FULL, *[PACKED] * self.packed])

    @property
    def in_full(self) -> bool:
        """Whether it is in full precision, with nothing done to it."""
        return not self.steps and not self.packed

    @property
    def is_reference(self) -> bool:
        """Whether others are compared with it: the target, or a model that never read the text."""
        return self.model in REFERENCES

    def behind(self, *steps: str, packed: bool = False) -> "Variant":
        """The same model behind some transforms."""
        return self.model_copy(update={"steps": steps, "packed": packed})

    @property
    def words(self) -> str:
        """Corpus, model and form for people, as far as there are any."""
        form = self.form if self.model else ""
        return " ".join(word for word in (self.corpus, self.model, form) if word)
