"""RMU: distances against a slow float64 reference, the laws of its two terms, and a run in which
nothing but the named matrices moves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.functional import losses
from remnant.functional.hidden import Hidden, direction
from remnant.methods import term_specs
from remnant.model.examples import Example, Pool
from remnant.model.load import open_model
from remnant.model.terms import make_loss, make_streams, terms_of
from remnant.records import UnlearnSpec
from remnant.stages import unlearn
from remnant.testing import tiny_model
from tests.conftest import hearing, silent

LENGTHS = (10, 1, 5)


def hidden(seed: int = 0, size: int = 6) -> Hidden:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(len(LENGTHS), max(LENGTHS), size, generator=generator)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return Hidden(states.requires_grad_(), mask)


def slow(given: Hidden, point: np.ndarray | Tensor) -> list[float]:
    """Per text, the mean over its tokens and coordinates, in float64, one number after the
    other.
    """
    target, found = torch.as_tensor(point).double(), []
    for row, length in enumerate(LENGTHS):
        total = 0.0
        for token in range(length):
            own = given.states[row, token].detach().double()
            aim = target[row, token] if target.ndim == 3 else target
            total += sum((a - b) ** 2 for a, b in zip(own.tolist(), aim.tolist(), strict=True))
        found.append(total / (length * given.states.shape[-1]))
    return found


def point(scale: float, seed: int, size: int = 6) -> Tensor:
    drawn = torch.rand(size, generator=torch.Generator().manual_seed(seed)).double()
    return scale * drawn / drawn.square().sum().sqrt()


@pytest.mark.parametrize(("scale", "seed"), [(6.5, 0), (20.0, 3)])
def test_rmu_is_the_mean_squared_distance_from_one_point(scale: float, seed: int) -> None:
    given = hidden()
    found = losses.rmu(given, scale=scale, seed=seed)
    assert found.tolist() == pytest.approx(slow(given, point(scale, seed)), rel=1e-5)
    (grad,) = torch.autograd.grad(found.sum(), given.states)
    for row, length in enumerate(LENGTHS):
        gap = given.states[row].detach().double() - point(scale, seed)
        expected = 2 * gap / (length * 6) * given.mask[row][:, None]
        assert torch.allclose(grad[row].double(), expected, atol=1e-6)


def test_the_point_is_one_of_positive_coordinates_at_the_distance_that_is_asked_for() -> None:
    for seed in range(5):
        drawn = direction(64, seed)
        assert bool((drawn >= 0).all())
        assert drawn.norm().item() == pytest.approx(1.0, rel=1e-6)
        assert torch.equal(drawn, direction(64, seed))
    assert not torch.equal(direction(64, 0), direction(64, 1))


def test_the_adaptive_point_lies_a_multiple_of_the_targets_norm_away() -> None:
    given, norm = hidden(), torch.tensor(3.0)
    assert torch.allclose(
        losses.adaptive_rmu(given, norm, scale=5.0, seed=2),
        losses.rmu(given, scale=15.0, seed=2),
        rtol=1e-6,
    )


def test_the_forget_loss_is_zero_at_the_point_and_nowhere_else() -> None:
    given = hidden()
    there = Hidden(point(6.5, 0).float().expand_as(given.states).clone(), given.mask)
    assert float(losses.rmu(there).max()) < 1e-12
    for row, length in enumerate(LENGTHS):
        off = there.states.clone()
        off[row, length - 1, 0] += 1e-2  # the last token counts too
        moved = losses.rmu(Hidden(off, given.mask))
        assert [bool(v > 1e-8) for v in moved] == [i == row for i in range(len(LENGTHS))]


def test_retain_is_zero_at_the_target_and_knows_no_rotation() -> None:
    own, ref = hidden(1), hidden(2)
    assert torch.equal(losses.hidden_mse(own, own), torch.zeros(3))
    known = slow(own, ref.states.detach())
    assert losses.hidden_mse(own, ref).tolist() == pytest.approx(known, rel=1e-5)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
    turned = [Hidden(h.states @ turn, h.mask) for h in (own, ref)]
    assert torch.allclose(losses.hidden_mse(*turned), losses.hidden_mse(own, ref), rtol=1e-5)
    gap = (own.counted() @ turn - point(6.5, 0).float() @ turn).square().mean(-1)
    assert torch.allclose(own.mean(gap), losses.rmu(own), rtol=1e-5)


def test_padding_has_no_influence_not_even_infinity() -> None:
    given = hidden()
    noise = torch.where(given.mask[..., None], given.states, torch.inf)
    wider = torch.nn.functional.pad(given.states, (0, 0, 0, 4), value=7.0)
    wide = Hidden(wider, torch.nn.functional.pad(given.mask, (0, 4)))
    for other in (Hidden(noise, given.mask), wide):
        assert torch.equal(losses.rmu(other), losses.rmu(given))
        assert torch.equal(losses.hidden_mse(other, other), torch.zeros(3))


def test_a_batch_is_its_texts_alone_whatever_their_lengths() -> None:
    given, norm = hidden(), torch.tensor(2.0)
    for row, length in enumerate(LENGTHS):
        alone = Hidden(given.states[row : row + 1, :length], given.mask[row : row + 1, :length])
        for loss in (losses.rmu, lambda h: losses.adaptive_rmu(h, norm)):
            assert loss(alone)[0].item() == pytest.approx(loss(given)[row].item(), rel=1e-6)


def pools() -> dict[str, Pool]:
    generator = torch.Generator().manual_seed(0)

    def some(lengths: tuple[int, ...]) -> Pool:
        drawn = [torch.randint(4, 64, (n,), generator=generator).tolist() for n in lengths]
        return Pool([Example(str(i), ids) for i, ids in enumerate(drawn)])

    return {"forget": some((9, 3, 6)), "retain": some((4, 8, 5))}


@pytest.mark.parametrize("method", ["rmu", "adaptive_rmu"])
def test_at_the_target_retain_is_zero_and_forget_the_distance_of_its_states(method: str) -> None:
    spec = UnlearnSpec(method=method, batch_size=3, params={"layer": 1, "scale": 2.0, "seed": 4})
    model, terms = tiny_model(num_hidden_layers=3), terms_of(spec)
    loss_at = make_loss(model, terms, make_streams(model, terms, pools(), 0, 0), 3, 0)
    parts = loss_at(0)[1]
    assert parts["hidden_mse"] == pytest.approx(0.0, abs=1e-10)
    assert "forget_nll" not in parts
    with torch.no_grad():
        states = [
            model(input_ids=torch.tensor([e.ids]), output_hidden_states=True).hidden_states[2][0]
            for e in pools()["forget"].examples
        ]
    norm = torch.cat(states).norm(dim=-1).mean().item() if method == "adaptive_rmu" else 1.0
    aim = point(2.0 * norm, 4, 64)
    known = np.mean([float((s.double() - aim).square().mean()) for s in states])
    assert parts[method] == pytest.approx(known, rel=1e-4)


def test_nothing_reaches_the_reference() -> None:
    spec = UnlearnSpec(method="adaptive_rmu", params={"layer": 1})
    model, terms = tiny_model(num_hidden_layers=3), terms_of(spec)
    groups = make_streams(model, terms, pools(), 0, 0)
    kept = [groups[side].streams[side].kept["reference"] for side in ("forget", "retain")]
    before = [s.clone() for s in kept[1].states[1]], kept[0].norms[1].clone()
    make_loss(model, terms, groups, 3, 0)(0)[0].backward()
    assert not any(s.requires_grad for s in kept[1].states[1])
    assert all(torch.equal(a, b) for a, b in zip(kept[1].states[1], before[0], strict=True))
    assert torch.equal(kept[0].norms[1], before[1])


def test_settings_go_to_the_terms_that_have_them() -> None:
    given = {"layer": 3, "scale": 9.0}
    forget, retain = term_specs(UnlearnSpec(method="rmu", alpha=1200.0, params=given))
    assert (forget.params, retain.params) == (given, {"layer": 3})
    assert (forget.weight, retain.weight) == (1.0, 1200.0)


@pytest.mark.parametrize("method", ["rmu", "adaptive_rmu"])
def test_only_the_named_matrices_move_and_a_cut_run_ends_with_the_same_bits(
    method: str,
    corpus: Path,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    folder_of: Callable[[PreTrainedModel, str], Path],
) -> None:
    model = tiny_model(vocab=len(tokenizer), num_hidden_layers=4, max_position_embeddings=1024)
    target = folder_of(model, "target")
    spec = UnlearnSpec.model_validate(
        {
            "method": method, "params": {"layer": 2, "scale": 4.0}, "alpha": 2.0, "lr": 1e-2,
            "steps": 6, "batch_size": 3, "select": "last", "train": ["layers.0-2.mlp.down_proj"],
            "weight_decay": 0.1,
        }
    )  # fmt: skip

    def run(name: str, cut: int | None) -> Any:
        out = tmp_path / name
        out.mkdir(exist_ok=True)

        def stop(done: int, total: int, note: str) -> None:
            if done == cut:
                raise KeyboardInterrupt

        work = hearing(stop) if cut else silent
        unlearn.run(spec, {"target": target, "corpus": corpus}, out, work)
        return (out / "model.safetensors").read_bytes(), (out / "steps.jsonl").read_text()

    whole = run("whole", None)
    with pytest.raises(UserError, match="Interrupted"):
        run("cut", 3)
    assert run("cut", None) == whole
    log = [json.loads(line) for line in whole[1].splitlines()]
    assert log[-1][method] < log[0][method]
    before = dict(model.named_parameters())
    for name, after in open_model(str(tmp_path / "whole")).named_parameters():
        moved = not torch.equal(after, before[name])
        assert moved == ("down_proj" in name and name.split(".")[2] in "012"), name


def test_a_layer_that_is_not_there_is_said(
    corpus: Path,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    folder_of: Callable[[PreTrainedModel, str], Path],
) -> None:
    target = folder_of(tiny_model(vocab=len(tokenizer), max_position_embeddings=1024), "target")
    spec = UnlearnSpec(method="rmu", steps=1)
    with pytest.raises(UserError, match="has 2 blocks, so there is no layer 7"):
        unlearn.run(spec, {"target": target, "corpus": corpus}, tmp_path, silent)
