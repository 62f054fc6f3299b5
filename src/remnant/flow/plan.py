"""From a sweep to a graph of pieces of work, each with a key made of everything that decides its
result. No torch.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from remnant.catalog import LOSSES
from remnant.corpus import METRICS, READERS, beside, brought
from remnant.corpus.contents import look
from remnant.corpus.forms import BEST, check_form
from remnant.corpus.hub import PREFIX
from remnant.corpus.own_text import ROLES
from remnant.errors import UserError
from remnant.flow.alternatives import check_alternatives, read_alternatives
from remnant.flow.audits import audit_node as audit_node
from remnant.flow.audits import is_settled as is_settled
from remnant.flow.audits import looks as looks
from remnant.flow.neverread import check_unread
from remnant.flow.node import UNNAMED
from remnant.flow.node import Input as Input
from remnant.flow.node import Node as Node
from remnant.flow.place import Outside, check_hub
from remnant.flow.sources import check_plain, merge_node, outside_model
from remnant.flow.sweepnames import named_twice, run_name
from remnant.flow.tokenweights import read_token_weights
from remnant.formats import table as formats
from remnant.functional.patterns import chosen
from remnant.methods import (
    Chain,
    Step,
    check_dual,
    check_lasting,
    check_reinforced,
    check_update,
    loss,
    metric,
    metric_names,
    reader,
    shown,
    step,
    steps,
    term_specs,
)
from remnant.records import (
    FULL,
    ElicitSpec,
    ExplainSpec,
    MeasureSpec,
    MetricSpec,
    PrepareSpec,
    SweepSpec,
    TrainSpec,
    UnlearnSpec,
    Use,
    Variant,
    patterns_in,
    saves_apart,
)
from remnant.resolve import is_user_code
from remnant.transforms.table import TRANSFORMS
from remnant.weightfiles import entries_of

T = TypeVar("T")
# More measured models in one sweep than this take months.
MOST_MEASURED = 100_000


def prepare_node(spec: PrepareSpec, label: Variant = UNNAMED) -> Node:
    """A corpus; files from outside enter by their digests.

    Raises:
        UserError: a file is missing, or the benchmark or one of its options is unknown.
    """
    inputs: dict[str, Input] = {}
    methods: dict[str, str] = {}
    plain = PrepareSpec.model_validate(spec.model_dump(exclude={"name"}))
    for role in ROLES:
        for i, name in enumerate(getattr(spec, role)):
            look(name, role)  # before its digest is taken, which reads all of it
            if name.startswith(PREFIX):
                check_hub(name)
            inputs[f"{role}-{i}"] = Outside(name)
    if spec.folder:
        inputs["folder"] = _existing(spec.folder, "corpus")
        method = reader(spec)
        methods = {spec.benchmark: method.identity}
        plain = plain.model_copy(update={"options": dict(method.params)})
    if spec.tokenizer and Path(spec.tokenizer).is_dir():
        inputs["tokenizer"] = Outside(spec.tokenizer)
    return Node("prepare", plain, inputs, methods, label)


def _existing(name: str, role: str) -> Outside:
    if not Path(name).exists():
        raise UserError(
            f"The {role} file {name} does not exist.",
            "Check the path; it is relative to the current folder.",
        )
    return Outside(name)


def train_node(spec: TrainSpec, corpus: Input, label: Variant = UNNAMED) -> Node:
    """A model trained on some splits of a corpus.

    Raises:
        UserError: the base's weights are packed, no split is left, or no such form is there.
    """
    _check_training(spec)
    inputs: dict[str, Input] = {"corpus": corpus}
    if spec.base:
        inputs["base"] = outside_model(spec.base, dequantize=spec.dequantize)
        check_plain(inputs["base"], "packed weights cannot be trained")
    return Node("train", spec, inputs, label=label)


def _check_training(spec: TrainSpec) -> None:
    if not spec.splits:
        raise UserError("No split is left to train on.", "Name splits beside forget.")
    check_form(spec.form)
    if spec.form == BEST:
        raise UserError(
            "Before a model is trained no form is the best.",
            'Name the form of train, or leave it out for "published".',
        )


def unlearn_node(
    spec: UnlearnSpec,
    target: Input,
    corpus: Input,
    label: Variant = UNNAMED,
    elicited: Input | None = None,
    losses: Mapping[str, str] | None = None,
) -> Node:
    """A model unlearned from a target.

    ``elicited``: in which form the target is asked, if the best one is wanted; without it that is
    chosen here. ``losses``: their identities, where they were looked up before.

    Raises:
        UserError: the target's weights are packed, or a loss or form is unknown.
    """
    check_form(spec.form)
    check_plain(target, "packed weights cannot be trained")
    plain = UnlearnSpec.model_validate(spec.model_dump(exclude={"name"}))
    inputs = {"target": target, "corpus": corpus}
    if plain.form == BEST:
        inputs["elicited"] = elicited or elicit_node(plain, target, corpus, label)
    if plain.alternatives:
        inputs["alternatives"] = Outside(plain.alternatives)
    if plain.reinforced:
        inputs["reinforced"] = outside_model(plain.reinforced)
        check_plain(inputs["reinforced"], "packed weights cannot be compared with others")
    if plain.token_weights:
        inputs["token_weights"] = Outside(plain.token_weights)
    return Node("unlearn", plain, inputs, _losses(plain) if losses is None else losses, label)


def _whole(node: Node, target: Input, label: Variant) -> Node:
    """What an unlearning run leaves as a model: an adapter merged into the target."""
    assert isinstance(node.spec, UnlearnSpec)
    return merge_node(target, node, label) if saves_apart(node.spec.train) else node


# What a transform lacks without an input, and how it is given.
_LACKS = {"corpus": "needs text", "target": "needs the model before unlearning"}
_GIVE = {"corpus": "Give a prepared corpus with --data.", "target": "Give it with --target."}


def transform_node(
    by: Step,
    model: Input,
    corpus: Input | None,
    label: Variant = UNNAMED,
    target: Input | None = None,
) -> Node:
    """A dense copy of a model as one transform leaves it.

    The corpus gives text to the transforms that want it, the target its weights.

    Raises:
        UserError: one of these is wanted and not there, or weights are packed already.
    """
    check_plain(model, "quantizing it again would round twice")
    spec, inputs = by.spec, {"model": model}
    beside = {"corpus": corpus, "target": target}
    for role in by.inputs:
        source = beside[role]
        if source is None:
            raise UserError(f"The transform '{spec.use}' {_LACKS[role]}.", _GIVE[role])
        check_plain(source, "packed weights cannot be mixed with others")
        inputs[role] = source
    return Node("transform", spec, inputs, {spec.use: by.method.identity}, label)


def transformed(
    by: Chain,
    model: Input,
    corpus: Input | None,
    label: Variant = UNNAMED,
    target: Input | None = None,
) -> Input:
    """A model as a chain of transforms leaves it, the copy of a copy in their order: itself where
    the chain is empty.
    """
    for one in by.steps:
        model = transform_node(one, model, corpus, label, target)
    return model


def deploy_node(by: Step, model: Input, corpus: Input | None, label: Variant = UNNAMED) -> Node:
    """The files of a format that a runtime opens.

    Raises:
        UserError: no runtime opens this transform's result, or calibration text is missing.
    """
    _check_opened(by)
    dense = transform_node(by, model, corpus, label)
    return Node("deploy", by.spec, {"model": model, "dense": dense}, dense.methods, label)


def _check_opened(by: Step) -> None:
    if by.format is None or not by.format.format.saver:
        name = shown(by.spec)
        what = "a grid to study" if by.format else "no format of weights"
        raise UserError(
            f"No runtime opens '{name}': it is {what}.",
            f"Deploy one of {formats.instead_of(name)}.",
        )
    if fault := by.format.format.unopened(by.format.params):
        raise UserError(fault, "Leave it out.")


class Asking(NamedTuple):
    """What is measured, looked up once for all models of a sweep.

    ``methods``: identities by name; ``reads``: all that its metrics read.
    """

    spec: MeasureSpec
    methods: Mapping[str, str]
    reads: frozenset[str]


def asking(spec: MeasureSpec) -> Asking:
    """The metrics of a measurement, looked up.

    Raises:
        UserError: unknown metric or form.
    """
    check_form(spec.form)
    names = metric_names(spec.metrics)
    found = {name: metric(name) for name in (*names, *beside(names), *brought())}
    found |= {m.use: metric(m) for m in spec.extra}
    measured = [*names, *map(attrgetter("use"), spec.extra)]
    return Asking(
        spec.model_copy(update={"metrics": names}),
        {name: method.identity for name, method in found.items()},
        frozenset(read for name in measured for read in found[name].reads),
    )


def measure_node(
    by: MeasureSpec | Asking,
    model: Input | None,
    corpus: Input,
    label: Variant = UNNAMED,
    reference: Input | None = None,
    elicited: Input | None = None,
) -> Node:
    """Rows of one model on one corpus; the model is None where a server is asked.

    ``elicited``: in which form questions are asked, if the best one is wanted; without it that is
    chosen on the model itself.

    Raises:
        UserError: unknown metric or form.
    """
    spec, methods, reads = by if isinstance(by, Asking) else asking(by)
    inputs: dict[str, Input] = {"corpus": corpus} | ({"model": model} if model else {})
    if spec.form == BEST and elicited is None and model and not spec.engine:
        elicited = elicit_node(spec, model, corpus, label)
    if spec.form == BEST and elicited:
        inputs["elicited"] = elicited
    if reference and reads & {"reference", "reference_on_generated"}:
        inputs["reference"] = reference
    return Node("measure", spec, inputs, methods, label)


def elicit_node(
    spec: MeasureSpec | UnlearnSpec, model: Input, corpus: Input, label: Variant = UNNAMED
) -> Node:
    """In which form a model is to be asked, and all that are compared with it."""
    inputs = {"model": model, "corpus": corpus}
    own = ElicitSpec(system=spec.system, dtype=getattr(spec, "dtype", None))
    return Node("elicit", own, inputs, label=label)


def explain_node(
    target: Input,
    unlearned: Input,
    q_target: Input,
    q_unlearned: Input,
    label: Variant = UNNAMED,
) -> Node:
    """What a form left of an update."""
    inputs = {
        "target": target,
        "unlearned": unlearned,
        "q_target": q_target,
        "q_unlearned": q_unlearned,
    }
    return Node("explain", ExplainSpec(), inputs, label=label)


def plan(sweep: SweepSpec) -> list[Node]:
    """All pieces of work of a sweep, each after what it needs, none twice.

    Raises:
        UserError: with all unknown methods, transforms and metrics in one message.
    """
    _check_size(sweep)
    if sweep.rule.stop:
        raise UserError(
            "A sweep plans all tests before the first is made, so it stops at none.",
            "Leave stop out of its rule; `remnant audit --stop` is for single models.",
        )
    forms = _forms(sweep)
    wanted: list[Input] = []
    for corpus_spec in sweep.corpus:
        name = corpus_spec.name or corpus_spec.lab or "corpus"
        corpus = prepare_node(corpus_spec, Variant(corpus=name))
        for seed in sweep.seeds:
            measured = _measured(sweep, forms, corpus, name, seed)
            # Models first: unlearning is the longest chain, and measuring fills the other workers
            # meanwhile.
            models = [n.inputs["model"] for n in measured.values() if n.label.in_full]
            wanted += [
                *models,
                *measured.values(),
                audit_node(sweep.rule, measured, sweep.measure.extra),
                *explained(measured),
            ]
    return ordered(wanted)


def explained(measured: Mapping[str, Node]) -> list[Node]:
    """For every transformed unlearned model among some measured ones: what is left of its update,
    from dense copies.
    """
    dense = {n.label: n.inputs["model"] for n in measured.values() if not n.label.packed}
    copies = {(about.model, about.steps): source for about, source in dense.items()}
    return [
        explain_node(
            copies["target", ()],
            copies[about.model, ()],
            copies["target", about.steps],
            source,
            about,
        )
        for about, source in dense.items()
        if not about.in_full and not about.is_reference
    ]


def ordered(nodes: Iterable[Input]) -> list[Node]:
    """Pieces of work and all that they need, each after what it needs, none twice."""
    found: dict[str, Node] = {}
    for node in nodes:
        _collect(node, found)
    return list(found.values())


def _collect(node: Input, found: dict[str, Node]) -> None:
    if not isinstance(node, Node) or node.name in found:
        return
    for source in node.inputs.values():
        _collect(source, found)
    found[node.name] = node


class Forms(NamedTuple):
    """All that a sweep names, looked up once: the chains behind which every model is measured, by
    name the formats whose own kernels are measured too, what is asked, and by the name of a run
    the identities of its losses.
    """

    chains: tuple[Chain, ...]
    packed: Mapping[str, Step]
    asked: Asking
    losses: Mapping[str, Mapping[str, str]]


def _measured(
    sweep: SweepSpec, forms: Forms, corpus: Node, name: str, seed: int
) -> dict[str, Node]:
    models = _models(sweep, forms, corpus, name, seed)
    target, whole = models["target"]
    elicited = elicit_node(sweep.measure, target, corpus, whole)
    nodes: dict[str, Node] = {}
    for model, (source, about) in models.items():
        copies = {
            label: transformed(by, source, corpus, label, target)
            for by in forms.chains
            if (label := about.behind(*by.names))
        }
        for use, step_ in forms.packed.items():
            label = about.behind(use, packed=True)
            copies[label] = deploy_node(step_, source, corpus, label)
        for label, copy in copies.items():
            node = measure_node(forms.asked, copy, corpus, label, target, elicited)
            nodes[f"{model}/{label.form}"] = node
    return nodes


def _uses(sweep: SweepSpec) -> list[Use]:
    return [FULL, *(q for q in sweep.quantizers if q != FULL)]


def _models(
    sweep: SweepSpec, forms: Forms, corpus: Node, name: str, seed: int
) -> dict[str, tuple[Input, Variant]]:
    trained = Variant(corpus=name, weights=sweep.train.weights, seed=sweep.train.seed)
    base = trained.model_copy(update={"model": "target"})
    target: Input = (
        outside_model(sweep.target, dequantize=sweep.dequantize)
        if sweep.target
        else train_node(sweep.train, corpus, base)
    )
    models: dict[str, tuple[Input, Variant]] = {"target": (target, base)}
    unread = trained.model_copy(update={"model": "retrain"})
    if sweep.retrain:
        given = outside_model(sweep.retrain, dequantize=sweep.dequantize)
        check_unread(None, {"target": target, "retrain": given})
        models["retrain"] = (given, unread)
    elif not sweep.target:
        models["retrain"] = (train_node(sweep.train.without_forget(), corpus, unread), unread)
    elicited = elicit_node(sweep.measure, target, corpus, base)
    for run in sweep.unlearn:
        label = Variant(
            corpus=name,
            model=run_name(run),
            method=run.method or "+".join(t.use for t in run.terms),
            weights=run.weights,
            seed=seed,
        )
        told = run.model_copy(update={"seed": seed, **_asked(run, sweep.measure)})
        losses = forms.losses[run_name(run)]
        node = unlearn_node(told, target, corpus, label, elicited, losses)
        models[run_name(run)] = (_whole(node, target, label), label)
    return models


def _asked(run: UnlearnSpec, measure: MeasureSpec) -> dict[str, str]:
    """How a run's questions are asked: as the models are measured, where it says nothing else."""
    form = measure.form if run.form == BEST else run.form
    return {"form": form, "system": run.system or measure.system}


