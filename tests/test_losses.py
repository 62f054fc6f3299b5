"""Every loss keeps the laws, and is what its formula says."""

import math

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from remnant.catalog import LOSSES
from remnant.functional import losses
from remnant.functional.view import IGNORED, View
from remnant.methods import LOSS_READS
from remnant.resolve import Method, resolve
from remnant.testing import LOSS_LAWS, check_loss, readings, reads_views


def method(name: str) -> Method:
    return resolve("loss", name, LOSSES, LOSS_READS, {})


@pytest.mark.parametrize("name", LOSSES)
def test_loss_keeps_every_law(name: str) -> None:
    results = list(check_loss(method(name)))
    assert [r.law for r in results] == [law.name for law in LOSS_LAWS]
    assert [r for r in results if r.outcome == "failed"] == []
    skipped = [r.law for r in results if r.outcome == "skipped"]
    about = ["a constant on the logits does not matter"] * (not reads_views(method(name)))
    if not reads_views(method(name)) or not LOSSES[name].labels:
        about.append("labels matter to a likelihood")
    assert skipped == about


@pytest.mark.parametrize("name", [name for name, entry in LOSSES.items() if not entry.labels])
def test_losses_that_do_without_labels_treat_all_tokens_alike(name: str) -> None:
    values, own = readings(), method(name)
    views = [values[read] for read in own.reads]
    turned = [View(one.logits.roll(1, -1), one.labels) for one in views]
    function = own.load()
    assert torch.allclose(function(*views), function(*turned), atol=1e-6)


def view(rows: list[list[float]], labels: list[int]) -> View:
    return View(torch.tensor([rows]), torch.tensor([labels]))


def test_ga_and_gdr_by_hand() -> None:
    # Two counted tokens with probabilities 1/2 and 1/4 of three and four equal and unequal logits.
    given = view([[0.0, 0.0], [math.log(3.0), 0.0], [9.0, 9.0]], [1, 0, 1])
    expected = (math.log(0.5) + math.log(0.25)) / 2
    assert losses.ga(given).item() == pytest.approx(expected, abs=1e-6)
    assert losses.gdr(given).item() == pytest.approx(-expected, abs=1e-6)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_npo_is_the_closed_form(beta: float) -> None:
    values = readings()
    forget, ref = values["forget"], values["ref_forget_logp"]
    ratio = forget.seq_logp() - ref
    closed = (2 / beta) * torch.log(1 + torch.exp(beta * ratio))
    assert torch.allclose(losses.npo(forget, ref, beta=beta), closed, rtol=1e-5, atol=1e-5)


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0]


def test_npo_tends_to_ascent_on_the_sequence_as_beta_vanishes() -> None:
    values = readings()
    forget = values["forget"]
    ascent = gradient(forget.seq_logp(), forget.logits)
    gaps = [
        float(
            (
                gradient(losses.npo(forget, values["ref_forget_logp"], beta=b), forget.logits)
                - ascent
            )
            .abs()
            .max()
        )
        for b in (1e-1, 1e-2, 1e-4)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-3


def test_npo_gradient_vanishes_far_below_the_reference() -> None:
    logits = torch.zeros(1, 3, 4, requires_grad=True)
    forget = View(logits, torch.tensor([[0, 1, 2]]))
    grads = gradient(losses.npo(forget, forget.seq_logp().detach() + 1000.0), logits)
    assert float(grads.abs().max()) < 1e-6


def test_klr_is_at_least_zero_and_zero_at_equality() -> None:
    for seed in range(20):
        values = readings(seed)
        assert bool((losses.klr(values["retain"], values["ref_retain"]) > 0).all())
    same = readings()["retain"]
    assert torch.equal(losses.klr(same, same), torch.zeros(3))
    (grad,) = torch.autograd.grad(
        losses.klr(same, View(same.logits.detach(), same.labels)).sum(), same.logits
    )
    assert float(grad.abs().max()) < 1e-6


def test_klr_by_hand() -> None:
    own, ref = (
        view([[0.0, 0.0], [0.0, 0.0]], [0, 1]),
        view([[math.log(3.0), 0.0], [0.0, 0.0]], [0, 1]),
    )
    assert losses.klr(own, ref).item() == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6
    )


def test_a_sequence_without_counted_tokens_is_worth_nothing() -> None:
    empty = View(torch.randn(1, 3, 4), torch.full((1, 3), IGNORED))
    assert losses.ga(empty).item() == 0.0
    assert losses.klr(empty, empty).item() == 0.0


def test_tensors_of_another_shape_than_a_term_names_are_found_here() -> None:
    view = View(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long))
    losses.npo(view, torch.zeros(2))
    with pytest.raises(TypeCheckError, match="ref_forget_logp"):
        losses.npo(view, torch.zeros(2, 1))
    with pytest.raises(TypeCheckError, match="labels"):
        View(view.logits, torch.zeros(3, 3, dtype=torch.long))
