"""The Python interface: what the commands do, on paths or live objects, with typed results.

Everything that is made lies in a store, so the same call a second time is answered at once. A model
is named by a folder, a hub id or an artefact of the store, by what another call returned, or given
as ``(model, tokenizer)``. No torch until something has to be made.
"""

import importlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from remnant.adapterfiles import adapter_in
from remnant.context import ModelCache, both
from remnant.corpus.forms import BEST
from remnant.errors import UserError
from remnant.evaluate.ready import check_ready
from remnant.flow import plan as planning
from remnant.flow import sources
from remnant.flow.copies import Copy, let_go, readers_of, wanted
from remnant.flow.neverread import check_unread
from remnant.flow.place import Outside, given
from remnant.flow.plan import Input, Node
from remnant.flow.progress import Spent, one_by_one
from remnant.flow.run import make, missing, speaking
from remnant.flow.store import Store, copied
from remnant.functional.segments import Known
from remnant.handles import Audit, Corpus, Model, Scores
from remnant.livefiles import Texts, saved, text_files
from remnant.methods import by_text, chain, step, taking
from remnant.parsing import parse
from remnant.records import (
    FULL,
    DeployResult,
    EndpointSpec,
    Manifest,
    MeasureResult,
    MeasureSpec,
    PrepareResult,
    PrepareSpec,
    Rule,
    SweepSpec,
    TrainResult,
    TrainSpec,
    TransformResult,
    UnlearnResult,
    UnlearnSpec,
    Use,
    Variant,
)
from remnant.report import table, terminal
from remnant.stages.cells import cells_of, read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from remnant.report.prediction import Prediction

    Live = tuple[PreTrainedModel, PreTrainedTokenizerBase]
else:
    Live = tuple

FORMS = ("int8", "int4", "nf4")
AnyCorpus = str | Path | Corpus
AnyModel = str | Path | Model | Live
AnyStore = str | Path | Store
# Whether it is shown how far something is; and what was spent of a larger whole that it belongs to.
Shown = bool | Spent


def prepare(
    *,
    forget: Texts = (),
    retain: Texts = (),
    holdout: Texts = (),
    store: AnyStore = "runs",
    progress: bool = False,
    **settings: Any,
) -> Corpus:
    """A corpus from texts, checked for overlap.

    Args:
        forget: what is to be forgotten: files or folders as paths (``str`` alone, or ``Path``), or
            texts themselves as a list of ``str``, or questions as a list of mappings with
            "question" and "answer".
        retain: what must be kept, as ``forget``.
        holdout: text like the forget text that the model never read, as ``forget``.
        store: where artefacts are kept.
        progress: show on stderr how far it is.
        settings: fields of ``PrepareSpec``; ``lab="news"`` instead of texts makes a fictional one.

    Raises:
        UserError: a file cannot be read, or a setting is wrong.
    """
    kept = opened(store)
    texts = {"forget": forget, "retain": retain, "holdout": holdout}
    paths = {role: text_files(kept, given) for role, given in texts.items() if given}
    spec = parse(PrepareSpec, paths | settings, "prepare")
    node = planning.prepare_node(spec)
    manifest = done(kept, [node], progress)
    return Corpus(kept.path(node.name), manifest.of(PrepareResult))


def train(
    corpus: AnyCorpus,
    *,
    retrain: bool = False,
    store: AnyStore = "runs",
    progress: bool = False,
    **settings: Any,
) -> Model:
    """A model trained on a corpus; with ``retrain`` one that never reads the forget text.

    Args:
        corpus: a prepared one.
        retrain: leave the forget text out.
        store: where artefacts are kept.
        progress: show on stderr how far it is.
        settings: fields of ``TrainSpec``.

    Raises:
        UserError: a setting is wrong, or the loss is not finite.
    """
    kept = opened(store)
    spec = parse(TrainSpec, settings, "train")
    if retrain:
        spec = spec.without_forget()
    return model_of(kept, planning.train_node(spec, corpus_of(kept, corpus)), progress)


