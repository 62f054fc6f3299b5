"""What the frozen target says about the training text, computed once and kept, so that no second
model stands beside the policy.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from remnant.functional.view import View
from remnant.model.data import Batch, collate
from remnant.model.head import head_of, output_layer


@dataclass
class Reference:
    """Cached reference values of one stream of examples.

    ``seq_logp``: [N] sequence log-likelihoods. ``finals``: per example the input of the output
    head, [T, hidden], or, where the head is not a plain linear map (then ``head`` is None), the
    logits themselves, [T, V]. ``layers``: per example all hidden states, [layers + 1, T, hidden].
    """

    seq_logp: Tensor
    finals: list[Tensor] = field(default_factory=list)
    layers: list[Tensor] = field(default_factory=list)
    head: Callable[[Tensor], Tensor] | None = None

    def view(self, indices: list[int], batch: Batch) -> View:
        """The reference's View of a batch, equal to that of a live model up to rounding."""
        finals = _stack([self.finals[i] for i in indices], batch.ids.device)
        with torch.no_grad():
            return View(self.head(finals) if self.head else finals, batch.labels)

    def hidden(self, indices: list[int], batch: Batch) -> Tensor:
        """[layers + 1, B, T, hidden] hidden states of the reference, zero on padding."""
        return _stack([self.layers[i].transpose(0, 1) for i in indices], batch.ids.device).permute(
            2, 0, 1, 3
        )

    def nbytes(self) -> int:
        """Memory held by the cache."""
        return sum(t.nbytes for t in (self.seq_logp, *self.finals, *self.layers))


def _stack(rows: list[Tensor], where: torch.device) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([r.to(where) for r in rows], batch_first=True)


@torch.no_grad()
def build(
    model: PreTrainedModel,
    examples: list[list[int]],
    pad: int,
    *,
    logits: bool = False,
    layers: bool = False,
    batch_size: int = 16,
) -> Reference:
    """Run the target over all examples once.

    Args:
        model: the target, before any step.
        examples: token lists, in the order in which they will be asked for.
        pad: id of the padding token.
        logits: also keep what is needed to rebuild the logits (for terms that read a View of the
            reference).
        layers: also keep all hidden states.
        batch_size: examples per forward pass.
    """
    where = next(model.parameters()).device
    found = Reference(torch.empty(len(examples)))
    captured: list[Tensor] = []
    hook = output_layer(model).register_forward_pre_hook(
        lambda module, args: captured.append(args[0])
    )
    try:
        for start in range(0, len(examples), batch_size):
            chunk = examples[start : start + batch_size]
            batch = collate(chunk, pad, where)
            out = model(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=layers)
            found.seq_logp[start : start + len(chunk)] = (
                View(out.logits, batch.labels).seq_logp().cpu()
            )
            if logits and start == 0:
                found.head = head_of(model, captured[-1], out.logits, frozen=True)
            if logits:
                source = captured[-1] if found.head else out.logits
                found.finals += [row[: len(e)].cpu() for row, e in zip(source, chunk, strict=True)]
            if layers:
                states = torch.stack(out.hidden_states)
                found.layers += [states[:, i, : len(e)].cpu() for i, e in enumerate(chunk)]
            captured.clear()
    finally:
        hook.remove()
    return found
