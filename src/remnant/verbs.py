"""The bodies of the commands. No torch until something has to be made."""

import importlib
import json
import os
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from remnant import api, methods
from remnant import score as scoring
from remnant.catalog import STAGE_VERSIONS
from remnant.corpus import READERS
from remnant.errors import Interrupted, UserError, some
from remnant.flow import garbage, sources
from remnant.flow import plan as planning
from remnant.flow.cluster import cluster_hands
from remnant.flow.copies import let_go, readers_of
from remnant.flow.failures import failures, forget_failures
from remnant.flow.hands import Hands, default_workers, local_hands
from remnant.flow.place import given
from remnant.flow.plan import Node
from remnant.flow.progress import counting, describe, telling, watch
from remnant.flow.run import (
    clean_up,
    missing,
    repair,
)
from remnant.flow.store import Store, copied, disk_errors
from remnant.flow.sweepfile import override, read_sweep
from remnant.flow.together import ALONE, Spread, on_devices
from remnant.parsing import parse
from remnant.quiet import unchanged
from remnant.records import (
    DeployResult,
    DequantizeResult,
    ElicitResult,
    PrepareResult,
    PrepareSpec,
    SweepSpec,
    TrainSpec,
    TransformResult,
    UnlearnResult,
    UnlearnSpec,
)
from remnant.report import runs, table, terminal
from remnant.report.pooled import over_seeds
from remnant.secrecy import redacted

GONE, NOT_GONE, OPEN = 0, 3, 4


def make_here(store: Store, nodes: Sequence[Node]) -> Path:
    """Make some pieces in this process, in order; returns the folder of the last."""
    api.done(store, nodes, progress=True)
    path = store.path(nodes[-1].name)
    print(path)
    return path


def estimate(store: Store, nodes: Sequence[Node], spread: Spread = ALONE) -> None:
    """Say what some pieces would need of each device, and run nothing."""
    importlib.import_module("remnant.estimate.told").tell(store, nodes, spread)


def overlaid(settings: Sequence[str], **options: Any) -> dict[str, Any]:
    """The options that were given, with ``key=value`` settings over them."""
    data = {k: v for k, v in options.items() if v not in (None, ())}
    for setting in settings:
        override(data, setting)
    return data


def prepare(store: Store, settings: Sequence[str], **options: Any) -> None:
    """Make a corpus and say what it lacks."""
    node = _corpus_node(settings, options)
    make_here(store, [node])
    _tell_card(store.manifest(node.name).of(PrepareResult))


def survey(settings: Sequence[str], **options: Any) -> None:
    """Say what a corpus would be made of, and write nothing."""
    node = _corpus_node(settings, options)
    with unchanged():
        stage = importlib.import_module("remnant.stages.survey")  # brings the tokenizers
        # At once, so that it stands before a refusal wherever both streams meet.
        card = stage.survey(node.spec, partial(print, flush=True))
    _tell_card(card)
    print("Nothing was written.")


def _corpus_node(settings: Sequence[str], options: dict[str, Any]) -> Node:
    given = {name: options.pop(name) for name in READERS if options.get(name)}
    if len(given) + bool(options.get("folder")) > 1:
        raise UserError(
            "A corpus comes from one folder.", "Give one of --folder, --" + ", --".join(READERS)
        )
    for name, folder in given.items():
        options |= {"benchmark": name, "folder": folder}
    return planning.prepare_node(parse(PrepareSpec, overlaid(settings, **options), "prepare"))


def _tell_card(card: PrepareResult) -> None:
    """What is in a corpus, what a user should look at, and what it lacks."""
    print("  ".join(f"{name} {count}" for name, count in card.counts.items()))
    for line in terminal.warnings_of(card):
        print(line)
    for name, reason in card.absent.items():
        print(f"Absent: {name}, because {reason}.")


def train(store: Store, corpus: str, settings: Sequence[str], **options: Any) -> int | None:
    """Train a target, or a retrain model that never reads the forget split, on some devices."""
    return on_devices(options, lambda **own: _train(store, corpus, settings, **own))


def _train(
    store: Store, corpus: str, settings: Sequence[str], retrain: bool, **options: Any
) -> None:
    only_told = options.pop("estimate", False)
    spec = parse(TrainSpec, overlaid(settings, **options), "train")
    if retrain:
        spec = spec.without_forget()
    node = planning.train_node(spec, given(store, corpus, "prepare"))
    estimate(store, [node], only_told) if only_told else make_here(store, [node])