def unlearn(
    target: AnyModel,
    corpus: AnyCorpus,
    *,
    dequantize: bool = False,
    store: AnyStore = "runs",
    progress: Shown = False,
    **settings: Any,
) -> Model:
    """A target without the forget text of a corpus.

    Args:
        target: the model that knows it.
        corpus: a prepared one.
        dequantize: decode packed weights first, instead of refusing them.
        store: where artefacts are kept.
        progress: show on stderr how far it is.
        settings: fields of ``UnlearnSpec``: ``method``, ``lr``, ``steps`` and so on.

    Raises:
        UserError: a setting is wrong, or the loss is not finite.
    """
    kept = opened(store)
    spec = parse(UnlearnSpec, settings, "unlearn")
    node = planning.unlearn_node(spec, source_of(kept, target, dequantize), corpus_of(kept, corpus))
    return model_of(kept, node, progress)


def transform(
    model: AnyModel,
    use: str,
    *,
    corpus: AnyCorpus | None = None,
    target: AnyModel | None = None,
    dequantize: bool = False,
    store: AnyStore = "runs",
    progress: bool = False,
    **settings: Any,
) -> Model:
    """What becomes of a model, as a dense copy: quantized to a format, with its codes beside it, or
    changed in another way.

    Args:
        model: the source.
        use: "int4", "nf4", "gptq4-g128" and so on, or "mine.py:function".
        corpus: a prepared one, for what wants text.
        target: the model before unlearning, for what wants its weights.
        dequantize: decode packed weights first, instead of refusing them.
        store: where artefacts are kept.
        progress: show on stderr how far it is.
        settings: fields of the transform's spec, such as ``skip``.

    Raises:
        UserError: unknown transform or setting, or a result that is not finite.
    """
    kept = opened(store)
    text = corpus_of(kept, corpus) if corpus else None
    known = source_of(kept, target, dequantize) if target else None
    node = planning.transform_node(
        taking(step(use, settings), target), source_of(kept, model, dequantize), text, target=known
    )
    return model_of(kept, node, progress)


def deploy(
    model: AnyModel,
    form: str,
    out: str | Path,
    *,
    corpus: AnyCorpus | None = None,
    dequantize: bool = False,
    store: AnyStore = "runs",
    progress: Shown = False,
    **settings: Any,
) -> DeployResult:
    """Write the files of a format that a runtime opens, and remnant.json beside them.

    Args:
        model: the source.
        form: "gguf-q4_k_m", "ct-w4a16", "bnb-nf4" and so on.
        out: a new folder.
        corpus: a prepared one, for formats that want calibration text.
        dequantize: decode packed weights first, instead of refusing them.
        store: where artefacts are kept.
        progress: show on stderr how far it is.
        settings: as for ``transform``.

    Raises:
        UserError: the folder is there already, or the files answer otherwise than the dense copy.
    """
    if Path(out).exists():
        raise UserError(f"{out} exists already.", "Name a new folder.")
    kept = opened(store)
    text = corpus_of(kept, corpus) if corpus else None
    node = planning.deploy_node(step(form, settings), source_of(kept, model, dequantize), text)
    manifest = done(kept, [node], progress)
    copied(kept.path(node.name), manifest, Path(out))
    return manifest.of(DeployResult)


def measure(
    model: AnyModel,
    corpus: AnyCorpus,
    *,
    reference: AnyModel | None = None,
    dequantize: bool = False,
    store: AnyStore = "runs",
    progress: bool = False,
    **settings: Any,
) -> Scores:
    """What a model knows.

    Args:
        model: any, or the address of a server that speaks OpenAI's completions.
        corpus: a prepared one.
        reference: the target, for metrics that compare with it.
        dequantize: measure decoded weights instead of what a runtime makes of the packed ones.
        store: where artefacts are kept.
        progress: show on stderr how far it is.
        settings: fields of ``MeasureSpec``: ``metrics``, ``half`` and so on; ``form_from``, a model
            in whose best form questions are asked.

    Raises:
        UserError: unknown metric, or the model or server cannot be asked.
    """
    kept = opened(store)
    beside = Beside(reference, settings.pop("form_from", None), dequantize)
    node = measured(kept, model, corpus, beside, settings)
    done(kept, [node], progress)
    return scores_of(kept, node)


