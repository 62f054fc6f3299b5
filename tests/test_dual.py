"""Retain losses under a bound, and means that lean to what is forgotten least."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remnant.errors import UserError
from remnant.functional.robust import leaning_mean
from remnant.methods import check_dual
from remnant.model.terms import make_loss, make_streams, mean_loss, terms_of
from remnant.parsing import parse
from remnant.records import UnlearnSpec
from remnant.testing import tiny_model
from remnant.trainable.layers import everything
from remnant.training.dual import make_dual, moved
from remnant.training.loop import fit
from tests.conftest import hearing, silent
from tests.test_loss_references import pools


def run(folder: Path, cut: int | None = None, **settings: Any) -> tuple[list[Tensor], list[Any]]:
    """A small run of PDU: the weights at its end, and its log."""
    given = {"method": "pdu", "steps": 5, "lr": 1e-3, "batch_size": 4, "alpha": 2.0}
    spec = UnlearnSpec.model_validate(given | settings)
    folder.mkdir(exist_ok=True)
    model, terms = tiny_model(), terms_of(spec)
    groups = make_streams(model, terms, pools(), 0, spec.seed)
    log = folder / "steps.jsonl"
    dual = make_dual(model, spec, terms, groups, 0, log)
    loss_at = make_loss(model, terms, groups, spec.batch_size, 0, dual.weigh)

    def watched(micro: int) -> tuple[Tensor, dict[str, float]]:
        total, parts = loss_at(micro)
        return total, parts | {"total": total.item(), "bound": dual.bounds.get("gdr", 0.0)}

    def stop(done: int, total: int, note: str) -> None:
        if done == cut:
            raise KeyboardInterrupt

    fit(everything(model), spec, watched, folder, hearing(stop) if cut else silent)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [p.detach().clone() for p in model.parameters()], lines


def weights_of(log: list[Any]) -> list[float]:
    """What the retain term was weighed by at each step."""
    return [(step["total"] - step["logit_margin"]) / step["gdr"] for step in log]


@pytest.mark.parametrize("warmup", [0, 2])
def test_the_weight_follows_the_retain_loss_once_a_step(warmup: int, tmp_path: Path) -> None:
    _, log = run(tmp_path / "run", dual={"margin": 0.0, "size": 1.0, "warmup": warmup})
    known, weight = [], 2.0
    for number, step in enumerate(log):
        known.append(weight)
        if number >= warmup:
            weight = max(0.0, weight + 1.0 * (step["gdr"] - step["bound"]))
    assert weights_of(log) == pytest.approx(known, rel=1e-4)
    assert len(set(known)) > 2


def test_a_weight_never_falls_below_zero() -> None:
    assert moved(1.0, [0.0, 0.0, 0.5], 0.4, size=10.0) == pytest.approx(1.0)
    assert moved(1.0, [], 0.4, size=10.0) == 1.0


def test_two_small_batches_move_the_weight_as_one_large_one(tmp_path: Path) -> None:
    dual = {"margin": 0.0, "size": 1.0}
    (one, log), (two, _) = (
        run(tmp_path / str(n), batch_size=4 // n, accumulate=n, dual=dual) for n in (1, 2)
    )
    assert len(set(weights_of(log))) > 2
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(one, two, strict=True))


def test_a_run_that_was_cut_goes_on_with_the_same_weight(tmp_path: Path) -> None:
    dual = {"margin": 0.0, "size": 1.0, "warmup": 1}
    whole = run(tmp_path / "whole", dual=dual)
    with pytest.raises(UserError, match="Interrupted"):
        run(tmp_path / "cut", 3, dual=dual)
    weights, log = run(tmp_path / "cut", dual=dual)
    assert log == whole[1]
    assert all(torch.equal(a, b) for a, b in zip(weights, whole[0], strict=True))


def test_the_bound_is_the_targets_own_loss_over_all_retain_text_and_a_margin() -> None:
    spec = UnlearnSpec(method="ga_gdr", batch_size=3)
    model, terms = tiny_model(), terms_of(spec)
    groups = make_streams(model, terms, pools(), 0, 0)
    values = []
    for index in range(4):
        ids = torch.tensor([pools()["retain"].examples[index].ids])
        logp = model(ids).logits.double().log_softmax(-1)[0, :-1]
        said = logp.gather(-1, ids[0, 1:, None])[1:]
        values.append(-said.mean().item())
    assert mean_loss(model, terms[1], groups, 3, 0) == pytest.approx(sum(values) / 4, rel=1e-5)


def test_pdu_is_held_and_others_only_where_they_say_so() -> None:
    assert UnlearnSpec(method="pdu").dual is not None
    assert UnlearnSpec(method="npo_gdr").dual is None
    check_dual(parse(UnlearnSpec, {"method": "npo_gdr", "dual": {"margin": 0.1}}, "unlearn"))
    with pytest.raises(UserError, match="the run has none"):
        check_dual(parse(UnlearnSpec, {"method": "npo", "dual": {}}, "unlearn"))


def test_a_leaning_mean_lies_between_the_mean_and_the_greatest() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    found = [leaning_mean(losses, t).item() for t in (1e6, 10.0, 1.0, 0.01)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(7 / 3, abs=1e-5)
    assert found[-1] == pytest.approx(4.0, abs=0.02)


def test_its_gradient_weighs_the_texts_by_how_little_they_were_forgotten() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(leaning_mean(losses, 0.7), losses)
    assert torch.allclose(grad, (losses / 0.7).softmax(0))


def test_robust_leans_the_forget_terms_alone_and_wants_whole_batches() -> None:
    spec = UnlearnSpec(method="ga_gdr", batch_size=4, robust=0.05)
    model, terms = tiny_model(), terms_of(spec)
    assert [term.robust for term in terms] == [0.05, None]
    groups = make_streams(model, terms, pools(), 0, 0)
    parts = make_loss(model, terms, groups, 4, 0)(0)[1]
    plain = make_loss(model, terms_of(UnlearnSpec(method="ga_gdr")), groups, 4, 0)(0)[1]
    assert parts["gdr"] == plain["gdr"]
    assert parts["ga"] > plain["ga"]
    with pytest.raises(UserError, match="leave accumulate at 1"):
        parse(UnlearnSpec, {"method": "ga", "robust": 1.0, "accumulate": 2}, "unlearn")
