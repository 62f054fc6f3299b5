"""One deletion request, from raw text to deployable files and a verdict.

Prepares the texts, measures the target, makes a never-read model where it can, tries how far the
model has to be pushed in the time that the audit leaves, audits the best trial in the forms that
are to be deployed, and writes all of it into one folder. Everything is made by the Python interface
and kept in the store, so that an interrupted request goes on.
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from remnant import api
from remnant.control import Control, control_of
from remnant.durable import rename, sync_tree, tell, write_text
from remnant.errors import UserError
from remnant.flow import plan as planning
from remnant.flow.neverread import check_unread
from remnant.flow.place import Outside, check_hub
from remnant.flow.plan import Input, Node
from remnant.flow.progress import GUESS, Spent, clock
from remnant.flow.sources import check_plain
from remnant.flow.store import Store, copied, disk_errors
from remnant.handles import Audit, Corpus
from remnant.methods import step
from remnant.parsing import parse
from remnant.records import PrepareSpec, Rule, UnlearnResult, UnlearnSpec, Use
from remnant.report.front import WORST
from remnant.search import REACH, STEPS, Trial, best_of, searched, steps_within
from remnant.stages.cells import Sheet, asked, read_rows
from remnant.stages.lineup import Trio, mean, shows
from remnant.verbs import exit_code, overlaid
from remnant.weightfiles import config_of

# In float32 no update is lost, so that what is forgotten stays so behind a grid (docs/why.md).
DEFAULTS: Mapping[str, Any] = {"method": "npo_klr", "weights": "fp32"}
# So many steps tell how long one takes, the opening of the model among it.
PILOT = 4
# An audit in the usual forms takes at most so much of the time; else it is made in one of them, in
# which text comes back first (docs/why.md).
FOR_AUDIT = 0.6
FEWER: tuple[Use, ...] = ("int4",)
# What an audit takes beside its measurements, as a share of them.
BESIDE = 0.1
# A verdict wants ten items of every kind, and intervals that are of use some more.
ITEMS, SHORTEST = 20, 64
TEXT, ANSWER = (PrepareSpec.model_fields[n].default for n in ("text_tokens", "answer_tokens"))
LENGTHS = ("text_tokens", "prompt_tokens", "answer_tokens")
# What configurations call the length of the context.
CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len")
BEGUN = "begun"


# What is said behind every verdict but the best.
NEXT = (
    "What may help: a greater --budget, another method (--set method=...), or a --retrain model; "
    "docs/deletion-request.md says what each verdict wants."
)


class Request(NamedTuple):
    """What is to be forgotten of which model.

    ``texts``: side ("forget", "retain", "holdout") -> files. ``retrain``: a model that never read
    the forget text. ``deploy``: formats of the files to be written, which are audited too.
    ``dequantize``: packed weights are decoded first.
    """

    model: str
    texts: Mapping[str, Sequence[str]]
    retrain: str | None = None
    deploy: tuple[str, ...] = ()
    dequantize: bool = False


class Forgotten(NamedTuple):
    """What a request came to: the folder that was written, the never-read model, the trials, the
    audit of the best of them, and the seconds that each part took.
    """

    out: Path
    control: Control
    trials: tuple[Trial, ...]
    best: Trial
    audit: Audit
    took: Mapping[str, float]


class Work(NamedTuple):
    """What the parts of a request share.

    ``begun``: since when (ISO, UTC) what is made counts as time of the request, so that one that
    goes on decides as one that was never interrupted.
    """

    store: Store
    seconds: float
    begun: str
    model: str
    corpus: Corpus
    forms: tuple[Use, ...]

    def measured(self, models: Mapping[str, Input]) -> list[Node]:
        """The measurements of some models of the audit, with all that they need."""
        text = (api.corpus_of(self.store, self.corpus), self.corpus.path.name)
        found = api.measurements(models, text, self.forms, Rule())
        return planning.ordered(found.values())

    def took(self, nodes: Sequence[Node], since: str | None = None) -> float:
        """Seconds that some pieces took by their records, if they were made since then."""
        made = [self.store.manifest(node.name) for node in nodes if self.store.has(node.name)]
        return sum(m.seconds for m in made if m.created >= (since or ""))

    def spent(self, nodes: Sequence[Node]) -> float:
        """Seconds of this request that some pieces took."""
        return self.took(nodes, self.begun)

    def clock(self, spent: float) -> Spent:
        """What is shown of the request's time beside the progress of its parts."""
        return Spent(spent, self.seconds)

    def say(self, spent: float, what: str) -> None:
        """Where the request is, on the terminal as in a log."""
        tell(f"{clock(spent)} of {clock(self.seconds)} spent; {what}")


