"""Follow one unlearning run and look at it under several grids as it goes: where does quantization
bring back what was unlearned?

Prints one JSON line per look: step, loss terms, share of changed weights, and for each grid the
teacher-forced accuracy (x100, greedy token equal to the truth) on forget text, questions about it
and questions about retain text, the survival gain of the update and the share of it in the zero
bin. The run is one of a sweep, by its name; target and corpus are made in the store if they are
missing.

    python scripts/failure_map.py sweeps/catastrophic-failure.toml "npo_gdr bf16" --set
    train.init_std=0.02 >> map.jsonl
"""

import json
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from remnant.context import Context, ModelCache
from remnant.corpus.muse import knowmem, verbmem
from remnant.flow.plan import Node, plan
from remnant.flow.run import make
from remnant.flow.store import Store
from remnant.flow.sweepfile import read_sweep
from remnant.functional.flips import sums
from remnant.functional.survival import Sums, survival
from remnant.model.load import matrices, open_model, open_tokenizer
from remnant.model.terms import forget_losses, make_loss, make_streams, terms_of
from remnant.records import UnlearnSpec
from remnant.stages.examples import read_examples
from remnant.stages.unlearn import accuracy, answers
from remnant.trainable.attach import attach
from remnant.training.loop import fit
from remnant.training.stepper import in_regime


def main() -> None:
    """Read the arguments, make what is missing, follow the run."""
    arguments = ArgumentParser(description=__doc__)
    arguments.add_argument("sweep", type=Path)
    arguments.add_argument("run")
    arguments.add_argument("--grids", default="int8,int4-tensor,int4,int3")
    arguments.add_argument("--every", type=int, default=40)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--store", type=Path, default=Path("runs"))
    arguments.add_argument("--set", action="append", default=[])
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    store = Store(given.store).open()
    node = next(
        n
        for n in plan(read_sweep(given.sweep, given.set))
        if n.stage == "unlearn" and n.label.model == given.run
    )
    for source in (node.inputs["corpus"], node.inputs["target"]):
        assert isinstance(source, Node)
        make(store, source, lambda done, total, note: None)
    assert isinstance(node.spec, UnlearnSpec)
    places = {
        role: store.path(source.name)
        for role, source in node.inputs.items()
        if isinstance(source, Node)
    }
    follow(node.spec, places["target"], places["corpus"], given.grids.split(","), given.every)


def follow(spec: UnlearnSpec, target: Path, corpus: Path, grids: list[str], every: int) -> None:
    """The unlearning stage without its stop rules, with a look every few steps."""
    tokenizer = open_tokenizer(str(target))
    model = in_regime(open_model(str(target)), spec)
    pools = read_examples(spec, tokenizer, corpus)
    terms, pad = terms_of(spec), tokenizer.pad_token_id
    streams = make_streams(model, terms, pools, pad, spec.seed)
    sides = {
        "text": verbmem(corpus),
        "forget": knowmem(corpus, "forget"),
        "retain": knowmem(corpus, "retain"),
    }
    batches = {side: answers(model, tokenizer, items) for side, items in sides.items()}
    look = _looker(
        model,
        grids,
        lambda: {side: round(100 * accuracy(model, found), 1) for side, found in batches.items()},
    )
    look(0, {})

    def after_step(step: int, parts: dict[str, float], memory: dict[str, Any]) -> bool:
        if step % every == 0:
            look(step, parts)
        return False

    work = Context(lambda *_: None, ModelCache())
    with tempfile.TemporaryDirectory() as folder:
        loss_at = make_loss(model, terms, streams, spec.batch_size, pad)
        moving = attach(
            model, spec, lambda: forget_losses(model, terms, streams, spec.batch_size, pad)
        )
        fit(moving, spec, loss_at, Path(folder), work, after_step)


def _looker(
    model: PreTrainedModel, grids: list[str], score: Callable[[], dict[str, float]]
) -> Callable[[int, dict[str, float]], None]:
    origin = {m.name: m.read().float().clone() for m in matrices(model)}

    @torch.no_grad()
    def look(step: int, parts: dict[str, float]) -> None:
        own = {m.name: m.read().clone() for m in matrices(model)}
        moved = sum(int((own[n] != origin[n]).sum()) for n in own) / sum(
            w.numel() for w in own.values()
        )
        line: dict[str, Any] = {
            "step": step,
            **{k: round(v, 3) for k, v in parts.items()},
            "changed": round(moved, 3),
            "full": score(),
        }
        for name in grids:
            method, found = step(name).method, Sums()
            function = method.load()
            for m in matrices(model):
                q = function(own[m.name].float(), **method.params)
                found = found.plus(
                    sums(
                        origin[m.name],
                        own[m.name].float(),
                        function(origin[m.name], **method.params),
                        q,
                    )
                )
                m.write(q.weight)
            said = survival(found)
            line[name] = score() | {"gain": said.gain, "in_zero_bin": said.in_zero_bin}
            for m in matrices(model):
                m.write(own[m.name])
        print(json.dumps(line), flush=True)

    return look


if __name__ == "__main__":
    main()
