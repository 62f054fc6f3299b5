"""From what a spec names to resolved methods, with the vocabulary that each kind of method may
read. No torch.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from remnant.catalog import LOSSES, METHODS
from remnant.corpus import METRIC_GROUPS, METRICS, READERS
from remnant.errors import UserError, unknown
from remnant.formats.base import AnyFormat, Format, Kind
from remnant.formats.table import Named, checked, short
from remnant.levels import levels_of
from remnant.parsing import parse
from remnant.readings import LOSS_READINGS, METRIC_READINGS, Reading, leader, readings_of
from remnant.records import (
    BETWEEN,
    FULL,
    MetricSpec,
    OwnRole,
    PrepareSpec,
    RectifiedSpec,
    SamSpec,
    TermSpec,
    TransformSpec,
    UnlearnSpec,
    Use,
)
from remnant.records.base import Record
from remnant.resolve import Method, is_user_code, keywords, resolve
from remnant.transforms import table
from remnant.transforms.base import Transform

LOSS_READS = tuple(LOSS_READINGS)
_NAMED_ELSEWHERE = ("use", "params", "skip")
READER_READS = ("folder", "own")
# What a transform may read: of every weight by itself, or of the whole model.
BY_WEIGHT = ("weight", "norms", "generator", "target")
TRANSFORM_READS = (*BY_WEIGHT, "model", "tokenizer", "batches", "names", "corpus", "loop")
# The readings that need something beside the model, and what.
NEEDS: Mapping[str, str] = {
    "batches": "corpus",
    "norms": "corpus",
    "corpus": "corpus",
    "target": "target",
}
METRIC_READS = tuple(METRIC_READINGS)


def term_specs(spec: UnlearnSpec) -> tuple[TermSpec, ...]:
    """The terms of a spec.

    Of a named method, a setting goes to every term that has a keyword of its name, and alpha
    weighs the retain terms.

    Raises:
        UserError: unknown method, or a setting that none of its terms has.
    """
    if spec.method is None:
        return spec.terms
    if spec.method not in METHODS:
        raise unknown("method", spec.method, METHODS)
    recipe = METHODS[spec.method]
    own = {use: keywords("loss", use, LOSSES) for use in (*recipe.forget, *recipe.retain)}
    given = spec.params if spec.beta is None else {**spec.params, "beta": spec.beta}
    known = sorted({name for names in own.values() for name in names})
    for name in given:
        if name not in known:
            raise UserError(
                f"'{spec.method}' has no {name}.",
                f"Its settings: {', '.join(known)}." if known else "It has no settings of its own.",
            )

    def term(use: str) -> TermSpec:
        params = {name: value for name, value in given.items() if name in own[use]}
        return TermSpec(use=use, weight=spec.alpha if use in recipe.retain else 1.0, params=params)

    return tuple(map(term, own))


def loss(term: TermSpec) -> Method:
    """The loss of a term; raises UserError if unknown or wrongly tuned."""
    return resolve("loss", term.use, LOSSES, {*LOSS_READS, *term.reads}, term.params)


def loss_reads(term: TermSpec) -> tuple[Reading, ...]:
    """What the loss of a term reads, in the order of its parameters.

    Raises:
        UserError: as ``loss``, or a reading that is none, or hidden states of no layer.
    """
    method = loss(term)
    return readings_of(term.use, method.reads, term.reads, method.params.get("layer"))


def sides_read(spec: UnlearnSpec) -> set[str]:
    """The kinds of training text that the terms of a spec read; raises as ``loss_reads``."""
    return {reading.side for term in term_specs(spec) for reading in loss_reads(term)}


def led_by(term: TermSpec) -> set[str]:
    """The sides that draw the batches which a term reads; raises as ``loss_reads``."""
    return {leader(reading.side) for reading in loss_reads(term)}


def check_dual(spec: UnlearnSpec) -> None:
    """Whether there is something to hold where a run holds its retain terms under bounds.

    Raises:
        UserError: there is none; or as ``loss_reads``.
    """
    held = [term for term in term_specs(spec) if led_by(term) == {"retain"}]
    if spec.dual and not held:
        raise UserError(
            "dual holds retain terms under a bound, and the run has none.",
            "Leave it out, or take a method with a retain term, such as npo_gdr.",
        )


def reads_reinforced(spec: UnlearnSpec) -> bool:
    """Whether a term of a spec reads the reinforced model; raises as ``loss_reads``."""
    return any(r.model == "reinforced" for term in term_specs(spec) for r in loss_reads(term))


def check_reinforced(spec: UnlearnSpec) -> None:
    """Whether a run has the reinforced model that its terms read, and none that nobody reads.

    Raises:
        UserError: it has not; or as ``loss_reads``.
    """
    wanted, what = reads_reinforced(spec), spec.method or "+".join(t.use for t in spec.terms)
    if wanted and not spec.reinforced:
        raise UserError(
            f"'{what}' reads a model that was trained once more on the forget text.",
            "Make it by train CORPUS --base TARGET --set 'splits=[\"forget\"]', and name it as "
            "reinforced.",
        )
    if spec.reinforced and not wanted:
        raise UserError(f"'{what}' reads no reinforced model.", "Leave it out.")


def check_update(spec: UnlearnSpec) -> None:
    """Whether a run has the terms that its way of stepping tells apart.

    Raises:
        UserError: one side is missing, or a term reads both; or as ``loss_reads``.
    """
    if not isinstance(spec.update, SamSpec | RectifiedSpec):
        return
    sides = [led_by(term) for term in term_specs(spec)]
    use = spec.update.use
    if {"forget"} not in sides:
        raise UserError(
            f"update = {use} looks along a term that reads forget text only, and the run has none.",
            "Take a method with such a term, such as npo_gdr.",
        )
    if use == "rectified" and ({"retain"} not in sides or {"forget", "retain"} in sides):
        raise UserError(
            "update = rectified sets forget terms against retain terms, and every term of the run "
            "has to be one of the two.",
            "Take a method with a retain term, such as npo_gdr.",
        )


def metric(use: str | MetricSpec) -> Method:
    """A built-in metric by name or a user's metric.

    Raises UserError if unknown or wrongly tuned.
    """
    spec = (
        MetricSpec(use=use, params=dict(METRICS[use].params) if use in METRICS else {})
        if isinstance(use, str)
        else use
    )
    return resolve("metric", spec.use, METRICS, METRIC_READS, spec.params)


def reader(spec: PrepareSpec) -> Method:
    """What reads the folder of a spec.

    Raises:
        UserError: an unknown benchmark or option, or text of the user's beside a benchmark that
            reads none.
    """
    found = resolve("benchmark", spec.benchmark, READERS, READER_READS, spec.options)
    if spec.forget and "own" not in found.reads:
        raise UserError(
            f"A folder of the benchmark '{spec.benchmark}' is a source of its own.",
            "Leave --forget, --retain and --holdout out.",
        )
    return found


def writes(name: str) -> bool:
    """Whether a built-in metric reads what a model has written, one text for each item."""
    return name in METRICS and "generated" in metric(name).reads


def by_text() -> tuple[str, ...]:
    """The built-in metrics that a verdict reads and that need nothing but what a model writes."""
    counted = (name for name, m in METRICS.items() if m.role != "shown")
    return tuple(filter(_by_text, counted))


def _by_text(name: str) -> bool:
    return {METRIC_READINGS[read].what for read in metric(name).reads} <= {"given", "writing"}


def own_roles(extra: Iterable[MetricSpec]) -> dict[str, OwnRole]:
    """What metrics of the user's count as in a verdict, by the name that their rows bear."""
    return {m.name: m.role for m in extra if m.role}


