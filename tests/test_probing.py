"""Reading the inside: a linear probe against another library and by hand, passes that end early
against the final norm and head by hand, a soft prompt against the tokens it begins with."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from remnant.errors import Diverged, UserError
from remnant.functional.losses import gdr
from remnant.functional.probing import plane, told_apart
from remnant.model.blocks import up_to
from remnant.testing import tiny_model
from remnant.training.softprompt import VECTORS, SoftPrompt, learn


def drawn(items: int, entries: int, apart: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(items)
    labels = (np.arange(items) % 2).astype(float)
    vectors = rng.normal(size=(items, entries))
    vectors[:, 0] += apart * labels
    return vectors, labels


@pytest.mark.parametrize("ridge", [0.5, 3.0])
@pytest.mark.parametrize(("items", "entries"), [(40, 3), (12, 30)])
def test_a_plane_is_that_of_another_library(items: int, entries: int, ridge: float) -> None:
    linear: Any = pytest.importorskip("sklearn.linear_model")
    vectors, labels = drawn(items, entries, 1.5)
    other = linear.LogisticRegression(C=1 / ridge, tol=1e-10, max_iter=10_000)
    other.fit(vectors, labels)
    found = plane(vectors, labels, ridge)
    assert found[0] == pytest.approx(other.intercept_[0], abs=1e-4)
    assert found[1:] == pytest.approx(other.coef_[0], abs=1e-4)


def test_the_loss_is_least_at_the_plane() -> None:
    vectors, labels = drawn(30, 4, 1.0)

    def loss(at: np.ndarray) -> float:
        scores = at[0] + vectors @ at[1:]
        each = np.log1p(np.exp(-np.where(labels == 1, scores, -scores)))
        return float(each.sum() + 0.5 * (at[1:] ** 2).sum())

    found, rng = plane(vectors, labels), np.random.default_rng(0)
    around = [loss(found + 0.01 * rng.normal(size=5)) for _ in range(50)]
    assert min(around) > loss(found)


def test_what_differs_is_told_apart_and_what_does_not_is_not() -> None:
    vectors, labels = drawn(200, 5, 4.0)
    assert told_apart(vectors, labels, 5, 0).mean() > 0.9
    nothing, labels = drawn(200, 5, 0.0)
    assert told_apart(nothing, labels, 5, 0).mean() == pytest.approx(0.5, abs=0.05)
    # With more entries than items every labelling can be separated; other folds do not follow it.
    many, labels = drawn(40, 200, 0.0)
    assert told_apart(many, labels, 5, 0).mean() == pytest.approx(0.5, abs=0.1)


def test_no_item_is_judged_by_a_plane_that_has_seen_it() -> None:
    vectors, labels = drawn(20, 2, 0.0)
    before = told_apart(vectors, labels, 20 // 2, 1)
    turned = labels.copy()
    turned[3], turned[2] = labels[2], labels[3]  # as many of either label
    assert (told_apart(vectors, turned, 10, 1) != before).any()
    with pytest.raises(ValueError, match="10 items of one label for 11 folds"):
        told_apart(vectors, labels, 11, 0)


NORMS: dict[str, Callable[[Any], Any]] = {
    "llama": lambda model: model.model.norm,
    "gpt2": lambda model: model.transformer.ln_f,
    "gpt_neox": lambda model: model.gpt_neox.final_layer_norm,
}


@pytest.mark.parametrize("kind", NORMS)
def test_a_pass_that_ends_early_is_norm_and_head_of_what_a_block_gives(kind: str) -> None:
    model = tiny_model(kind, vocab=50, num_hidden_layers=3)
    ids = torch.arange(12)[None] % 50
    with torch.no_grad():
        out = model(input_ids=ids, output_hidden_states=True)
        for depth, layer in ((0.1, 1), (0.34, 2), (0.9, 2), (1.0, 2)):
            head: Any = model.get_output_embeddings()
            wanted = head(NORMS[kind](model)(out.hidden_states[layer]))
            with up_to(model, depth):
                found = model(input_ids=ids).logits
            assert torch.allclose(found, wanted, atol=1e-6)
        assert torch.equal(model(input_ids=ids).logits, out.logits)
    assert not [b for b in model.modules() if "forward" in b.__dict__]


def test_a_single_block_has_nothing_before_its_last() -> None:
    with (
        pytest.raises(UserError, match="single block"),
        up_to(tiny_model(num_hidden_layers=1), 0.5),
    ):
        pass


def test_a_soft_prompt_begins_as_tokens_do_and_moves_nothing_else() -> None:
    model = tiny_model(vocab=50, max_position_embeddings=64)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    prompt = SoftPrompt(model, 3)
    table: Any = model.get_input_embeddings()
    same = (prompt.vectors.detach()[:, None] == table.weight[None]).all(-1)
    tokens = same.nonzero()[:, 1].tolist()
    assert len(tokens) == VECTORS
    texts = [[1, 2, 3, 4, 5, 6], [7, 8, 9]]
    with torch.no_grad():
        view = prompt.said(texts, 0)
        for i, text in enumerate(texts):
            whole = model(input_ids=torch.tensor([tokens + text])).logits[0, VECTORS:]
            assert torch.allclose(view.logits[i, : len(text)], whole, atol=1e-5)
    assert view.mask.sum().item() == 5 + 2
    losses: list[float] = []
    learn(prompt, texts, 30, 2, losses.append)
    assert len(losses) == 30
    assert losses[-1] < losses[0] - 0.3
    with torch.no_grad():
        assert gdr(prompt.said(texts, 0)).mean().item() < losses[0] - 0.3
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


def test_a_soft_prompt_of_a_broken_model_says_so() -> None:
    model = tiny_model(vocab=50, max_position_embeddings=64)
    prompt = SoftPrompt(model, 0)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(float("nan"))
    with pytest.raises(Diverged, match="soft prompt is not finite at step 1"):
        learn(prompt, [[1, 2, 3]], 2, 1, lambda loss: None)