def unlearn(store: Store, target: str, data: str, **options: Any) -> int | None:
    """Unlearn the forget split of a corpus from a target, on some devices."""
    return on_devices(options, lambda **own: _unlearn(store, target, data, **own))


def _unlearn(store: Store, target: str, data: str, settings: Sequence[str], **options: Any) -> None:
    dequantize, only_told = options.pop("dequantize", False), options.pop("estimate", False)
    spec = parse(UnlearnSpec, overlaid(settings, **options), "unlearn")
    corpus = given(store, data, "prepare")
    node = planning.unlearn_node(spec, sources.model(store, target, dequantize=dequantize), corpus)
    if only_told:
        return estimate(store, [node], only_told)
    make_here(store, [node])
    print(store.manifest(node.name).of(UnlearnResult).said)


def transform(
    store: Store,
    model: str,
    use: str,
    data: str | None,
    target: str | None,
    settings: Sequence[str],
    **options: bool,
) -> None:
    """Make a dense copy of a model as a transform leaves it."""
    dequantize, only_told = options.get("dequantize", False), options.get("estimate", False)
    corpus = given(store, data, "prepare") if data else None
    known = sources.model(store, target, dequantize=dequantize) if target else None
    found = methods.taking(methods.step(use, overlaid(settings)), target)
    source = sources.model(store, model, dequantize=dequantize)
    node = planning.transform_node(found, source, corpus, target=known)
    if only_told:
        return estimate(store, [node])
    make_here(store, [node])
    said = store.manifest(node.name).of(TransformResult)
    sample = said.calibration
    if said.left_out:
        print(f"Left as they are ({len(said.left_out)}): {some(said.left_out)}.")
    for doubt in sample.warnings if sample else ():
        print(f"Warning: {doubt}.")


def merge(store: Store, adapter: str, dequantize: bool = False) -> None:
    """Merge an adapter into its model."""
    node = sources.model(store, adapter, dequantize=dequantize)
    if not isinstance(node, Node):
        raise UserError(f"{adapter} is no adapter.", "Name a folder that peft has written.")
    make_here(store, [node])


def dequantize(store: Store, model: str) -> None:
    """Decode a packed model to a dense one."""
    node = sources.model(store, model, dequantize=True)
    if not isinstance(node, Node) or node.stage != "dequantize":
        raise UserError(f"{model} is not packed.", "Use it as it is.")
    make_here(store, [node])
    apart = store.manifest(node.name).of(DequantizeResult).against_packed
    if apart:
        print(f"Top token of the packed model at {100 * apart.same_top:.1f} % of places.")


def deploy(
    store: Store,
    model: str,
    name: str,
    data: str | None,
    out: Path,
    settings: Sequence[str],
    dequantize: bool = False,
) -> None:
    """Write the files of a format, and remnant.json beside them, to a folder that does not exist
    yet.
    """
    if out.exists():
        raise UserError(f"{out} exists already.", "Name a new folder.")
    corpus = given(store, data, "prepare") if data else None
    source = sources.model(store, model, dequantize=dequantize)
    node = planning.deploy_node(methods.step(name, overlaid(settings)), source, corpus)
    made = make_here(store, [node])
    manifest = store.manifest(node.name)
    copied(made, manifest, out)
    said = manifest.of(DeployResult)
    print(
        f"{out}: for {said.runtime}; most likely token as in the dense copy at "
        f"{100 * said.against_dense_copy.same_top:.1f} % of places."
    )
    if said.tokenizer:
        print(f"Tokenizer: {said.tokenizer}.")


def measure(
    store: Store,
    model: str,
    data: str,
    reference: str | None,
    settings: Sequence[str],
    **options: Any,
) -> None:
    """Measure one model, or one behind a server, and print its numbers."""
    dequantize, only_told = options.pop("dequantize", False), options.pop("estimate", False)
    beside = api.Beside(reference, options.pop("form_from", None), dequantize)
    node = api.measured(store, model, data, beside, overlaid(settings, **options))
    if only_told:
        return estimate(store, [node])
    known = store.has(node.name)
    make_here(store, [node])
    if known and api.is_served(model):
        print(
            f"Asked at {store.manifest(node.name).created}; to ask the server anew: --set "
            "endpoint.again=1"
        )
    scores = api.scores_of(store, node)
    terminal.print_cells(scores.cells, terminal.computed_in(node.spec))
    said = scores.result
    if isinstance(chosen := node.inputs.get("elicited"), Node):
        form = store.manifest(chosen.name).of(ElicitResult)
        terminal.print_form(form, alone=not beside.form_from)
    for check in said.checks:
        if not check.ok or check.metrics:
            print(f"{'Check' if check.ok else 'Failed check'}: {check.said}.")
    for name, reason in said.absent.items():
        print(f"Absent: {name}, because {reason}.")