def metric_names(names: Iterable[str]) -> tuple[str, ...]:
    """Metrics by name, the groups among them replaced by their members, each once."""
    return tuple(dict.fromkeys(m for name in names for m in METRIC_GROUPS.get(name, (name,))))


class Step(NamedTuple):
    """One transform that has been looked up: its spec with all parameters, its function, and what
    the table says of it, None of a user's own.
    """

    spec: TransformSpec
    method: Method
    kind: Kind | None
    params: Record | None

    @property
    def format(self) -> Named[AnyFormat] | None:
        """The format of weights and its parameters, if it is one."""
        if not isinstance(self.kind, Format) or self.params is None:
            return None
        return Named(self.kind, self.params)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What it needs beside the model, of "corpus" and "target"."""
        return tuple(dict.fromkeys(NEEDS[name] for name in self.method.reads if name in NEEDS))


def step(use: str | TransformSpec, defaults: Mapping[str, Any] | None = None) -> Step:
    """A transform by its short name ("int4-g64"), its table name, a user's function, or a spec.

    Args:
        use: what names it.
        defaults: other fields of the spec of one that is given by a name.

    Raises:
        UserError: unknown name or parameter, or a parameter that its library would refuse.
    """
    spec = use if isinstance(use, TransformSpec) else _by_name(use, defaults or {})
    found = resolve("transform", spec.use, table.TRANSFORMS, TRANSFORM_READS, spec.params)
    kind = table.TRANSFORMS.get(spec.use)
    changed: dict[str, Any] = {"params": dict(found.params)}
    if isinstance(kind, Transform) and kind.everything and "skip" not in spec.model_fields_set:
        changed["skip"] = ()
    params = checked(kind, found.params).params if kind else None
    return Step(spec.model_copy(update=changed), found, kind, params)


def taking(found: Step, target: object) -> Step:
    """A transform, with the target that was given for it, if one was.

    Raises:
        UserError: it takes none.
    """
    if target is not None and "target" not in found.inputs:
        named = (key for key in table.TRANSFORMS if "target" in step(key).inputs)
        raise UserError(
            f"The transform '{shown(found.spec)}' takes no target.",
            f"Leave it out; those that take one: {', '.join(named)}.",
        )
    return found


def _by_name(use: str, defaults: Mapping[str, Any]) -> TransformSpec:
    if named := table.by_name(use):
        own = {"use": named.format.key, "params": named.params.model_dump()}
    elif is_user_code(use, ()) or use in table.TRANSFORMS:
        own = {"use": use}
    else:
        raise unknown("transform", use, {FULL, *table.NAMES, *table.TRANSFORMS} - {use})
    return parse(TransformSpec, own | dict(defaults), "transform")


def grid(use: str) -> Step:
    """A transform that rounds every weight by itself, and by nothing but the weight.

    Raises:
        UserError: as ``step``, or it reads more than the weight.
    """
    found = step(use)
    if found.method.reads != ("weight",):
        raise UserError(
            f"'{use}' is no grid that rounds a weight by itself: it reads "
            f"{', '.join(found.method.reads)}.",
            "Name grids such as int4-g128, nf4 or nvfp4.",
        )
    return found


def levels(by: Step) -> tuple[float, ...]:
    """The levels of a grid in units of a block's scale, ascending.

    Raises:
        UserError: its levels are not known, or its scales hang on more than the largest magnitudes
            of blocks.
    """
    known = by.format.format.grid if by.format else None
    found = known(by.params) if known else None
    table = levels_of(found.kind, found.low, found.high) if found else ()
    if not table:
        raise UserError(
            f"The cells of '{by.spec.use}' are not known, so nothing can be promised about them.",
            "Name int4-g128 (any bits, tensor, rows or groups), nf4, fp4, nvfp4, mxfp4 or q4_0, "
            "and measure the others.",
        )
    return table


def check_lasting(spec: UnlearnSpec) -> dict[str, str]:
    """Identities of the grids that a run trains on or promises, all of which are looked at.

    Raises:
        UserError: as ``grid`` and ``levels``.
    """
    trained = [grid(use) for use in spec.grids.use] if spec.grids else []
    promised = [grid(use) for use in spec.promise.use] if spec.promise else []
    noisy = spec.grids is not None and spec.grids.by == "noise"
    for found in (*promised, *(trained if noisy else ())):
        levels(found)
    return {found.spec.use: found.method.identity for found in (*trained, *promised)}


class Chain(NamedTuple):
    """Transforms in the order in which they are applied, none for the model as it is, and what
    tables call each of them.
    """

    names: tuple[str, ...]
    steps: tuple[Step, ...]


def chain(use: Use, defaults: Mapping[str, Any] | None = None) -> Chain:
    """The transforms that a name or a list of them stands for: "full" none, "prune20+int4" two.

    Raises:
        UserError: as ``step``.
    """
    parts = steps(use)
    return Chain(tuple(map(shown, parts)), tuple(step(part, defaults) for part in parts))


def steps(use: Use) -> list[str | TransformSpec]:
    """What names the steps of a chain, in order: those of a list, or of a name with "+" between
    them; a user's function that is named alone is one step.
    """
    if isinstance(use, tuple):
        return list(use)
    if isinstance(use, TransformSpec) or is_user_code(use, table.TRANSFORMS):
        return [use]
    return [part for part in use.split(BETWEEN) if part != FULL]


def shown(use: str | TransformSpec) -> str:
    """A step as tables name it: by its short name if it has one, what is set otherwise than that
    says, and what it leaves alone.
    """
    if isinstance(use, str):
        return use
    usual = TransformSpec(use=use.use)
    own = {n: getattr(use, n) for n in TransformSpec.model_fields if n not in _NAMED_ELSEWHERE}
    name, settings = short(use.use, use.params, table.TRANSFORMS)
    settings |= {n: v for n, v in own.items() if v != getattr(usual, n)}
    kept = [word.strip(".") for word in use.skip if word not in usual.skip]
    without = [f"without {', '.join(kept)}"] if kept else []
    return " ".join([name, *(f"{k}={v}" for k, v in settings.items()), *without])
