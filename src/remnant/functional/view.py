"""The one place where logits are shifted, masked and gathered.

Axes: B examples, T positions of the padded batch, V vocabulary entries.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from remnant.functional.pieces import RowFunction, Unmade, per_row
from remnant.functional.shapes import (
    Labels,
    Logits,
    LogProbs,
    NextMask,
    NextTokens,
    PerRow,
    PerText,
    PerTime,
    PerToken,
    RowLogits,
)

IGNORED = -100


@dataclass(frozen=True)
class View:
    """What a model says about a batch, aligned so that position t of the output speaks about token
    t + 1.

    Args:
        given: the logits, [B, T, V], any float type; all sums are taken in float32. Or what makes
            them, where they are many: then those of some positions exist at a time.
        labels: [B, T] token ids, ``IGNORED`` where a token must not count (padding, prompts).
        weights: [B, T] how much each token counts, at least 0; all the same without them. Sums,
            means and counts over tokens take them in; values per token do not.

    Positions whose label is ``IGNORED`` never influence any result: they are replaced, not
    multiplied by zero.
    """

    given: Logits | Unmade
    labels: Labels
    weights: PerTime | None = None

    @cached_property
    def logits(self) -> Logits:
        """[B, T, V] all of them at once."""
        return self.given.made() if isinstance(self.given, Unmade) else self.given

    @cached_property
    def mask(self) -> NextMask:
        """[B, T-1] bool, True where the next token counts."""
        return self.labels[:, 1:] != IGNORED

    def targets(self) -> NextTokens:
        """[B, T-1] the next tokens; 0 where masked."""
        return self.labels[:, 1:].masked_fill(~self.mask, 0)

    def log_probs(self) -> LogProbs:
        """[B, T-1, V] natural-log probabilities over the vocabulary, uniform where masked."""
        logits = self.logits[:, :-1].float().masked_fill(~self.mask[..., None], 0.0)
        return logits.log_softmax(-1)

    def _per_token(self, function: RowFunction) -> Tensor:
        """[B, T-1] a function of the logits of every token that counts; 0 where masked."""
        assert isinstance(self.given, Unmade)
        values = per_row(function, self._counted(self.given))
        found = values.new_zeros(self.mask.shape)
        return found.masked_scatter(self.mask, values)

    def _rows(self) -> Callable[[slice], RowLogits]:
        """From places among the tokens that count to their logits [n, V], float32, without
        gradients.
        """
        if isinstance(self.given, Unmade):
            rows = self._counted(self.given)
            return lambda places: rows.head(rows.states[places]).detach().float()
        whole = self.given[:, :-1][self.mask].detach()
        return lambda places: whole[places].float()

    def _counted(self, given: Unmade) -> Unmade:
        ahead = self.mask.new_zeros(len(self.mask), 1)
        return given.rows(torch.cat([self.mask, ahead], -1))

    @cached_property
    def _token_logp(self) -> PerToken:
        if isinstance(self.given, Unmade):
            wanted = self.labels[:, 1:][self.mask]
            return self._per_token(
                lambda logits, places: -cross_entropy(logits, wanted[places], reduction="none")
            )
        logits = self.logits[:, :-1]
        loss = cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(),
            self.labels[:, 1:].reshape(-1),
            ignore_index=IGNORED,
            reduction="none",
        )
        return -loss.view(self.mask.shape)

    def token_logp(self) -> PerToken:
        """[B, T-1] log-probability of each next token in nats, at most 0.

        Exactly 0 where masked.
        """
        return self._token_logp

    def num_tokens(self) -> PerText:
        """[B] how many tokens count, as float; with weights, the sum of theirs."""
        if self.weights is None:
            return self.mask.sum(-1).float()
        return self._weighed(self.mask.float()).sum(-1)

    def _weighed(self, values: PerToken) -> PerToken:
        """[B, T-1] values by the weights of their tokens, 0 where masked."""
        counted = values.masked_fill(~self.mask, 0.0)
        return counted if self.weights is None else counted * self.weights[:, 1:]

    def seq_logp(self) -> PerText:
        """[B] log-likelihood of the sequence in nats, at most 0.

        0 for a sequence without counted tokens. With weights, the sum of each by its own.
        """
        if self.weights is None:
            return self.token_logp().sum(-1)
        return self._weighed(self.token_logp()).sum(-1)

    def mean(self, values: PerToken) -> PerText:
        """[B] mean of [B, T-1] values over the tokens that count; 0 where none does."""
        return self._weighed(values).sum(-1) / self._at_least_one()

    def _at_least_one(self) -> PerText:
        """[B] what sums over tokens are divided by: how many count, 1 where none does."""
        count = self.num_tokens()
        return count.where(count > 0, 1.0)

    def without_first(self, count: int) -> "View":
        """The same in which the first ``count`` tokens of every sequence that count do not."""
        labels = self.labels.clone()
        early = self.mask & (self.mask.cumsum(-1) <= count)
        labels[:, 1:] = labels[:, 1:].masked_fill(early, IGNORED)
        return View(self.logits, labels, self.weights)

    def mean_logp(self) -> PerText:
        """[B] mean log-probability per counted token in nats.

        0 for a sequence without counted tokens.
        """
        return self.seq_logp() / self._at_least_one()

    def nll(self) -> PerText:
        """[B] cross entropy per counted token in nats, every token counting alike; at least 0."""
        return -self.token_logp().sum(-1) / self.mask.sum(-1).clamp(min=1)

    def greedy(self) -> NextTokens:
        """[B, T-1] the most probable next tokens; whatever where masked."""
        if isinstance(self.given, Unmade):
            with torch.no_grad():
                return self._per_token(lambda logits, places: logits.argmax(-1))
        return self.logits[:, :-1].argmax(-1)

    def divergence(self, reference: "View") -> PerToken:
        """[B, T-1] KL(reference || self) of every next token in nats, at least 0; 0 where masked.

        The reference gets no gradient where this is computed in pieces.
        """
        if isinstance(self.given, Unmade):
            known = reference._rows()

            def kl(logits: RowLogits, places: slice) -> PerRow:
                ref, own = known(places).log_softmax(-1), logits.log_softmax(-1)
                return (ref.exp() * (ref - own)).sum(-1)

            return self._per_token(kl)
        ref, own = reference.log_probs(), self.log_probs()
        return (ref.exp() * (ref - own)).sum(-1) * self.mask