def audit(
    store: Store,
    target: str,
    unlearned: str,
    retrain: str | None,
    data: str,
    variants: Sequence[str],
    out: Path,
    settings: Sequence[str],
    dequantize: bool = False,
) -> int:
    """Compare two checkpoints in full precision and in each variant.

    Report, verdict, exit code.
    """
    corpus = given(store, data, "prepare")
    named = {"target": target, "retrain": retrain, "unlearned": unlearned}
    asked = api.auditable(store, named, variants or None, overlaid(settings), dequantize)
    models, forms, rule = asked
    found = api.audited(store, models, (corpus, data), forms, rule, progress=True)
    _finish(found.results, store, out, examples=False)
    return exit_code({v.outcome for v in found.verdicts})


def predict(
    target: str,
    unlearned: str,
    quantizers: Sequence[str],
    keep: Sequence[str],
    exact: bool,
    out: Path,
) -> None:
    """Say from two checkpoints alone which grids will bring back what was unlearned."""
    prediction = importlib.import_module(
        "remnant.report.prediction"
    )  # brings the compiler of the passes and the plotting library
    with counting(terminal.console(stderr=True), "Reading both checkpoints") as report:
        found = prediction.predict(target, unlearned, quantizers, keep, report, exact=exact)
    page = prediction.write(found, out)
    shown = Table(
        "grid",
        "forecast of recovery",
        "gain",
        "early blocks",
        "cosine",
        "equal codes",
        "in the zero bin",
    )
    for name, s in found.whole.items():
        f = found.forecasts[name]
        colour = (
            "yellow" if f is None or f.low <= 0.2 < f.high else "red" if f.low > 0.2 else "green"
        )
        told = f"[{colour}]{f.recovery:.2f} \\[{f.low:.2f}, {f.high:.2f}][/]" if f else "-"
        shown.add_row(
            name,
            told,
            *(
                "-" if x is None else f"{x:.2f}"
                for x in (s.gain, s.early_gain, s.cosine, s.same_codes, s.in_zero_bin)
            ),
        )
    terminal.console().print(shown)
    terminal.console().print(escape(f"{found.verdict} {prediction.MEASURE}"), highlight=False)
    for note in found.notes:
        terminal.console().print(escape(note), highlight=False)
    terminal.console().print(
        f"Report: [bold]{escape(str(page))}[/]", highlight=False, soft_wrap=True
    )


def predict_before(
    target: str, rate: float, quantizers: Sequence[str], keep: Sequence[str], exact: bool
) -> None:
    """Say what a rate can move in a target kept in bfloat16, and what each grid leaves of it."""
    prediction = importlib.import_module("remnant.report.prediction")
    with counting(terminal.console(stderr=True), "Reading the target") as report:
        found = prediction.before(target, rate, quantizers, keep, report, exact=exact)
    shown = Table("grid", "of the weights that can move, in the zero bin")
    for name, share in found.in_zero_bin.items():
        colour = "red" if name in found.erasing else "default"
        shown.add_row(name, "-" if share is None else f"[{colour}]{share:.1%}[/]")
    console = terminal.console()
    console.print(
        f"In bfloat16 a step of {rate:g} moves {found.movable:.1%} of the weights.", highlight=False
    )
    console.print(shown)
    console.print(escape(found.verdict), highlight=False)


def exit_code(outcomes: AbstractSet[str]) -> int:
    """0 if there are verdicts and all are "gone", 4 if nothing worse is known; else 3."""
    if outcomes == {"gone"}:
        return GONE
    return OPEN if outcomes <= {"gone", "unclear", "not measured"} else NOT_GONE


def sweep_path(name: str) -> Path:
    """A sweep file by its path, or one that comes with Remnant by its name.

    Raises:
        UserError: there is neither.
    """
    packaged = {p.stem: p for p in Path(str(resources.files("remnant"))).glob("sweeps/*.toml")}
    if not Path(name).exists() and name not in packaged:
        raise UserError(
            f"The sweep {name} does not exist.",
            f"Name a TOML file, or one that comes with Remnant: {', '.join(sorted(packaged))}.",
        )
    return Path(name) if Path(name).exists() else packaged[name]