def check_losses(spec: UnlearnSpec) -> None:
    """Look at all that an unlearning run names, before there is a model or a corpus for it.

    Raises:
        UserError: a loss, grid or form is unknown, or a file that it names cannot be read.
    """
    check_form(spec.form)
    _losses(spec)


def _losses(spec: UnlearnSpec) -> dict[str, str]:
    """Identity of every loss and grid of a run, all of whose settings and files are looked at."""
    check_alternatives(spec, read_alternatives(spec.alternatives) if spec.alternatives else None)
    if spec.token_weights:
        read_token_weights(spec.token_weights)
    check_dual(spec)
    check_update(spec)
    check_reinforced(spec)
    return {t.use: loss(t).identity for t in term_specs(spec)} | check_lasting(spec)


def _check_layers(run: UnlearnSpec, target: str) -> None:
    """Layers that a run names are weights of the folder that it starts from, if it is one."""
    patterns, folder = patterns_in(run.train), Path(target)
    if target and patterns and any(folder.glob("model*.safetensors")):
        chosen(patterns, entries_of(folder))


def _check_size(sweep: SweepSpec) -> None:
    """Refuse more pieces of work than anyone can mean, before the first is made."""
    copies = len(sweep.quantizers) + len(sweep.packed) + 1
    count = len(sweep.corpus) * len(sweep.seeds) * (len(sweep.unlearn) + 2) * copies
    if count > MOST_MEASURED:
        raise UserError(
            f"{sweep.name} asks for {count} measured models, more than {MOST_MEASURED}.",
            "Split it into several sweeps.",
        )


