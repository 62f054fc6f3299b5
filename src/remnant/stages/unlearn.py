"""unlearn: target + loss terms -> unlearned model, the checkpoint chosen on the development half by
a written rule.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.adapterfiles import CONFIG, WEIGHTS
from remnant.context import Context
from remnant.corpus import plain_items
from remnant.corpus.base import Item, ItemSet
from remnant.corpus.forms import PUBLISHED, in_form
from remnant.corpus.prepared import settings
from remnant.durable import is_whole, tell
from remnant.errors import UserError
from remnant.evaluate.items import AS_PUBLISHED, Manner, alone_of, chat_of, manner_of
from remnant.metrics import Role
from remnant.model.batches import Tokens
from remnant.model.blocks import said
from remnant.model.changes import prints, sampled, share_changed
from remnant.model.data import Batch
from remnant.model.door import check_plain
from remnant.model.examples import Pool, batch_of, joined
from remnant.model.head import trained_head
from remnant.model.load import context_length, in_dtype, open_tokenizer
from remnant.model.saving import LEFT_BY_MODELS, check_saving, save
from remnant.model.shardfiles import saved_by_rows
from remnant.model.shelf import Shelf
from remnant.model.terms import Beside, forget_losses, make_loss, make_streams, terms_of
from remnant.model.whole import DIVERGED, check_finite, check_ids
from remnant.ranks import told
from remnant.records import Probed, Rule, SamSpec, UnlearnResult, UnlearnSpec, ZerothSpec
from remnant.stages.examples import read_examples
from remnant.stages.reinforced import reinforced
from remnant.trainable.attach import attach
from remnant.trainable.lora import adapters_apart
from remnant.trainable.trainable import Trainable
from remnant.training.checkpoints import BEST, LEFT, load_best, save_best
from remnant.training.dual import make_dual
from remnant.training.gradients import LOST, losses_of
from remnant.training.loop import AfterStep, fit
from remnant.training.on_grid import trained_on_grids
from remnant.training.perturbed import perturb
from remnant.training.promise import (
    CERTIFICATE,
    Given,
    check_promise,
    keep,
    write_certificate,
)
from remnant.training.stepper import movable_share, opened, storage_dtype, warning_of_rate

PROBE_ITEMS = 48
LEAVES = (*LEFT_BY_MODELS, CONFIG, WEIGHTS, "steps.jsonl", CERTIFICATE)
GOES_ON_FROM = (*LEFT, BEST, "steps.jsonl")
# A step that is not lost changes nearly all numbers, also in bfloat16 at the usual rates a tenth
# and more; of chosen layers or units it may be few of all.
HARDLY = 0.01
# A tenth less of the forget answers is within what a few items make.
HARDLY_LESS = 0.9
# A target that shows less than this share is no measure, as in a verdict.
LEAST = Rule().least


class Probe(NamedTuple):
    """Teacher-forced greedy accuracy, 0 to 1: on forget answers (low is forgotten) and on retain
    answers (high is useful).
    """

    forget: float
    retain: float


def run(spec: UnlearnSpec, inputs: Mapping[str, Path], out: Path, work: Context) -> UnlearnResult:
    """Unlearn and save the chosen checkpoint; the result says which, and why the run stopped."""
    work.models.clear()
    target, corpus = inputs["target"], inputs["corpus"]
    check_plain(str(target), "packed weights cannot be trained")
    tokenizer = open_tokenizer(str(target))
    model, collect = opened(str(target), work.place.device, spec)
    check_saving(model, tokenizer)
    pad = tokenizer.pad_token_id
    check_ids(model, tokenizer)
    check_promise(spec, model)
    before, numbers = prints(model), sampled(model)
    terms = terms_of(spec)
    manner = manner_of(spec, inputs)
    others, weights = inputs.get("alternatives"), inputs.get("token_weights")
    pools = read_examples(spec, tokenizer, corpus, others, manner, weights)
    longest = max((len(e.ids) for pool in pools.values() for e in pool.examples), default=0)
    if longest > context_length(model):
        raise UserError(
            (
                f"A training text of {longest} tokens is longer than the model's context of "
                f"{context_length(model)}."
            ),
            "Lower unlearn's max_tokens, so that texts are cut.",
        )
    batch, size = batches_by(spec, longest)
    other = reinforced(inputs.get("reinforced"), model, spec)
    beside = Beside(other, Shelf(out, spec.reference_gb * 1e9))
    streams = make_streams(model, terms, pools, pad, spec.seed, beside)
    del other, beside
    probe = make_probe(model, tokenizer, corpus, manner)
    moving = trained_on_grids(
        attach(model, spec, lambda: forget_losses(model, terms, streams, size, pad)),
        spec,
    )
    apart = adapters_apart(moving)
    if apart is not None:
        before, numbers = prints(apart), sampled(apart)
    reach = movable_share(moving, spec, spec.lr)
    if warning := warning_of_rate(moving, spec, reach):
        tell(warning)
    best = out / BEST
    if best.exists() and not is_whole(best):
        _start_afresh(out)
    log = out / "steps.jsonl"
    dual = make_dual(model, spec.model_copy(update={"batch_size": size}), terms, streams, pad, log)
    loss_at = losses_of(
        spec, terms, lambda own: make_loss(model, own, streams, batch, pad, dual.weigh)
    )
    forget_loss = make_forget_loss(model, pools["forget"], size, pad)
    after_step = _watch(spec, moving, probe, forget_loss, best)
    perturb(moving, spec)
    steps, memory = fit(moving, spec, loss_at, out, work, after_step)
    kept_best = spec.select == "best" and "chosen" in memory
    if kept_best and not load_best(moving, memory["chosen"]["step"], best):
        _start_afresh(out)
        return run(spec, inputs, out, work)
    if not saved_by_rows(model):
        collect()
    if moving.apart is not None:
        moving.apart(out)
    model = moving.settle()
    looked_at = model if apart is None else apart
    changed = share_changed(numbers, sampled(looked_at)) if prints(looked_at) != before else None
    check_finite(model, "the unlearned model", DIVERGED)
    probes = memory.get("probes", [])
    chosen = memory.get("chosen") if spec.select == "best" else (probes or [None])[-1]
    certified = None
    if spec.promise:
        origin, _ = opened(str(target), work.place.device, spec)
        given = Given(model, origin, tokenizer, forget_loss)
        certified = keep(spec.promise, given, storage_dtype(spec.weights), work.progress)
        chosen = {"step": chosen["step"] if chosen else steps, **probe()._asdict()}
        write_certificate(certified, out)
    in_dtype(model, storage_dtype(spec.weights))
    if moving.apart is None:
        save(model, tokenizer, out)
    looked = isinstance(spec.update, SamSpec | ZerothSpec)
    return UnlearnResult(
        steps=steps,
        stopped=memory.get("stopped", "all steps done"),
        kept_step=chosen["step"] if chosen else steps,
        chosen=Probed.model_validate(chosen) if chosen else None,
        share_changed=changed or 0.0,
        ended=ended(spec, changed, probes, chosen),
        rule=rule_text(spec),
        probes=tuple(Probed.model_validate(p) for p in probes),
        lost_updates=_mean_of(log, "lost") if spec.count_lost else None,
        moving=moving.result,
        movable=reach,
        form=manner.form,
        certificate=certified,
        lost_perturbation=_mean_of(log, LOST) if looked else None,
    )


def batches_by(spec: UnlearnSpec, longest: int) -> tuple[int | Tokens, int]:
    """How batches are cut, and how many texts are read at a time where all of them are."""
    if spec.batch_tokens is None:
        return spec.batch_size, spec.batch_size
    return Tokens(spec.batch_tokens, spec.accumulate), max(1, spec.batch_tokens // longest)


def ended(
    spec: UnlearnSpec,
    changed: float | None,
    probes: list[dict[str, Any]],
    chosen: dict[str, Any] | None,
) -> str:
    """How a run ended, in one sentence: what went wrong first, by the probes of the target and of
    what is kept.

    Args:
        spec: of the run.
        changed: the share of numbers in the weights that are others than before, by a sample; None
            where all are the same.
        probes: all of them, the target's first.
        chosen: the probe of what is kept.
    """
    if changed is None or (changed < HARDLY and isinstance(spec.train, str)):
        what = (
            "no weight changed"
            if changed is None
            else f"only {changed:.2%} of the weights' numbers changed"
        )
        return (
            f"Nothing was unlearned: {what}, since the steps were lost in rounding "
            f"({spec.weights}, learning rate {spec.lr:g}); "
            "raise the learning rate or keep the weights in float32."
        )
    if not probes or not chosen:
        return "Nothing was probed."
    origin = probes[0]
    forget, retain = (
        f"{name} accuracy {origin[name]:.3f} -> {chosen[name]:.3f}" for name in ("forget", "retain")
    )
    for name, shown in (("retain", retain), ("forget", forget)):
        if origin[name] < LEAST:
            return (
                f"The target itself shows too little of the {name} text in this probe to measure "
                f"anything by: {shown}."
            )
    if chosen["retain"] < spec.stop_utility * origin["retain"]:
        return f"The utility is gone: {retain}, below {spec.stop_utility:.0%} of the target's."
    if chosen["retain"] < spec.utility_floor * origin["retain"]:
        which = "any step" if spec.select == "best" else "the last step"
        return f"The utility floor of {spec.utility_floor:.0%} was not met by {which}: {retain}."
    if chosen["forget"] >= origin["forget"]:
        return f"Nothing was forgotten: {forget}."
    if chosen["forget"] > HARDLY_LESS * origin["forget"]:
        return (
            f"Hardly anything was forgotten: {forget}. Raise the learning rate, or take more steps."
        )
    return f"Less is known and the utility floor is met: {forget}, {retain}."


def _start_afresh(out: Path) -> None:
    """Throw away what an earlier call left: its best checkpoint is damaged or missing, so its steps
    are worth nothing.
    """
    tell(f"{out / BEST} is damaged or missing; the steps are done again.")
    for path in [p for pattern in GOES_ON_FROM for p in out.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _mean_of(log: Path, name: str) -> float:
    """The mean of one entry of the step log."""
    values: list[float] = [
        json.loads(line)[name] for line in log.read_text(encoding="utf-8").splitlines()
    ]
    return sum(values) / len(values)


def rule_text(spec: UnlearnSpec) -> str:
    """The rule of checkpoint selection in words."""
    if spec.select == "last":
        return "the last step"
    return (
        f"among the steps probed, the one with the lowest forget accuracy whose retain "
        f"accuracy is at least "
        f"{spec.utility_floor:.0%} of the target's; if there is none, the one with the "
        f"highest retain accuracy; development half only"
    )


def make_probe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Path,
    manner: Manner = AS_PUBLISHED,
) -> Callable[[], Probe]:
    """A cheap look at knowledge and utility on the development half, without generation: questions
    alone, in a form of asking.
    """
    absent: Any = settings(corpus)["absent"]

    def asked(role: Role) -> list[Batch]:
        items = plain_items(role, corpus, absent)
        return answers(model, tokenizer, _in_manner(items, tokenizer, manner))

    batches = {"forget": asked("knowledge"), "retain": asked("utility")}

    @torch.no_grad()
    def probe() -> Probe:
        # The first rank's, so that all decide the same.
        return told(Probe(*(accuracy(model, batches[name]) for name in ("forget", "retain"))))

    return probe


def _in_manner(items: list[Item], tokenizer: PreTrainedTokenizerBase, manner: Manner) -> list[Item]:
    if manner.form == PUBLISHED:
        return items
    alone = ItemSet([alone_of(item) for item in items])
    return in_form(manner.form, alone, chat_of(tokenizer, manner.system)).items


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[Item]
) -> list[Batch]:
    """Batches of prompt and truth in which only the truth's tokens count."""
    chosen = [item for item in items if item.half == "dev"]
    chosen = (
        [chosen[i * len(chosen) // PROBE_ITEMS] for i in range(PROBE_ITEMS)]
        if len(chosen) > PROBE_ITEMS
        else chosen
    )
    where = model.device
    found = [joined(tokenizer, i.id, i.prompt, i.truth, framed=i.framed) for i in chosen]
    return [
        batch_of(found[start : start + 16], tokenizer.pad_token_id, where)
        for start in range(0, len(found), 16)
    ]


def accuracy(model: PreTrainedModel, batches: list[Batch]) -> float:
    """Share of the counted tokens that are the most probable ones, 0 to 1."""
    right = total = 0
    head = trained_head(model)
    for batch in batches:
        view = said(model, batch, head)
        right += int(((view.greedy() == view.targets()) & view.mask).sum())
        total += int(view.mask.sum())
    if not total:
        raise UserError(
            "The development half holds no item to choose a checkpoint by.",
            'Use select = "last" or prepare more items.',
        )
    return right / total


def make_forget_loss(
    model: PreTrainedModel, pool: Pool, batch_size: int, pad: int
) -> Callable[[], float]:
    """The cross entropy of the whole forget set, in nats per token, averaged over texts as the loss
    terms do.
    """
    ordered = sorted(pool.examples, key=lambda example: len(example.ids))
    where = model.device
    batches = [
        batch_of(ordered[i : i + batch_size], pad, where)
        for i in range(0, len(ordered), batch_size)
    ]

    @torch.no_grad()
    def forget_loss() -> float:
        head = trained_head(model)
        found = -sum(float(said(model, b, head).mean_logp().sum()) for b in batches)
        return told(found / len(ordered))

    return forget_loss


def _watch(
    spec: UnlearnSpec,
    moving: Trainable,
    probe: Callable[[], Probe],
    forget_loss: Callable[[], float],
    best: Path,
) -> AfterStep:
    """Probe every few steps, keep the best checkpoint so far, and say when to stop."""
    origin = probe()

    def after_step(step: int, parts: dict[str, float], memory: dict[str, Any]) -> bool:
        if step % spec.probe_every and step != spec.steps:
            return False
        if spec.stop_forget_loss is not None and (loss := forget_loss()) >= spec.stop_forget_loss:
            memory["stopped"] = f"the forget loss {loss:.3f} reached {spec.stop_forget_loss}"
        found = probe()
        memory.setdefault("probes", [{"step": 0, **origin._asdict()}]).append(
            {"step": step, **found._asdict()}
        )
        if _better(found, memory.get("chosen"), spec.utility_floor * origin.retain):
            memory["chosen"] = {"step": step, **found._asdict()}
            if spec.select == "best":  # the last step is kept as it is
                save_best(moving, step, best)
        if spec.shrink_perturb is not None:  # it begins with little of anything
            return False
        if "stopped" not in memory and found.forget <= spec.stop_forget * origin.forget:
            memory["stopped"] = (
                f"forget accuracy {found.forget:.3f} is at most {spec.stop_forget} of the target's"
            )
        if "stopped" not in memory and found.retain < spec.stop_utility * origin.retain:
            memory["stopped"] = (
                f"retain accuracy {found.retain:.3f} fell below {spec.stop_utility} of the target's"
            )
        return "stopped" in memory

    return after_step


def _better(found: Probe, chosen: dict[str, Any] | None, floor: float) -> bool:
    """Whether a probe beats the chosen one under the written rule."""
    if chosen is None:
        return True
    if found.retain >= floor:
        return bool(chosen["retain"] < floor or found.forget < chosen["forget"])
    return bool(chosen["retain"] < floor and found.retain > chosen["retain"])