def run(
    store: Store,
    name: str,
    settings: Sequence[str],
    workers: int,
    out: Path | None,
    examples: bool,
    cluster: str | None = None,
) -> int:
    """Run a sweep to its report; the same call again goes on or does nothing."""
    sweep = read_sweep(sweep_path(name), settings)
    screen = terminal.console(stderr=True)
    with telling(screen, f"looking at what there is of {sweep.name}"):
        nodes = planning.plan(sweep)
        repair(store, nodes, table.READ)
    todo = missing(store, nodes)
    terminal.tell_code(planning.user_code(sweep) if todo else [], screen)
    screen.print(
        (
            f"[bold]{escape(sweep.title or sweep.name)}[/]: {len(nodes)} pieces of work, "
            f"{len(todo)} to be made."
        ),
        highlight=False,
    )
    _label(store, sweep, nodes, needed=bool(todo))
    if todo:
        forget_failures(store, nodes)
        hands = (
            cluster_hands(store, sweep, nodes, cluster, workers)
            if cluster
            else local_hands(store, sweep, workers or default_workers(sweep))
        )
        _work(store, nodes, hands, screen)
    let_go(store, readers_of(nodes))
    lost = failures(store, nodes)
    results = table.collect(
        store, sweep, [n.piece for n in nodes], {n: f["message"] for n, f in lost.items()}
    )
    _finish(results, store, out or store.root / "reports" / sweep.name, examples=examples)
    return _tell_failures(lost, missing(store, nodes), nodes)


def demo_real(store: Store, tofu: str | None, full: bool, workers: int) -> int:
    """Run the sweep on the pretrained model."""
    real = importlib.import_module("remnant.lab.pretrained")
    name = "real-full" if full else "real"
    settings = real.settings(sweep_path(name), store.root / "pretrained", tofu)
    return run(store, name, settings, workers, None, True)


def _label(store: Store, sweep: SweepSpec, nodes: Sequence[Node], *, needed: bool) -> None:
    """Keep the run under its name.

    Where nothing is to be made, a store that takes nothing does not matter.
    """
    try:
        store.label(
            sweep.name,
            {
                "sweep": redacted(sweep.model_dump(mode="json")),
                "pieces": [n.piece.model_dump(mode="json") for n in nodes],
            },
        )
    except UserError:
        if needed:
            raise


def _work(store: Store, nodes: Sequence[Node], hands: Hands, screen: Console) -> None:
    try:
        watch(store, nodes, hands, screen)
    except KeyboardInterrupt as error:
        screen.print("Saving ...")
        raise Interrupted(
            "Interrupted; finished work is kept.", "The same command goes on."
        ) from error
    finally:
        hands.stop()
        if said := hands.said():
            screen.print(said, style="red", markup=False)
        clean_up(store)


def _tell_failures(
    lost: dict[str, dict[str, str]], todo: Sequence[Node], nodes: Sequence[Node]
) -> int:
    names, screen = {n.name: n for n in nodes}, terminal.console()
    for name, failure in lost.items():
        told = f"[red]failed[/] {escape(describe(names[name]))}: {escape(failure['message'])}"
        screen.print(told, highlight=False)
        if failure["traceback"]:
            screen.print(failure["traceback"], style="dim", markup=False, highlight=False)
    if any(f["traceback"] for f in lost.values()):
        return 1
    if not lost and todo:
        raise UserError(
            f"{len(todo)} pieces of work were not made because a worker ended early.",
            "Run the same command again.",
        )
    return 2 if lost else 0


def _finish(results: table.Results, store: Store, out: Path, *, examples: bool) -> None:
    """Tables on the terminal, page and summary on the disk."""
    page = importlib.import_module("remnant.report.page")  # brings the plotting library
    path = page.write(results, store, out, examples=examples)
    screen = terminal.console()
    for paragraph in table.story(results):
        screen.print(escape(paragraph), highlight=False)
    for group in (*results.groups, *over_seeds(results.groups)):
        screen.print(terminal.matrix(group))
    screen.print(
        (
            f"Report: [bold]{escape(str(path))}[/]  Numbers: "
            f"{escape(str(path.with_name('summary.json')))}"
        ),
        highlight=False,
        soft_wrap=True,
    )


