"""Losses in pieces of positions against whole logits: values, gradients, what exists at once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.corpus.prepared import raw_texts
from remnant.functional import pieces
from remnant.functional.losses import klr, npo
from remnant.functional.pieces import Head, Unmade
from remnant.functional.view import IGNORED, View
from remnant.model.blocks import said
from remnant.model.data import Batch, encode
from remnant.model.examples import pool_of
from remnant.model.head import trained_head
from remnant.model.terms import make_loss, make_streams, terms_of
from remnant.records import UnlearnSpec
from remnant.testing import tiny_model

V, H = 37, 8
CLOSE = 1e-6
Values = Callable[[View, View], Tensor]
FUNCTIONS: dict[str, Values] = {
    "logp": lambda own, ref: own.seq_logp(),
    "npo": lambda own, ref: npo(own, ref.seq_logp().detach()),
    "klr": klr,
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of three rows, none of which are kept."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", 4 * V * 3)
    monkeypatch.setattr(pieces, "KEPT_BYTES", 0)


def labels() -> Tensor:
    ids = torch.randint(0, V, (3, 9), generator=torch.Generator().manual_seed(1))
    ids[0, :4] = IGNORED
    ids[1, 6:] = IGNORED
    return ids


def inputs(bias: bool) -> list[Tensor]:
    noise = torch.Generator().manual_seed(2)
    shapes: list[tuple[int, ...]] = [(3, 9, H), (V, H), *([(V,)] if bias else [])]
    return [torch.randn(s, generator=noise).requires_grad_() for s in shapes]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_logits_that_are_kept_give_the_bits_of_those_made_again(
    name: str, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        made.append(len(states))
        return linear(states, weight, bias)

    monkeypatch.setattr(pieces, "linear", counted)
    found = []
    for kept in (0, 1 << 20):
        monkeypatch.setattr(pieces, "KEPT_BYTES", kept)
        given = inputs(bias=False)
        own = View(Unmade(given[0], Head(given[1], None, 2.0)), labels())
        ref = View(Unmade(given[0].detach().sin(), Head(given[1].detach(), None, 2.0)), labels())
        before = len(made)
        gradients = torch.autograd.grad(FUNCTIONS[name](own, ref).sum(), given)
        found.append((len(made) - before, gradients))
    (often, again), (once, held) = found
    assert all(torch.equal(a, b) for a, b in zip(again, held, strict=True))
    assert once < often


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("bias", [False, True])
def test_pieces_give_the_values_and_gradients_of_the_whole(
    name: str, cap: float | None, bias: bool, small: None
) -> None:
    states = torch.randn(3, 9, H, generator=torch.Generator().manual_seed(3))
    found = []
    for whole in (True, False):
        given = inputs(bias)
        head = Head(given[1], given[2] if bias else None, cap)
        own, ref = Unmade(given[0], head), Unmade(states, head.frozen())
        views = [View(u.made() if whole else u, labels()) for u in (own, ref)]
        value = FUNCTIONS[name](views[0], views[1])
        # Weights of their own, so that each text's gradient is another.
        gradients = torch.autograd.grad((value * torch.tensor([1.0, -2.0, 0.5])).sum(), given)
        found.append([value.detach(), *gradients])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, CLOSE, CLOSE)
        assert bool(a.any())


def test_a_reference_of_whole_logits_is_read_in_pieces_too(small: None) -> None:
    states, weight = (t.detach() for t in inputs(bias=False))
    head = Head(weight, None, None)
    ref = torch.randn(3, 9, V, generator=torch.Generator().manual_seed(3))
    expected = klr(View(head(states), labels()), View(ref, labels()))
    found = klr(View(Unmade(states, head), labels()), View(ref, labels()))
    assert torch.allclose(expected, found, CLOSE, CLOSE)


def test_no_more_than_a_piece_of_logits_exists_at_once(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    plain = linear

    def counted(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        found = plain(states, weight, bias)
        made.append(found.numel())
        return found

    monkeypatch.setattr("remnant.functional.pieces.linear", counted)
    states, weight = inputs(bias=False)
    view = View(Unmade(states, Head(weight, None, None)), labels())
    view.seq_logp().sum().backward()
    counting = int((labels()[:, 1:] != IGNORED).sum())
    assert max(made) <= 3 * V
    assert sum(made) == 2 * counting * V  # nothing for tokens that do not count, twice for others


def test_texts_without_a_counted_token_have_a_value_and_no_gradient(small: None) -> None:
    states, weight = inputs(bias=False)
    nothing = torch.full((3, 9), IGNORED)
    view = View(Unmade(states, Head(weight, None, None)), nothing)
    value = view.seq_logp()
    assert value.tolist() == [0.0, 0.0, 0.0]
    value.sum().backward()
    assert states.grad is not None
    assert not bool(states.grad.any())


def test_weights_that_stand_still_get_no_gradient(small: None) -> None:
    states, weight = inputs(bias=False)
    still = weight.detach()
    View(Unmade(states, Head(still, None, None)), labels()).seq_logp().sum().backward()
    assert still.grad is None
    assert states.grad is not None
    assert bool(states.grad.any())


def test_sums_in_bfloat16_are_taken_in_float32(small: None) -> None:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        states, weight = (t.detach().bfloat16().to(dtype).requires_grad_() for t in inputs(False))
        value = View(Unmade(states, Head(weight, None, None)), labels()).seq_logp()
        assert value.dtype == torch.float32
        (gradient,) = torch.autograd.grad(value.sum(), weight)
        found.append((value.detach(), gradient.float()))
    (exact, of_exact), (rounded, of_rounded) = found
    assert torch.allclose(exact, rounded, rtol=2e-2)
    assert float((of_exact - of_rounded).norm() / of_exact.norm()) < 1e-2


def test_greedy_choices_are_those_of_the_whole(small: None) -> None:
    states, weight = (t.detach() for t in inputs(bias=False))
    head = Head(weight, None, None)
    whole, parts = View(head(states), labels()), View(Unmade(states, head), labels())
    assert torch.equal(whole.greedy()[whole.mask], parts.greedy()[whole.mask])


@pytest.mark.parametrize("form", ["llama", "gemma2", "gpt2", "mixtral", "cohere"])
@pytest.mark.parametrize("method", ["npo_klr", "ga_gdr"])
def test_a_step_in_pieces_has_the_losses_and_gradients_of_the_whole(
    form: str,
    method: str,
    corpus: Path,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = UnlearnSpec(method=method, batch_size=3)
    terms, pad = terms_of(spec), tokenizer.pad_token_id
    splits = {"forget": "forget", "retain": "retain1"}
    texts = {side: encode(tokenizer, raw_texts(corpus, s), 48) for side, s in splits.items()}

    def stepped() -> tuple[dict[str, float], list[Tensor]]:
        model = tiny_model(form, vocab=len(tokenizer))
        pools = {side: pool_of(some) for side, some in texts.items()}
        streams = make_streams(model, terms, pools, pad, 0)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        loss, parts = make_loss(model, terms, streams, 3, pad)(0)
        loss.backward()
        return parts, [p.grad for p in model.parameters() if p.grad is not None]

    expected, gradients = stepped()
    monkeypatch.setattr(pieces, "PIECE_BYTES", 4 * len(tokenizer) * 10)
    found, others = stepped()
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    largest = max(float(g.abs().max()) for g in gradients)
    for a, b in zip(gradients, others, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-5 * largest)


def batch(model: PreTrainedModel) -> Batch:
    ids = torch.arange(12).view(2, 6)
    return Batch(ids, torch.ones_like(ids), ids)


def test_a_head_that_is_more_than_one_linear_layer_is_not_taken_apart() -> None:
    assert trained_head(tiny_model("cohere")) is None  # scales its logits
    model = tiny_model()
    head = trained_head(model)
    assert head is not None
    assert head.weight is model.get_output_embeddings().weight
    model.set_output_embeddings(nn.Sequential(model.get_output_embeddings()))
    assert trained_head(model) is None


def test_few_logits_are_computed_whole() -> None:
    model = tiny_model()
    view = said(model, batch(model), trained_head(model))
    assert isinstance(view.given, Tensor)