def forget(
    request: Request,
    out: Path,
    store: Store,
    seconds: float,
    settings: Mapping[str, Any],
) -> Forgotten:
    """Carry a request out.

    Args:
        request: what is to be forgotten.
        out: a new folder.
        store: where artefacts are kept.
        seconds: about how long all of it may take; one trial and its audit are always made.
        settings: fields of ``UnlearnSpec`` that replace ``DEFAULTS``, a rate among them being the
            only one that is tried; and those of ``PrepareSpec`` that it has not (answer_tokens).

    Raises:
        UserError: the folder is there, a text or a model cannot be read, or there is no retain
            text.
    """
    if not request.texts.get("retain"):
        raise UserError(
            "Without text that the model must keep, nothing tells forgetting from destroying it.",
            "Give --retain: text of the same kind that may stay, at least as much.",
        )
    own = PrepareSpec.model_fields.keys() - UnlearnSpec.model_fields.keys()
    rest = {**DEFAULTS, **{k: v for k, v in settings.items() if k not in own}}
    spec = parse(UnlearnSpec, rest, "unlearn")
    final = Path(os.path.abspath(out))
    _check_new(final, out)
    _check_given(request, store, spec)
    request = request._replace(model=_whole(store, request))
    source = api.source_of(store, request.model)
    corpus = _corpus(request, store, {k: v for k, v in settings.items() if k in own})
    text = api.corpus_of(store, corpus)
    for form in request.deploy:
        planning.deploy_node(step(form, {}), source, text)
    with _scratch(final, out) as (scratch, begun):
        forms = request.deploy or api.FORMS
        work = Work(store, seconds, begun, request.model, corpus, tuple(forms))
        return _carried_out(request, work, source, rest, (scratch, final))


def _check_given(request: Request, store: Store, spec: UnlearnSpec) -> None:
    """All that a request names is looked at before anything is prepared, merged or measured.

    Raises:
        UserError: a model, text, loss or form is not there or of no use, or a library is missing.
    """
    named = {"target": request.model, "retrain": request.retrain}
    models = {
        role: api.source_of(store, model, request.dequantize)
        for role, model in named.items()
        if model is not None
    }
    for source in models.values():
        if isinstance(source, Outside):
            check_hub(source.source)
    check_plain(models["target"], "packed weights cannot be trained")
    check_unread(store, models)
    planning.check_losses(spec)
    for form in request.deploy:
        planning.deployed(form, {})
        _check_installed(form)
    planning.prepare_node(parse(PrepareSpec, dict(request.texts), "prepare"))


def _check_installed(form: str) -> None:
    """A library that writes a form is missed before hours of work, not behind them.

    Raises:
        UserError: it is not installed.
    """
    found = step(form, {}).format
    assert found is not None  # as it is deployed
    if missing := [name for name in needed(found.format.extra) if not _there(name)]:
        raise UserError(
            f"The files of {form} need {', '.join(missing)}, which is not installed.",
            found.format.install,
        )


def needed(extra: str) -> list[str]:
    """The packages of an optional part of the installation, as Remnant's own metadata has them."""
    ends = re.compile(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]")
    asked = [line for line in metadata.requires("remnant") or () if ends.search(line)]
    names = [re.match(r"[\w.-]+", line) for line in asked]
    return [name[0] for name in names if name]


