"""Batches by tokens: what stands in them, that texts count alike, and that a run goes on."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from remnant.errors import UserError
from remnant.estimate.fitting import choices
from remnant.estimate.memory import Text
from remnant.estimate.shape import Shape
from remnant.model.batches import Batches, Tokens, batches_of
from remnant.model.data import turns
from remnant.model.examples import Pool, pool_of
from remnant.model.terms import make_loss, make_streams, terms_of
from remnant.records import UnlearnSpec
from remnant.stages.unlearn import batches_by
from remnant.testing import tiny_model

LENGTHS = (5, 9, 3, 12, 7, 4, 10, 6, 6, 3, 8)


def in_order(number: int) -> list[tuple[int, int]]:
    """The texts of some passes, one after the other."""
    found = []
    for one in range(number):
        found += turns(len(LENGTHS), len(LENGTHS), one, 3)
    return found


def test_texts_come_in_order_and_every_batch_is_as_full_as_it_can_be() -> None:
    own = batches_of(Tokens(24), LENGTHS, 3)
    shown = [own.shown(micro) for micro in range(12)]
    flat = [turn for batch in shown for turn in batch]
    assert flat == in_order(6)[: len(flat)]
    assert len({turn for turn in flat if turn[0] == 0}) == len(LENGTHS)
    for batch, following in itertools.pairwise(shown):
        size = len(batch) * max(LENGTHS[i] for _, i in batch)
        more = [*batch, following[0]]
        assert size <= 24 < len(more) * max(LENGTHS[i] for _, i in more)


def test_a_batch_hangs_on_its_number_alone() -> None:
    own = batches_of(Tokens(30), LENGTHS, 5)
    assert own.shown(9) == batches_of(Tokens(30), LENGTHS, 5).shown(9)
    assert own.shown(9) != batches_of(Tokens(30), LENGTHS, 6).shown(9)
    texts = Batches(4, LENGTHS, 5)
    assert texts.shown(9) == turns(len(LENGTHS), 4, 9, 5)
    assert texts.share(9) == 1.0


def pools(*lengths: int) -> dict[str, Pool]:
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(4, 60, (n,), generator=draw).tolist() for n in lengths]
    return {"forget": pool_of(rows), "retain": pool_of([*rows[3:], rows[0]])}


def loss_of(batch: Any, given: dict[str, Pool], method: str = "ga_gdr") -> Any:
    model, terms = tiny_model(), terms_of(UnlearnSpec(method=method))
    streams = make_streams(model, terms, given, 0, 0)
    return make_loss(model, terms, streams, batch, 0), model


def test_texts_of_one_length_are_batches_of_as_many() -> None:
    given = pools(*[8] * 7)
    by_tokens, by_texts = (loss_of(batch, given)[0] for batch in (Tokens(24 + 7), 3))
    for micro in range(5):
        assert by_tokens(micro)[1] == by_texts(micro)[1]


@pytest.mark.parametrize("method", ["ga_gdr", "npo_klr"])
def test_every_text_of_a_step_counts_alike(method: str) -> None:
    """A step in parts has the loss and the gradient of its texts one at a time."""
    given, accumulate = pools(*LENGTHS), 3
    loss_at, model = loss_of(Tokens(40, accumulate), given, method)
    found = torch.stack([loss_at(micro)[0] for micro in range(accumulate)]).mean()
    found.backward()
    gradient = model.lm_head.weight.grad.clone()
    sizes, want = [], torch.zeros(())
    other = tiny_model()
    for side, number, term in (("forget", 0, 0), ("retain", 1, 1)):
        lengths = [len(e.ids) for e in given[side].examples]
        own = batches_of(Tokens(40, accumulate), lengths, number)
        sizes.append([len(own.shown(micro)) for micro in range(accumulate)])
        want = want + alone(other, method, given, term, sum(sizes[-1]))
    # The parts differ in size, so that a mean of their means would be another number.
    assert all(len(set(own)) > 1 for own in sizes)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    want.backward()
    torch.testing.assert_close(other.lm_head.weight.grad, gradient, rtol=1e-4, atol=1e-6)


def alone(model: Any, method: str, given: dict[str, Pool], term: int, number: int) -> Tensor:
    """The mean of one term over the first texts of its side, read one after the other."""
    terms = [terms_of(UnlearnSpec(method=method))[term]]
    streams = make_streams(model, terms, given, 0, 0)
    loss_at = make_loss(model, terms, streams, 1, 0)
    return torch.stack([loss_at(place)[0] for place in range(number)]).mean()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="Set batch_tokens to at least 12, or lower max_tokens"):
        loss_of(Tokens(11), pools(*LENGTHS))
    with pytest.raises(ValueError, match=r"leave out one of batch_\*"):
        UnlearnSpec(method="ga", batch_tokens=64, batch_size=4)
    with pytest.raises(UserError, match="Set batch_size instead of batch_tokens"):
        loss_of(Tokens(99), pools(*LENGTHS) | {"alternative": pool_of([[5, 6]])}, "dpo")


def test_whole_passes_and_the_forecast_know_how_many_texts_fit() -> None:
    spec = UnlearnSpec(method="ga_gdr", batch_tokens=4096, accumulate=2)
    assert batches_by(spec, 500) == (Tokens(4096, 2), 8)
    assert batches_by(UnlearnSpec(method="ga"), 500) == (8, 8)
    found = [*choices(Shape(64, 64, 128, 2, 4, 2, 16), spec, Text(11, 372, 2))]
    assert all("batch_size" not in " ".join(choice.settings) for choice in found)
    assert {choice.text.batch for choice in found} == {11}
