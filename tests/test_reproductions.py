"""The released code's variants, a user's file, break the laws that the paper's formulas keep."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.catalog import LOSSES
from remnant.corpus.prepared import raw_texts
from remnant.functional.view import IGNORED, View
from remnant.methods import LOSS_READS
from remnant.model.data import encode
from remnant.model.examples import pool_of
from remnant.model.terms import make_loss, make_streams, reads_forget_only, terms_of
from remnant.records import UnlearnSpec
from remnant.resolve import Method, resolve
from remnant.testing import check_loss, readings, tiny_model
from remnant.trainable.layers import everything
from remnant.training.loop import fit
from tests.conftest import silent

FILE = Path(__file__).parent.parent / "reproductions" / "paper_code.py"


def method(name: str) -> Method:
    return resolve("loss", f"{FILE}:{name}", LOSSES, LOSS_READS, {})


@pytest.mark.parametrize("name", ["npo", "klr"])
def test_the_released_losses_change_with_a_constant_on_the_logits(name: str) -> None:
    broken = {r.law for r in check_loss(method(name)) if r.outcome == "failed"}
    assert "a constant on the logits does not matter" in broken


def test_the_released_kl_falls_below_zero() -> None:
    values = readings()
    raised = View(values["retain"].logits + 10.0, values["retain"].labels)
    assert bool((method("klr").load()(raised, values["ref_retain"]) < 0).all())


def test_the_released_npo_never_reads_the_labels() -> None:
    values, npo = readings(), method("npo").load()
    other = View(
        values["forget"].logits, torch.where(values["forget"].labels == IGNORED, IGNORED, 0)
    )
    ref = View(values["ref_forget"].logits, other.labels)
    assert torch.equal(npo(values["forget"], values["ref_forget"]), npo(other, ref))


Losses = Callable[[PreTrainedModel, UnlearnSpec], tuple[Any, Any]]


@pytest.fixture
def losses(corpus: Path, tokenizer: PreTrainedTokenizerBase) -> Losses:
    """The loss of all terms and that of the forget terms, on the same texts."""
    texts = {"forget": raw_texts(corpus, "forget")[:8], "retain": raw_texts(corpus, "retain1")[:8]}

    def make(model: PreTrainedModel, spec: UnlearnSpec) -> tuple[Any, Any]:
        terms, pad = terms_of(spec), tokenizer.pad_token_id
        pools = {side: pool_of(encode(tokenizer, found, 64)) for side, found in texts.items()}
        streams = make_streams(model, terms, pools, pad, spec.seed)
        forget = [term for term in terms if reads_forget_only(term)]
        return (
            make_loss(model, terms, streams, spec.batch_size, pad),
            make_loss(model, forget, streams, spec.batch_size, pad),
        )

    return make


def gradients_after(model: PreTrainedModel, loss_at: Any) -> dict[str, Tensor]:
    loss_at(0)[0].backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def masked(model: PreTrainedModel, losses: tuple[Any, Any], percentile: float) -> Any:
    return runpy.run_path(str(FILE))["masked"](model, *losses, percentile)


def test_the_released_code_counts_the_forget_gradient_twice(
    tokenizer: PreTrainedTokenizerBase, losses: Losses
) -> None:
    model = everything(tiny_model(vocab=len(tokenizer))).model
    doubled = UnlearnSpec.model_validate(
        {"terms": [{"use": "ga", "weight": 2.0}, {"use": "gdr", "weight": 2.0}]}
    )
    spec = UnlearnSpec(method="ga_gdr", alpha=2.0)
    expected = gradients_after(model, losses(model, doubled)[0])
    model.zero_grad()
    found = gradients_after(model, masked(model, losses(model, spec), 0))
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-6), name


def test_the_released_mask_stops_gradients_but_not_the_optimiser(
    tokenizer: PreTrainedTokenizerBase, losses: Losses, tmp_path: Path
) -> None:
    model = tiny_model(vocab=len(tokenizer))
    spec = UnlearnSpec.model_validate(
        {"method": "ga_gdr", "steps": 6, "lr": 1e-3, "batch_size": 2, "weight_decay": 0.1}
    )
    moving = everything(model)
    loss_at = masked(model, losses(model, spec), 90)
    found = gradients_after(model, loss_at)
    rows = {n: (g != 0).flatten(1).any(-1) if g.ndim > 1 else g != 0 for n, g in found.items()}
    share = sum(int(r.sum()) for r in rows.values()) / sum(r.numel() for r in rows.values())
    assert 0 < share <= 0.11
    model.zero_grad()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    fit(moving, spec, loss_at, tmp_path, silent)
    assert all(
        bool((p.detach() != before[n]).float().mean() > 0.9)
        for n, p in model.named_parameters()
        if p.ndim > 1
    )