def audit(
    target: AnyModel,
    unlearned: AnyModel,
    corpus: AnyCorpus,
    *,
    retrain: AnyModel | None = None,
    forms: Sequence[Use] | None = None,
    dequantize: bool = False,
    store: AnyStore = "runs",
    progress: Shown = False,
    **rule: Any,
) -> Audit:
    """Did it stay forgotten, in full precision and in every form?

    Args:
        target: the model before unlearning.
        unlearned: the model that is judged.
        corpus: a prepared one.
        retrain: a model that never read the forget text; without it less can be said.
        forms: formats that the model may be deployed in, and other transforms; "prune20+int4" is
            one behind the other. Without any those that most deploy, none of what a server holds.
        dequantize: decode packed weights first, instead of refusing them.
        store: where artefacts are kept.
        progress: show on stderr how far it is.
        rule: fields of ``Rule``, the limits of the verdict.

    Raises:
        UserError: unknown format, or a model that cannot be opened.
    """
    kept = opened(store)
    named = {"target": target, "retrain": retrain, "unlearned": unlearned}
    models, chains, limits = auditable(kept, named, forms, rule, dequantize)
    about = corpus_of(kept, corpus), _shown(corpus)
    return audited(kept, models, about, chains, limits, progress)


def predict(
    target: AnyModel,
    unlearned: AnyModel,
    grids: Sequence[str] = (),
    *,
    keep: Sequence[str] = (),
    exact: bool = False,
    store: AnyStore = "runs",
) -> "Prediction":
    """Which grids will bring back what was unlearned, from the two checkpoints alone.

    Args:
        target: the model before unlearning.
        unlearned: the model after it.
        grids: short names; without them the usual ones.
        keep: leave weights as they are whose name contains one of these.
        exact: try the grids on all entries of large weights, not on a sample.
        store: where live models are kept.

    Raises:
        UserError: unknown grid, or checkpoints that do not belong together.
    """
    prediction = importlib.import_module("remnant.report.prediction")  # brings a compiler
    kept = opened(store)
    folders = [_read_from(kept, model) for model in (target, unlearned)]
    found: Prediction = prediction.predict(*folders, grids, keep, _silent, exact=exact)
    return found


def repeats(forget: Sequence[str], others: Sequence[str]) -> list[int]:
    """Places of the texts that share a long run of words with some forget text.

    They are no retain text: whoever trains on them teaches again what was to be forgotten.
    """
    known = Known(list(forget))
    return [place for place, text in enumerate(others) if known.share(text)]


def opened(store: AnyStore) -> Store:
    """A store by its folder, made if it is not there."""
    return store if isinstance(store, Store) else Store(Path(store)).open()


def done(store: Store, nodes: Sequence[Node], progress: Shown) -> Manifest:
    """Make what is missing of some pieces and of what they need; the manifest of the last."""
    nodes = planning.ordered(nodes)
    copies, readers = wanted(nodes), readers_of(nodes)
    screen, models = terminal.console(stderr=True), ModelCache()
    check_ready(lacking := missing(store, nodes))
    if progress:
        terminal.tell_code(terminal.code_of(lacking), screen)
    spent = progress if isinstance(progress, Spent) else None
    shown = one_by_one(screen, spent) if progress else nullcontext(lambda node: _silent)
    with shown as report_for, speaking(store) as told:
        for node in nodes:
            heard = both(report_for(node), told(node))
            make(store, node, heard, models, copy=copies.get(node.name, Copy.KEPT))
            let_go(store, readers)
    return store.manifest(nodes[-1].name)