def user_code(sweep: SweepSpec) -> list[str]:
    """What of a sweep is code that the user brings: it runs when the sweep does, never before."""
    losses = [t.use for run in sweep.unlearn for t in run.terms]
    grids = [
        part if isinstance(part, str) else part.use for q in sweep.quantizers for part in steps(q)
    ]
    named = [
        *((use, LOSSES) for use in losses),
        *((use, TRANSFORMS) for use in grids),
        *((m.use, METRICS) for m in sweep.measure.extra),
        *((c.benchmark, READERS) for c in sweep.corpus if c.folder),
    ]
    return list(dict.fromkeys(use for use, known in named if is_user_code(use, known)))


def _forms(sweep: SweepSpec) -> Forms:
    """Look up all that a sweep names.

    Raises:
        UserError: with all that is unknown, wrongly tuned or named twice in one message.
    """
    faults: list[str] = []

    def tried(look_up: Callable[[], T]) -> list[T]:
        try:
            return [look_up()]
        except UserError as error:
            faults.append(str(error))
            return []

    losses: dict[str, Mapping[str, str]] = {}
    for run in sweep.unlearn:
        losses |= {run_name(run): found for found in tried(partial(_losses, run))}
        tried(partial(check_form, run.form))
        tried(partial(_check_layers, run, sweep.target or ""))
    looked_up: list[Chain] = []
    for use in _uses(sweep):
        parts = steps(use)
        found = [tried(partial(step, part, sweep.transform)) for part in parts]
        looked_up.append(Chain(tuple(map(shown, parts)), tuple(chain.from_iterable(found))))
    packed = {use: tried(partial(deployed, use, sweep.transform)) for use in sweep.packed}
    metrics: tuple[str | MetricSpec, ...] = (
        *metric_names(sweep.measure.metrics),
        *sweep.measure.extra,
    )
    if not sweep.target:
        tried(partial(_check_training, sweep.train))
    for corpus in sweep.corpus:
        if corpus.folder:
            tried(partial(reader, corpus))
    for named in metrics:
        tried(partial(metric, named))
    tried(partial(check_form, sweep.measure.form))
    if faults := [*faults, *named_twice(sweep)]:
        listed = "".join(f"\n  - {fault}" for fault in faults)
        raise UserError(
            faults[0] if len(faults) == 1 else f"{sweep.name} has {len(faults)} faults:{listed}"
        )
    return Forms(
        tuple(looked_up),
        {use: by for use, (by,) in packed.items()},
        asking(sweep.measure),
        losses,
    )


def deployed(use: str, defaults: Mapping[str, Any]) -> Step:
    """A format whose files a runtime opens, by its name.

    Raises:
        UserError: unknown name or parameter, or no runtime opens them.
    """
    by = step(use, defaults)
    _check_opened(by)
    return by
