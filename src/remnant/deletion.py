"""One deletion request, from raw text to deployable files and a verdict.

Prepares the texts, tries settings of one method from the mildest on within a budget, audits the
best of them in the forms that are to be deployed, and writes all of it into one folder. Everything
is made by the Python interface and kept in the store, so that an interrupted request goes on.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from remnant import api
from remnant.errors import UserError
from remnant.flow import plan as planning
from remnant.flow.store import Store
from remnant.handles import Audit, Corpus, Model
from remnant.methods import step
from remnant.records import PrepareSpec, UnlearnResult, UnlearnSpec
from remnant.report.front import WORST
from remnant.verbs import exit_code, overlaid

# Rates of AdamW in float32 for pretrained models, the mildest first: the field's own, and steps of
# about three. A small model that was trained from scratch wants the last ones.
RATES = (1e-5, 3e-5, 1e-4, 3e-4)
STEPS = 200
# The rest of a budget is for the audit, which costs less than unlearning does.
FOR_TRIALS = 0.7
# In float32 no update is lost, so that what is forgotten stays so behind a grid (docs/why.md).
DEFAULTS: Mapping[str, Any] = {"method": "npo_klr", "weights": "fp32", "steps": STEPS}


class Request(NamedTuple):
    """What is to be forgotten of which model.

    ``texts``: side ("forget", "retain", "holdout") -> files. ``retrain``: a model that never read
    the forget text. ``deploy``: formats of the files to be written, which are audited too.
    """

    model: str
    texts: Mapping[str, Sequence[str]]
    retrain: str | None = None
    deploy: tuple[str, ...] = ()


class Trial(NamedTuple):
    """One unlearning run at one rate: the model, what it came to and how long it took."""

    rate: float
    model: Model
    result: UnlearnResult
    seconds: float

    @property
    def left(self) -> float:
        """Share of forget tokens that are still the greedy choice, on the development half; all
        where no checkpoint kept enough utility.
        """
        return self.result.chosen.forget if self.result.chosen else 1.0


class Forgotten(NamedTuple):
    """What a request came to: the folder that was written, the trials, and the audit of the best of
    them.
    """

    out: Path
    trials: tuple[Trial, ...]
    best: Trial
    audit: Audit


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
        seconds: about how long unlearning and audit may take together; one rate is always tried.
        settings: fields of ``UnlearnSpec`` that replace ``DEFAULTS``, a rate among them being the
            only one that is tried; and those of ``PrepareSpec`` that it has not (answer_tokens).

    Raises:
        UserError: the folder is there, a text or a model cannot be read, or there is no retain
            text.
    """
    if out.exists():
        raise UserError(f"{out} exists already.", "Name a new folder with -o.")
    if not request.texts.get("retain"):
        raise UserError(
            "Without text that the model must keep, nothing tells forgetting from destroying it.",
            "Give --retain: text of the same kind that may stay, at least as much.",
        )
    own = PrepareSpec.model_fields.keys() - UnlearnSpec.model_fields.keys()
    corpus = _corpus(request, store, {k: v for k, v in settings.items() if k in own})
    source = api.source_of(store, request.model)
    for form in request.deploy:  # a form that no runtime opens is told before the work
        planning.deploy_node(step(form, {}), source, api.corpus_of(store, corpus))
    rest = {k: v for k, v in settings.items() if k not in own}
    trials = tried(request.model, corpus, store, FOR_TRIALS * seconds, {**DEFAULTS, **rest})
    best = min(trials, key=lambda trial: trial.left)
    forms = request.deploy or None
    found = api.audit(
        request.model, best.model, corpus, retrain=request.retrain, forms=forms, store=store,
        progress=True,
    )  # fmt: skip
    _write(out, request, corpus, best, found)
    return Forgotten(out, trials, best, found)


def _corpus(request: Request, store: Store, settings: Mapping[str, Any]) -> Corpus:
    files = {side: list(map(Path, given)) for side, given in request.texts.items()}
    wanted = {"tokenizer": request.model, **settings}
    return api.prepare(**files, store=store, progress=True, **wanted)


def tried(
    model: str, corpus: Corpus, store: Store, seconds: float, settings: Mapping[str, Any]
) -> tuple[Trial, ...]:
    """Unlearning at one rate after the other, until the next one is not likely to fit into the
    time, or a rate leaves too little utility, as every higher one would.

    The time of a run is the one that its record tells, so that a request that goes on decides as
    one that was never interrupted.
    """
    rates = (settings["lr"],) if "lr" in settings else RATES
    found: list[Trial] = []
    for rate in rates:
        spent = sum(trial.seconds for trial in found)
        if found and spent + found[-1].seconds > seconds:
            break
        made = api.unlearn(model, corpus, store=store, progress=True, **{**settings, "lr": rate})
        assert isinstance(made.result, UnlearnResult)
        took = store.manifest(made.path.name).seconds
        found.append(Trial(rate, made, made.result, took))
        if made.result.chosen is None or made.result.kept_step == 0:
            break
    return tuple(found)


def _write(out: Path, request: Request, corpus: Corpus, best: Trial, found: Audit) -> None:
    """The model, the deployable files, the report: whole, or not at all."""
    scratch = out.with_name(f".{out.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    shutil.copytree(
        best.model.path, scratch / "model", ignore=shutil.ignore_patterns("manifest.json")
    )
    for form in request.deploy:
        api.deploy(
            best.model, form, scratch / form, corpus=corpus, store=found.store, progress=True
        )
    found.report(scratch)
    scratch.rename(out)


def run(request: Request, out: Path, store: Store, seconds: float, settings: Sequence[str]) -> int:
    """The command: carry a request out, say what came of it, and end with the verdict's code."""
    if not request.texts.get("holdout"):
        print(
            "Without --holdout (text like the forget text that the model never read) membership "
            "cannot be tested, and no verdict is better than 'not measured'."
        )
    if request.retrain is None:
        print("Control: none, as no never-read model is given; what is left is counted from 0.")
    done = forget(request, out, store, seconds, overlaid(settings))
    for trial in done.trials:
        kept = "kept" if trial is done.best else "    "
        print(
            f"{kept} rate {trial.rate:.0e}: {trial.left:.0%} of the forget tokens are left "
            f"({trial.seconds:.0f} s)"
        )
    outcomes = {v.outcome for v in done.audit.verdicts}
    for verdict in done.audit.verdicts:
        print(f"{verdict.form}: {verdict.outcome}. {verdict.reason}")
    print(f"{min(outcomes, key=WORST.index).capitalize()}. Model, files and report: {out}")
    return exit_code(outcomes)