def model_of(store: Store, node: Node, progress: Shown) -> Model:
    """The model that a piece of work makes."""
    manifest = done(store, [node], progress)
    return Model(store.path(node.name), manifest.of(_MADE_BY[node.stage]))


def corpus_of(store: Store, corpus: AnyCorpus) -> Input:
    """A corpus as an input of a piece of work."""
    return given(store, str(corpus.path if isinstance(corpus, Corpus) else corpus), "prepare")


def source_of(store: Store, model: AnyModel, dequantize: bool = False) -> Input:
    """A model as an input of a piece of work; a live one is saved, a packed one decoded first where
    that is wanted.
    """
    place = str(saved(store, *model)) if isinstance(model, tuple) else _shown(model)
    return sources.model(store, place, dequantize=dequantize)


def is_served(model: AnyModel) -> bool:
    """Whether a model is named by the address of a server."""
    return isinstance(model, str) and model.startswith(("http://", "https://"))


class Beside(NamedTuple):
    """Models beside the one that is measured: one to compare with, and one in whose best form
    questions are asked; and whether packed weights are decoded.
    """

    reference: AnyModel | None = None
    form_from: AnyModel | None = None
    dequantize: bool = False


def measured(
    store: Store,
    model: AnyModel,
    corpus: AnyCorpus,
    beside: Beside,
    settings: Mapping[str, Any],
) -> Node:
    """The measurement of a model that stands in no sweep; see ``measure``."""
    served = is_served(model)
    if served and isinstance(settings.get("endpoint", {}), dict):
        settings = {**settings, "endpoint": {"url": model} | settings.get("endpoint", {})}
    spec = parse(MeasureSpec, settings, "measure")
    if beside.form_from and spec.form != BEST:
        raise UserError(
            f"Questions are asked in the form {spec.form} or in that of another model, not both.",
            "Give one of the two.",
        )
    shown, text = spec.endpoint.url if spec.endpoint else _shown(model), corpus_of(store, corpus)
    label = Variant(corpus=_shown(corpus), model=Path(shown).name)
    elicited = None
    if beside.form_from:
        source = source_of(store, beside.form_from, beside.dequantize)
        by = Variant(corpus=_shown(corpus), model=_shown(beside.form_from))
        elicited = planning.elicit_node(spec, source, text, by)
    return planning.measure_node(
        spec,
        None if served else source_of(store, model, beside.dequantize),
        text,
        label,
        source_of(store, beside.reference, beside.dequantize) if beside.reference else None,
        elicited,
    )


def scores_of(store: Store, node: Node) -> Scores:
    """The numbers of a measurement that was made."""
    path = store.path(node.name)
    rows = read_rows(path / "rows.jsonl")
    cells = cells_of(node.label, rows, Rule(), None)
    return Scores(path, tuple(cells), store.manifest(node.name).of(MeasureResult))


def audited(
    store: Store,
    models: Mapping[str, Input | EndpointSpec],
    corpus: tuple[Input, str],
    forms: Sequence[Use],
    rule: Rule,
    progress: Shown,
) -> Audit:
    """The audit on a model beside others.

    Args:
        store: where artefacts are kept.
        models: target, unlearned and, where there is one, retrain; some may be behind a server.
        corpus: and its name in tables.
        forms: transforms, besides full precision; none of what a server holds.
        rule: the limits.
        progress: show on stderr how far it is.
    """
    measured = measurements(models, corpus, forms, rule)
    for node in planning.looks(rule, measured):
        done(store, nodes := planning.ordered([node]), progress)
        if planning.is_settled(node, store.path(node.name)):
            break
    title = "Did it stay forgotten?"
    asked = MeasureSpec(dtype=rule.dtype)
    sweep = SweepSpec(
        name="audit", title=title, corpus=(), unlearn=(), quantizers=tuple(forms), measure=asked,
        rule=rule,
    )  # fmt: skip
    return Audit(table.collect(store, sweep, [n.piece for n in nodes], {}), store)