def _there(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _whole(store: Store, request: Request) -> str:
    """The model as it is trained: an adapter is merged, and packed weights are decoded where that
    is wanted.

    Raises:
        UserError: its weights are packed.
    """
    source = api.source_of(store, request.model, request.dequantize)
    check_plain(source, "packed weights cannot be trained")
    if not isinstance(source, Node):
        return request.model
    api.done(store, [source], progress=True)
    return str(store.path(source.name))


def _check_new(final: Path, out: Path) -> None:
    with disk_errors(final.parent, "Name another folder with -o."):
        if os.path.lexists(final):
            raise UserError(f"{out} exists already.", "Name a new folder with -o.")


@contextmanager
def _scratch(final: Path, out: Path) -> Iterator[tuple[Path, str]]:
    """The folder beside the final one in which a request is written, held by this process, and
    since when the request goes on (ISO, UTC).
    """
    scratch = final.with_name(f".{final.name}.part")
    with disk_errors(final.parent, "Name another folder with -o."):
        scratch.mkdir(parents=True, exist_ok=True)
        with (scratch / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"Another request is writing {out}.", "Wait for it, or name another folder."
                ) from error
            if not (scratch / BEGUN).is_file():
                write_text(scratch / BEGUN, datetime.now(UTC).isoformat(timespec="seconds"))
            yield scratch, (scratch / BEGUN).read_text(encoding="utf-8")


def _carried_out(
    request: Request,
    work: Work,
    source: Input,
    settings: Mapping[str, Any],
    places: tuple[Path, Path],
) -> Forgotten:
    """The parts of a request, one after the other; ``places``: scratch folder and final one."""
    store, known = work.store, {"target": source}
    work = work if request.deploy else _fitting(work, source, bool(request.retrain))
    before = work.measured(known)
    work.say(spent := work.spent(before), "measuring what the target tells")
    api.done(store, before, progress=work.clock(spent))
    whole = next(n for n in before if n.stage == "measure" and n.label.in_full)
    if said := _tells_nothing(read_rows(store.path(whole.name) / "rows.jsonl")):
        tell(said)
    of_one = work.took([node for node in before if node.stage != "elicit"])
    control = _control(request, work, source, of_one)
    if control.model:
        before = work.measured(known := known | {"retrain": control.model})
    work.say(spent := work.spent(before), f"control: {control.said}")
    if control.model:
        api.done(store, before, progress=work.clock(spent))
    rest = (1 + BESIDE) * of_one + len(request.deploy) * GUESS["deploy"]
    spent = work.spent(before)
    work.say(spent, f"unlearning; the audit will take about {clock(rest)}")
    if (least := spent + rest) >= work.seconds:
        tell(
            f"The budget of {clock(work.seconds)} is less than target and audit take (about "
            f"{clock(least)}): the least is done that can be judged. A greater --budget tries more."
        )
    trials, tuned = _tried(work, settings, spent, rest)
    best = best_of(trials)
    work.say(spent + tuned, f"auditing rate {best.rate:g}, about {clock(rest)} left")
    audit = api.audit(
        request.model, best.model, work.corpus.path.name, retrain=_named(store, control),
        forms=work.forms, store=store, progress=work.clock(spent + tuned),
    )  # fmt: skip
    judged = work.measured({**known, "unlearned": api.source_of(store, best.model)})
    deploying = _write(places, request, work.corpus, best, audit)
    parts = {"target and control": spent, "unlearning": tuned}
    parts |= {"audit": work.spent(judged) - spent, "files": deploying}
    return Forgotten(places[1], control, trials, best, audit, parts)


def _tells_nothing(target: Sheet) -> str:
    """What to say before the work of a target in which plain asking finds nothing; empty of others.

    Whatever is done to it, it can be shown to have forgotten nothing.
    """
    known, alone = asked([target], "knowledge"), Trio(target, target, None)
    if any(shows(alone, column, Rule()) for column in known):
        return ""
    scored = [column for column in known if target.values.get(column)]
    numbers = ", ".join(f"{column} {100 * mean(target, column):.1f}" for column in scored)
    return (
        "The target itself tells nothing of the forget text that could be measured "
        f"({f'{numbers} of 100' if numbers else 'no number'}): no model can be shown to have "
        "forgotten it, and no verdict will be better than 'not measured'."
    )


def _control(request: Request, work: Work, source: Input, measuring: float) -> Control:
    if request.retrain:
        made = api.source_of(work.store, request.retrain, request.dequantize)
        return Control(made, f"{request.retrain}, as given")
    return control_of(work.store, source, work.corpus.path.name, work.seconds, measuring)


def _named(store: Store, control: Control) -> str | None:
    """The never-read model as the Python interface names it."""
    return str(_folder(store, control.model)) if control.model else None


def _folder(store: Store, source: Input) -> Path:
    """Where the files of a model lie, or will."""
    return Path(source.source) if isinstance(source, Outside) else store.path(source.name)


def _corpus(request: Request, store: Store, settings: Mapping[str, Any]) -> Corpus:
    """The prepared texts, in pieces that the model's context holds and that are enough items for a
    verdict, where the settings name no length.
    """
    files = {side: list(map(Path, given)) for side, given in request.texts.items()}
    own = {"tokenizer": request.model, **settings}

    def made(text_tokens: int) -> Corpus:
        parts = text_tokens, text_tokens // 2, min(ANSWER, text_tokens // 4)
        lengths = dict(zip(LENGTHS, parts, strict=True))
        return api.prepare(**files, store=store, progress=True, **{**lengths, **own})

    length = min(TEXT, context_of(request.model, store) // 2)
    found = made(length)
    items = found.result.counts.get("verbmem/forget", 0)
    if items >= ITEMS or set(LENGTHS) & settings.keys():
        return found
    return made(max(SHORTEST, length * items // ITEMS))


def context_of(model: str, store: Store) -> int:
    """Tokens that a model reads at once, by its configuration; of many where that is not told."""
    config = config_of(_folder(store, api.source_of(store, model)))
    given = [config.get(name) for name in CONTEXTS]
    return min((length for length in given if isinstance(length, int)), default=2 * TEXT)


def _fitting(work: Work, source: Input, third: bool) -> Work:
    """The usual forms where their audit fits into the time, as the target in full precision tells;
    else one of them. ``third``: a never-read model is measured too.
    """
    whole = work._replace(forms=()).measured({"target": source})
    work.say(spent := work.spent(whole), "measuring the target in full precision")
    api.done(work.store, whole, progress=work.clock(spent))
    one = work.store.manifest(whole[-1].name).seconds
    if one * (1 + len(work.forms)) * (2 + third) <= FOR_AUDIT * work.seconds:
        return work
    tell(f"The usual forms do not fit into the time; audited: full, {', '.join(map(str, FEWER))}.")
    return work._replace(forms=FEWER)


def _tried(
    work: Work, settings: Mapping[str, Any], before: float, rest: float
) -> tuple[tuple[Trial, ...], float]:
    """The trials that the time allows between what was spent ``before`` and what the ``rest`` will
    take, and what they took (all in seconds).

    The time of a run is the one that its record tells.
    """
    made_in: list[float] = []
    steps, floor = settings.get("steps"), parse(UnlearnSpec, settings, "unlearn").utility_floor

    def attempt(rate: float, count: int) -> Trial:
        own = {**settings, "lr": rate, "steps": count}
        shown = work.clock(before + sum(made_in))
        tell(f"{shown.said(0)}; trying rate {rate:g}, {count} steps")
        made = api.unlearn(work.model, work.corpus, store=work.store, progress=shown, **own)
        assert isinstance(made.result, UnlearnResult)
        took = work.store.manifest(made.path.name).seconds
        made_in.append(took)
        return Trial(rate, count, made, made.result, took, floor)

    rate = settings.get("lr")
    pilot = None if steps else attempt(rate or REACH / STEPS, PILOT)
    tuned = pilot.seconds if pilot else 0.0
    pace = pilot.seconds / PILOT if pilot else 0.0
    left = work.seconds - before - rest - tuned
    found = (
        (attempt(rate, steps or min(STEPS, steps_within(2 * left, pace))),)
        if rate
        else searched(attempt, left, pace, steps)
    )
    return found, tuned + sum(trial.seconds for trial in found)


def _write(
    places: tuple[Path, Path], request: Request, corpus: Corpus, best: Trial, found: Audit
) -> float:
    """The model, the deployable files, the report: whole, or not at all; the seconds it took."""
    (scratch, out), started = places, time.monotonic()
    whole = scratch / "whole"
    with disk_errors(out.parent, "Name another folder with -o."):
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        name = best.model.path.name
        copied(best.model.path, found.store.manifest(name), whole / "model")
        for form in request.deploy:
            api.deploy(
                best.model, form, whole / form, corpus=corpus, store=found.store, progress=True
            )
        found.report(whole)
        _check_new(out, out)
        sync_tree(whole)
        rename(whole, out)
        shutil.rmtree(scratch, ignore_errors=True)
    return time.monotonic() - started


def run(request: Request, out: Path, store: Store, seconds: float, settings: Sequence[str]) -> int:
    """The command: carry a request out, say what came of it, and end with the verdict's code."""
    if not request.texts.get("holdout"):
        print(
            "Without --holdout (text like the forget text that the model never read) membership "
            "cannot be tested, and no verdict is better than 'not measured'."
        )
    started = time.monotonic()
    done = forget(request, out, store, seconds, overlaid(settings))
    print(f"Control: {done.control.said}.")
    for trial in done.trials:
        chosen = "kept" if trial is done.best else "    "
        print(
            f"{chosen} rate {trial.rate:g}, {trial.result.steps} steps: {trial.said} "
            f"({clock(trial.seconds)})"
        )
    parts = ", ".join(f"{name} {clock(took)}" for name, took in done.took.items())
    print(f"Spent {clock(sum(done.took.values()))} of {clock(seconds)}: {parts}.")
    if (longer := time.monotonic() - started) > sum(done.took.values()):
        print(f"With starting and reading, this call took {clock(longer)}.")
    outcomes = {v.outcome for v in done.audit.verdicts}
    for verdict in done.audit.verdicts:
        print(f"{verdict.form}: {verdict.outcome}. {verdict.reason}")
    print(f"{min(outcomes, key=WORST.index).capitalize()}. Model, files and report: {out}")
    if outcomes != {"gone"}:
        print(NEXT)
    return exit_code(outcomes)
