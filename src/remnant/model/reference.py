"""What the frozen target says about the training text, computed once and kept, so that no second
model stands beside the policy.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from remnant.functional.hidden import Hidden
from remnant.functional.pieces import Head, Unmade, is_large
from remnant.functional.view import IGNORED, View
from remnant.model.blocks import forward
from remnant.model.data import Batch
from remnant.model.examples import Example, batch_of
from remnant.model.head import head_of, output_layer, trained_head
from remnant.model.shelf import Shelf
from remnant.readings import Reading

# Examples of one forward pass. The values that a pass gives depend on it in their last bits.
BATCH_SIZE = 16


@dataclass
class Reference:
    """Cached reference values of the examples of one side; only what is asked for is kept.

    ``seq_logp``: [N] sequence log-likelihoods. ``finals``: per example the input of the output
    head, [T, H], or, where the head is not a plain linear map (then ``head`` is None), the logits
    themselves, [T, V]. ``states``: by layer, per example [T, H]. ``norms``: by layer, the mean
    Euclidean norm of the states that count.
    """

    seq_logp: Tensor
    finals: list[Tensor] = field(default_factory=list)
    head: Head | None = None
    states: dict[int, list[Tensor]] = field(default_factory=dict)
    norms: dict[int, Tensor] = field(default_factory=dict)

    def read(self, reading: Reading, places: list[int], batch: Batch) -> View | Hidden | Tensor:
        """The value of one reading for the batch of some examples, equal to that of a live model
        up to rounding.
        """
        where, layer = batch.ids.device, reading.layer
        if reading.what == "logp":
            return self.seq_logp[places].to(where)
        if reading.what == "view":
            finals = _stack([self.finals[i] for i in places], where)
            if self.head and is_large(batch.ids.numel(), len(self.head.weight)):
                return View(Unmade(finals, self.head), batch.labels, batch.weights)
            with torch.no_grad():
                made = self.head(finals) if self.head else finals
                return View(made, batch.labels, batch.weights)
        assert layer is not None
        if reading.what == "norm":
            return self.norms[layer].to(where)
        states = _stack([self.states[layer][i] for i in places], where)
        return Hidden(states, batch.labels != IGNORED, batch.weights)

    def nbytes(self) -> int:
        """Bytes of the cache, in memory and on the disk."""
        states = [row for rows in self.states.values() for row in rows]
        return sum(t.nbytes for t in (self.seq_logp, *self.finals, *states))


def _stack(rows: list[Tensor], where: torch.device) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([r.to(where) for r in rows], batch_first=True)


@torch.no_grad()
def build(
    model: PreTrainedModel,
    examples: Sequence[Example],
    pad: int,
    wanted: Collection[Reading],
    batch_size: int = BATCH_SIZE,
    shelf: Shelf | None = None,
) -> Reference:
    """Run the target over all examples once.

    Args:
        model: the target, before any step.
        examples: in the order of the places by which they will be asked for.
        pad: id of the padding token.
        wanted: what will be asked for, all of this side and of the reference.
        batch_size: examples per forward pass.
        shelf: keeps last states and hidden ones; in memory by default.
    """
    shelf, tokens = shelf or Shelf(), sum(len(example.ids) for example in examples)
    found = Reference(torch.zeros(len(examples)))
    kinds = {reading.what for reading in wanted}
    layers = {r.layer for r in wanted if r.what == "hidden" and r.layer is not None}
    kept = {layer: shelf.block(tokens) for layer in sorted(layers)}
    last_kept = shelf.block(tokens)
    summed = {r.layer: 0.0 for r in wanted if r.what == "norm" and r.layer is not None}
    count = 0
    finals: list[Tensor] = []
    head = trained_head(model)
    hook = output_layer(model).register_forward_pre_hook(
        lambda module, args: finals.append(args[0])
    )
    try:
        for start in range(0, len(examples), batch_size):
            chunk = examples[start : start + batch_size]
            batch = batch_of(chunk, pad, model.device)
            given, states = forward(
                model, batch, layers | set(summed), logits=bool(kinds & {"logp", "view"}), head=head
            )
            if given is not None:
                own = View(given, batch.labels, batch.weights).seq_logp().cpu()
                found.seq_logp[start : start + len(chunk)] = own
            if given is not None and "view" in kinds:
                if start == 0:
                    exact = _head(model, finals[-1], given)
                    found.head = exact and exact.frozen()
                    head = head if exact else None
                last = finals[-1] if isinstance(given, Unmade) or found.head else given
                found.finals += map(last_kept, _rows(last, chunk))
            for layer, keep in kept.items():
                rows = found.states.setdefault(layer, [])
                rows += map(keep, _rows(states[layer], chunk))
            counts = batch.labels != IGNORED
            count += int(counts.sum())
            for layer in summed:
                norms = Hidden(states[layer], counts).counted().norm(dim=-1)
                summed[layer] += float(norms.double().sum())
            finals.clear()
    finally:
        hook.remove()
    found.norms = {layer: torch.tensor(total / max(1, count)) for layer, total in summed.items()}
    return found


def _head(model: PreTrainedModel, hidden: Tensor, given: Tensor | Unmade) -> Head | None:
    """The head that gives the logits of a pass from the hidden states, if there is one."""
    return given.head if isinstance(given, Unmade) else head_of(model, hidden, given)


def _rows(values: Tensor, chunk: Sequence[Example]) -> list[Tensor]:
    """Each example's own part of [B, T, ...]."""
    return [row[: len(e.ids)] for row, e in zip(values, chunk, strict=True)]