def measurements(
    models: Mapping[str, Input | EndpointSpec],
    corpus: tuple[Input, str],
    forms: Sequence[Use],
    rule: Rule,
) -> dict[str, Node]:
    """What an audit measures, by model and form; see ``audited``."""
    text, name = corpus
    measured: dict[str, Node] = {}
    target = models["target"]
    asks = MeasureSpec(dtype=rule.dtype)
    if rule.access == "text":
        asks = asks.model_copy(update={"metrics": by_text()})
    label = Variant(corpus=name, model="target")
    elicited = (
        None
        if isinstance(target, EndpointSpec)
        else planning.elicit_node(asks, target, text, label)
    )
    for model, source in models.items():
        if isinstance(source, EndpointSpec):
            label = Variant(corpus=name, model=model)
            asked = asks.model_copy(update={"endpoint": source})
            node = planning.measure_node(asked, None, text, label, elicited=elicited)
            measured[f"{model}/{FULL}"] = node
            continue
        for by in map(chain, (FULL, *forms)):
            label = Variant(corpus=name, model=model).behind(*by.names)
            compared = None if isinstance(target, EndpointSpec) else target
            copy = planning.transformed(by, source, text, label, compared)
            node = planning.measure_node(asks, copy, text, label, elicited=elicited)
            measured[f"{model}/{label.form}"] = node
    return measured


def auditable(
    store: Store,
    named: Mapping[str, AnyModel | None],
    forms: Sequence[Use] | None,
    settings: Mapping[str, Any],
    dequantize: bool,
) -> tuple[dict[str, Input | EndpointSpec], Sequence[Use], Rule]:
    """Models, forms and rule of an audit as a user gives them: what a server holds is audited by
    text, as it is.

    Raises:
        UserError: a model cannot be opened, a setting is wrong, or a form is asked of a server.
    """
    settings = dict(settings)
    more = settings.pop("endpoint", {})
    served = any(is_served(model) for model in named.values() if model is not None)
    if served and forms:
        raise UserError(
            "A server is asked as it is; no form can be made of what it holds.",
            "Leave the forms (-q) out.",
        )
    rule = parse(Rule, ({"access": "text"} if served else {}) | settings, "audit")
    if served and rule.access != "text":
        raise UserError("A server is audited by text alone.", 'Set access to "text".')
    models = {
        role: parse(EndpointSpec, {"url": model} | more, "endpoint")
        if is_served(model)
        else source_of(store, model, dequantize)
        for role, model in named.items()
        if model is not None
    }
    sources.check_alone(models.get("unlearned"))
    check_unread(store, {r: m for r, m in models.items() if not isinstance(m, EndpointSpec)})
    return models, (() if served else FORMS) if forms is None else forms, rule


_MADE_BY: Mapping[str, type[TrainResult | UnlearnResult | TransformResult]] = {
    "train": TrainResult,
    "unlearn": UnlearnResult,
    "transform": TransformResult,
}


def _read_from(store: Store, model: AnyModel) -> str:
    """The folder of a checkpoint; an adapter is read beside its model and not merged."""
    if not isinstance(model, tuple) and adapter_in(_shown(model)):
        return _shown(model)
    return str(_folder(store, source_of(store, model)))


def _folder(store: Store, source: Input) -> Path:
    """Where the files of a model lie."""
    if not isinstance(source, Outside):
        return store.path(source.name)
    if not Path(source.source).exists():
        raise UserError(f"'{source.source}' is on the hub.", "Download it, and name its folder.")
    return Path(source.source)


def _shown(thing: AnyModel | AnyCorpus) -> str:
    """How tables name a model or a corpus."""
    if isinstance(thing, tuple):
        return "live model"
    return str(getattr(thing, "path", thing))


def _silent(done: int, total: int, note: str) -> None:
    """A progress report that nobody reads."""
