"""A soft prompt: vectors before a text that make a model say texts like those it was learned on."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from remnant.errors import Diverged
from remnant.functional.losses import gdr
from remnant.functional.view import View
from remnant.model.data import batch_order, collate

# How many vectors; 20 in arXiv 2402.09063, 20 to 100 in arXiv 2104.08691.
VECTORS = 16
# A step of Adam over the size of an embedding: after the usual 64 steps a vector may be anywhere.
RATE = 0.1


class SoftPrompt:
    """Vectors that stand before the embeddings of a text.

    Args:
        model: whose embeddings they stand beside; none of its weights is changed.
        seed: of the tokens whose embeddings they begin with.
    """

    def __init__(self, model: PreTrainedModel, seed: int) -> None:
        table = model.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        drawn = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(table), (VECTORS,), generator=drawn).to(table.device)
        begun = model.get_input_embeddings()(chosen).detach().float()
        self._model, self.vectors = model, begun.clone().requires_grad_()
        self.size = float(begun.square().mean().sqrt())

    def said(self, texts: Sequence[Sequence[int]], pad: int) -> View:
        """What the model says of texts behind the vectors; of each all tokens but the first count.

        Args:
            texts: token ids, each at least two.
            pad: the id of padding.
        """
        model = self._model
        batch = collate([list(text) for text in texts], pad, model.device)
        plain = model.get_input_embeddings()(batch.ids)
        before = self.vectors.to(plain.dtype).expand(len(plain), -1, -1)
        mask = torch.cat([batch.mask.new_ones(before.shape[:2]), batch.mask], -1)
        given = torch.cat([before, plain], 1)
        logits = model(inputs_embeds=given, attention_mask=mask, use_cache=False).logits
        return View(logits[:, VECTORS:], batch.labels)


def learn(
    prompt: SoftPrompt,
    texts: Sequence[Sequence[int]],
    steps: int,
    batch: int,
    step_done: Callable[[float], None],
) -> None:
    """Learn the vectors by Adam, so that the model says some texts.

    Args:
        prompt: changed in place.
        texts: token ids, each at least two.
        steps: of ``batch`` texts each, in an order that is fixed.
        batch: at most so many texts.
        step_done: called with the loss of every step, nats per token.

    Raises:
        Diverged: a loss is not finite.

    Source: Lester et al. 2021 (arXiv 2104.08691); as an attack Schwinn et al. 2024 (arXiv
    2402.09063). Differs from the second in that the vectors are learned for texts at large, not for
    one answer, and from both in the rate, which is in units of the embeddings.
    """
    optimizer = torch.optim.Adam([prompt.vectors], lr=RATE * prompt.size)
    for step in range(steps):
        chosen = [texts[i] for i in batch_order(len(texts), min(batch, len(texts)), step, 0)]
        with torch.enable_grad():
            loss = gdr(prompt.said(chosen, 0)).mean()
            (prompt.vectors.grad,) = torch.autograd.grad(loss, [prompt.vectors])
        if not math.isfinite(loss.item()):
            raise Diverged(f"The loss of a soft prompt is not finite at step {step + 1}.")
        optimizer.step()
        step_done(loss.item())
