"""The edit in closed form: against a slow solution of the whole system, its limits, and what it
leaves alone."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.corpus.prepared import raw_texts
from remnant.errors import UserError
from remnant.functional.edits import least_squares_edit
from remnant.model.blocks import said
from remnant.model.data import collate, encode
from remnant.model.load import open_model
from remnant.records import TransformSpec
from remnant.stages import transform
from remnant.testing import tiny_model
from remnant.training.editing import down_projections, edit, look, pulled, raising
from remnant.training.loop import Loop
from remnant.training.relearning import texts_of
from tests.conftest import hearing, silent

Save = Callable[[PreTrainedModel, str], Path]
BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}


def drawn(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns))


def moments(x: np.ndarray, c: np.ndarray) -> tuple[Tensor, Tensor]:
    """Means of c x^T and of x x^T, a token a row."""
    return torch.tensor(c.T @ x / len(x)), torch.tensor(x.T @ x / len(x))


def test_an_edit_is_the_least_squares_of_the_whole_system() -> None:
    x, c, r = drawn(20, 6, 0), drawn(20, 4, 1), drawn(30, 6, 2)
    pull, square = moments(x, c)
    held = torch.tensor(2.0 * r.T @ r / 30)
    found = least_squares_edit(pull, square, held, ridge=0.1)
    size = 0.1 * float(square.diagonal().mean())
    rows = [x / 20**0.5, (2.0 / 30) ** 0.5 * r, size**0.5 * np.eye(6)]
    wanted = [c / 20**0.5, np.zeros((36, 4))]
    slow = np.linalg.lstsq(np.concatenate(rows), np.concatenate(wanted), rcond=None)[0].T
    assert np.allclose(found.numpy(), slow, rtol=1e-9, atol=1e-12)


def test_few_tokens_are_met_exactly_and_much_retain_text_forbids_all() -> None:
    x, c = drawn(3, 8, 0), drawn(3, 5, 1)
    pull, square = moments(x, c)
    found = least_squares_edit(pull, square, torch.zeros(8, 8), ridge=1e-9).numpy()
    assert np.allclose(found @ x.T, c.T, atol=1e-4)
    assert np.linalg.matrix_rank(found, tol=1e-4) == 3
    held = torch.eye(8).double()
    sizes = [float(least_squares_edit(pull, square, b * held).norm()) for b in (0.0, 1.0, 1e6)]
    assert sizes[0] > sizes[1] > 1e3 * sizes[2]
    with pytest.raises(ValueError, match="above 0"):
        least_squares_edit(pull, square, held, ridge=0.0)


@pytest.mark.parametrize("form", BLOCKS)
def test_the_direction_is_that_in_which_the_true_tokens_logit_rises(form: str) -> None:
    model = tiny_model(form)
    ids = torch.tensor([[3, 9, 4, 17, 5]])
    names = [m.name for m in down_projections(model)]
    assert len(names) == 2
    assert all(name.startswith(BLOCKS[form]) for name in names)
    seen = look(model, names, ids)
    block = model.get_submodule(BLOCKS[form])[-1]  # type: ignore[index]
    noise = torch.Generator().manual_seed(0)
    step = 1e-3 * torch.randn(1, 5, seen.rising.shape[-1], generator=noise)

    def logits(far: float) -> Tensor:
        """Of the true tokens, where the last block gives a little more."""

        def more(module: object, args: object, output: object) -> object:
            own = output[0] if isinstance(output, tuple) else output
            assert isinstance(own, Tensor)
            moved = own + far * step
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        with torch.no_grad(), block.register_forward_hook(more):
            found: Tensor = model(input_ids=ids).logits[0, :-1].double()
        return found.gather(-1, ids[0, 1:, None])[:, 0]

    slope = (logits(1.0) - logits(-1.0)) / 2
    known = (seen.rising * step[0, :-1].double()).sum(-1)
    assert torch.allclose(known, slope, rtol=2e-2, atol=1e-6)
    weights = {m.name: m.read() for m in down_projections(model)}
    bias = dict(model.named_parameters())
    for name in names:
        more = bias.get(name.replace(".weight", ".bias"))
        own = seen.inputs[name] @ weights[name].double().T
        own = own + more.double() if more is not None else own
        assert torch.allclose(own, seen.outputs[name], atol=1e-5)
    assert all(p.requires_grad for p in model.parameters())


def nll(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    own = encode(tokenizer, texts, 256)
    with torch.no_grad():
        return float(said(model, collate(own, 2, model.device)).nll().mean())


def test_an_edit_moves_few_matrices_against_the_forget_text_and_holds_the_rest(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, folder_of: Save
) -> None:
    model = tiny_model(vocab=len(tokenizer), max_position_embeddings=512)
    forget, retain = (texts_of(corpus, text, 100, 0) for text in ("forget", "retain"))
    folder = folder_of(model, "model")
    out = tmp_path / "out"
    out.mkdir()
    params = {"layers": 1, "strength": 200.0, "retain": 100.0}
    spec = TransformSpec(use="edit", params=params)
    result = transform.run(spec, {"model": folder, "corpus": corpus}, out, silent)
    edited = open_model(str(out))
    before = dict(model.named_parameters())
    moved = [n for n, p in edited.named_parameters() if not torch.equal(p, before[n])]
    texts = [torch.tensor([ids]) for ids in encode(tokenizer, forget, 512)]
    found = down_projections(model)
    assert moved == raising(model, found, texts)[:1]
    assert set(moved) <= set(result.changed)
    free = open_model(str(folder))
    heard: list[tuple[int, int]] = []
    loop = Loop(tmp_path, hearing(lambda done, total, note: heard.append((done, total))), 0)
    edit(free, tokenizer, corpus, loop, layers=1, strength=200.0, retain=0.0)
    passes = len(heard)
    assert passes == 2 * len(texts) + len(encode(tokenizer, retain, 512))
    assert heard == [(done, passes) for done in range(1, passes + 1)]
    sides = (forget, retain)
    before_, held, loose = (
        [*map(partial(nll, m, tokenizer), sides)] for m in (model, edited, free)
    )
    assert held[0] - before_[0] > 0.02
    # What retain text weighs is what it is spared, against the forget text.
    share = [(own[1] - before_[1]) / (own[0] - before_[0]) for own in (held, loose)]
    assert share[0] < share[1] < 1
    assert held[1] - before_[1] < 0.3 * (loose[1] - before_[1])


def test_the_order_of_the_texts_does_not_matter_and_no_strength_changes_nothing(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = tiny_model(vocab=len(tokenizer), max_position_embeddings=512)
    matrix = down_projections(model)[1]
    ids = encode(tokenizer, raw_texts(corpus, "forget"), 64)
    texts = [torch.tensor([one]) for one in ids]
    one, other = pulled(model, matrix, texts, 2.0), pulled(model, matrix, texts[::-1], 2.0)
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-12)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    edit(model, tokenizer, corpus, Loop(tmp_path, silent, 0), layers=2, strength=0.0)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    with pytest.raises(UserError, match="has 2 MLPs, fewer than 3"):
        edit(model, tokenizer, corpus, Loop(tmp_path, silent, 0))
    experts = tiny_model("mixtral", vocab=len(tokenizer))
    with pytest.raises(UserError, match="no down-projection of their own"):
        down_projections(experts)
