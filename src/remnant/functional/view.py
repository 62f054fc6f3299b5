"""The one place where logits are shifted, masked and gathered.

Axes: B examples, T positions of the padded batch, V vocabulary entries.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class View:
    """What a model says about a batch, aligned so that position t of the output speaks about token
    t + 1.

    Args:
        logits: [B, T, V], any float type; all sums are taken in float32.
        labels: [B, T] token ids, ``IGNORED`` where a token must not count (padding, prompts).

    Positions whose label is ``IGNORED`` never influence any result: they are replaced, not
    multiplied by zero.
    """

    logits: Tensor
    labels: Tensor

    @cached_property
    def mask(self) -> Tensor:
        """[B, T-1] bool, True where the next token counts."""
        return self.labels[:, 1:] != IGNORED

    def targets(self) -> Tensor:
        """[B, T-1] the next tokens; 0 where masked."""
        return self.labels[:, 1:].masked_fill(~self.mask, 0)

    def log_probs(self) -> Tensor:
        """[B, T-1, V] natural-log probabilities over the vocabulary, uniform where masked."""
        logits = self.logits[:, :-1].float().masked_fill(~self.mask[..., None], 0.0)
        return logits.log_softmax(-1)

    @cached_property
    def _token_logp(self) -> Tensor:
        logits = self.logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(),
            self.labels[:, 1:].reshape(-1),
            ignore_index=IGNORED,
            reduction="none",
        )
        return -loss.view(self.mask.shape)

    def token_logp(self) -> Tensor:
        """[B, T-1] log-probability of each next token in nats, at most 0.

        Exactly 0 where masked.
        """
        return self._token_logp

    def num_tokens(self) -> Tensor:
        """[B] how many tokens count, as float."""
        return self.mask.sum(-1).float()

    def seq_logp(self) -> Tensor:
        """[B] log-likelihood of the sequence in nats, at most 0.

        0 for a sequence without counted tokens.
        """
        return self.token_logp().sum(-1)

    def mean_logp(self) -> Tensor:
        """[B] mean log-probability per counted token in nats.

        0 for a sequence without counted tokens.
        """
        return self.seq_logp() / self.num_tokens().clamp(min=1.0)

    def greedy(self) -> Tensor:
        """[B, T-1] the most probable next tokens."""
        return self.logits[:, :-1].argmax(-1)