def plan(store: Store, name: str, settings: Sequence[str], only_told: bool = False) -> None:
    """Say what a sweep would make, with the resolved settings, or what that needs."""
    sweep = read_sweep(sweep_path(name), settings)
    with telling(terminal.console(stderr=True), f"planning {sweep.name}"):
        nodes = planning.plan(sweep)
    if only_told:
        return estimate(store, missing(store, nodes))
    todo = {node.name for node in missing(store, nodes)}
    for node in nodes:
        print(f"{'missing' if node.name in todo else 'done   '}  {node.name}  {describe(node)}")
    print(json.dumps(redacted(sweep.model_dump(mode="json", exclude_defaults=True)), indent=1))
    for use in planning.user_code(sweep):
        print(f"Running it runs code of {use}.")
    print(f"{len(nodes)} pieces of work, {len(todo)} to be made.")


def ls(store: Store) -> None:
    """All artefacts, oldest first; damaged manifests last."""
    known = store.manifests()
    rows = [(name, *terminal.artefact(manifest)) for name, manifest in known.items()]
    damaged = {n for stage in STAGE_VERSIONS for n in store.matching("", stage)} - set(known)
    rows += [(name, "its manifest is damaged", "", "", "") for name in sorted(damaged)]
    print(terminal.columns([("artefact", "what", "made", "time", "size"), *rows]))


def gc(store: Store, yes: bool, by_hand: bool) -> None:
    """Say what nothing needs any more, and delete it where that is wanted."""
    found = garbage.unneeded(store, by_hand=by_hand)
    names = [str(one.path.relative_to(store.root)) for one in found]
    rows = [(n, terminal.size(one.bytes), one.why) for n, one in zip(names, found, strict=True)]
    print(terminal.columns([("entry", "size", "why"), *rows]))
    if yes:
        garbage.remove(store, found)
    freed = terminal.size(sum(one.bytes for one in found))
    print(f"{len(found)} entries, {freed}{'' if yes else '; deleted with --yes'}.")


def show(store: Store, reference: str) -> int:
    """One manifest, and whether its files are still what they were."""
    names = [n for stage in STAGE_VERSIONS for n in store.matching(reference, stage)]
    if len(names) != 1:
        what = (
            f"is the start of {len(names)} artefacts"
            if names
            else f"is no artefact of {store.root}"
        )
        raise UserError(f"'{reference}' {what}.", "See them with: remnant ls")
    print(store.manifest(names[0]).model_dump_json(indent=1))
    with telling(terminal.console(stderr=True), f"checking {names[0]}"):
        faults = store.faults(names[0])
    print(
        f"Damaged: {', '.join(faults)}. Delete the folder {store.path(names[0])}."
        if faults
        else "All files are as recorded."
    )
    return 1 if faults else 0


def report(
    store: Store, name: str, out: Path | None, examples: bool, beside: Sequence[Path]
) -> None:
    """Write the report of a finished or unfinished run again, with the numbers of other tools' logs
    beside it.
    """
    run = runs.kept(store, name)
    with telling(terminal.console(stderr=True), f"reading what there is of {name}"):
        others = [table.others(path.as_posix(), scoring.score_file(path)) for path in beside]
        found = runs.collected(store, run)
    found.groups.extend(others)
    _finish(found, store, out or store.root / "reports" / name, examples=examples)


def score(
    path: Path, auc_retrain: float | None, retrain: Path | None, json_out: Path | None
) -> None:
    """Score a file of generations, or read another tool's logs, and print the metrics."""
    with telling(terminal.console(stderr=True), f"scoring {path}"):
        cells, notes = scoring.scored(path, auc_retrain, retrain=retrain)
    models = dict.fromkeys((c.corpus, c.model) for c in cells)
    for place in models:
        terminal.print_cells(
            [c for c in cells if (c.corpus, c.model) == place],
            place[1] if len(models) > 1 else None,
        )
    for note in notes:
        print(note)
    if json_out is not None:
        with disk_errors(json_out.parent):
            text = json.dumps(table.scored_summary(cells), indent=1, allow_nan=False) + "\n"
            scratch = json_out.with_name(f".{json_out.name}.tmp")
            try:
                scratch.write_text(text, encoding="utf-8")
            except FileNotFoundError as error:
                raise UserError(
                    f"The folder {json_out.parent} does not exist.", "Make it first."
                ) from error
            os.replace(scratch, json_out)
