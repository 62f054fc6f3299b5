"""Options of the optimiser: gradients against a slow reference in float64, accumulated batches,
masks, clipping, resumption, and what each of them refuses."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from remnant.errors import Interrupted, UserError
from remnant.methods import check_update
from remnant.model.terms import forget_losses, make_loss, make_streams, terms_of
from remnant.parsing import parse
from remnant.records import OptimSpec, SamSpec, TrainSpec, UnlearnResult, UnlearnSpec
from remnant.stages import unlearn
from remnant.testing import tiny_model
from remnant.trainable.attach import attach
from remnant.trainable.layers import everything
from remnant.trainable.parts import Part
from remnant.trainable.trainable import Trainable, as_they_are
from remnant.training import gradients
from remnant.training.gradients import LOST, Halves, drawn, gather, losses_of, moved_by
from remnant.training.loop import fit
from remnant.training.stepper import in_regime
from tests.conftest import hearing, silent
from tests.test_loss_references import pools

UPDATES: list[Any] = ["sam", "sign", "zeroth", "rectified"]
REFUSED: list[tuple[type[OptimSpec], dict[str, Any], str]] = [
    (UnlearnSpec, {"update": "adam"}, "Write one of sam, sign, zeroth, rectified"),
    (UnlearnSpec, {"update": {"use": "sam", "spread": 1}}, "update.spread"),
    (UnlearnSpec, {"update": {"use": "sam", "radius": 0}}, "update.radius"),
    (UnlearnSpec, {"update": "sign", "clip": 1.0}, "leave clip out"),
    (UnlearnSpec, {"update": "zeroth", "beta2": 0.9}, "leave beta2 out"),
    (UnlearnSpec, {"update": "sam", "grids": ["int4"]}, "one of them rounded"),
    (UnlearnSpec, {"update": "zeroth", "grids": ["int4"]}, "one of them rounded"),
    (TrainSpec, {"update": "rectified"}, "which only unlearning does"),
]


def cubic(weights: list[nn.Parameter], scale: float) -> Tensor:
    """A loss whose gradient hangs on where it is taken."""
    return torch.stack([(scale * w.pow(3) + w).sum() for w in weights]).sum()


def two() -> tuple[list[nn.Parameter], list[Part]]:
    """Two weights in float64, of the second of which only some numbers move."""
    noise = torch.Generator().manual_seed(1)
    own = [nn.Parameter(torch.randn(s, generator=noise).double()) for s in ((3, 2), (5,))]
    return own, [Part(own[0]), Part(own[1], slice(1, 4))]


def gradients_of(
    update: Any, scales: tuple[float, float], step: int = 0
) -> tuple[list[np.ndarray], dict[str, float], list[np.ndarray]]:
    """The gradients that an option makes of two cubics, forget and retain, what it says, and the
    weights, of the parts alone."""
    own, parts = two()
    spec = OptimSpec.model_validate({"update": update, "accumulate": 2})

    def at(name: str, scale: float) -> Callable[[int], tuple[Tensor, dict[str, float]]]:
        def loss_at(micro: int) -> tuple[Tensor, dict[str, float]]:
            # The two micro-batches of a step lie to either side of its loss.
            loss = (0.5 + micro % 2) * cubic(own, scale)
            return loss, {name: loss.item()}

        return loss_at

    model: Any = nn.Module()
    moving = Trainable(model, parts, dict, print, lambda: model, versions=as_they_are)
    halves = Halves(at("forget", scales[0]), at("retain", scales[1]))
    whole = at("forget", scales[0])
    loss: Any = whole if spec.update is None or spec.update.use == "zeroth" else halves
    before = [w.detach().clone() for w in own]
    said = gather(moving, parts, spec, loss, step)
    assert all(torch.equal(w, b) for w, b in zip(own, before, strict=True))
    return (
        [part.slope().numpy() for part in parts],
        said,
        [part.read().detach().numpy().copy() for part in parts],
    )


def slope(weights: list[np.ndarray], scale: float) -> np.ndarray:
    """By hand, all parts in one row."""
    return np.concatenate([(3 * scale * w**2 + 1).ravel() for w in weights])


def in_a_row(values: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([v.ravel() for v in values])


@pytest.mark.parametrize("radius", [0.01, 0.5])
def test_sam_is_the_gradient_up_the_forget_loss_and_the_rest_at_the_weights(radius: float) -> None:
    found, said, weights = gradients_of({"use": "sam", "radius": radius}, (0.7, -0.2))
    up = slope(weights, 0.7)
    there = in_a_row(weights) + radius * up / np.sqrt((up**2).sum())
    expected = slope([there], 0.7) + slope(weights, -0.2)
    assert np.allclose(in_a_row(found), expected, rtol=1e-12)
    assert not np.allclose(expected, up + slope(weights, -0.2), rtol=1e-3)
    assert said[LOST] == 0.0
    assert set(said) == {"forget", "retain", LOST}


@pytest.mark.parametrize("retain", [-0.9, 0.9])
def test_what_goes_against_the_retain_gradient_is_taken_off(retain: float) -> None:
    found, said, weights = gradients_of("rectified", (0.7, retain))
    f, r = slope(weights, 0.7), slope(weights, retain)
    dot = f @ r
    kept = f - dot / (r @ r) * r if dot < 0 else f
    assert np.allclose(in_a_row(found), kept + r, rtol=1e-10)
    assert said["cosine"] == pytest.approx(dot / np.sqrt((f @ f) * (r @ r)))
    assert (dot < 0) == (retain < 0)
    rest = in_a_row(found) - r
    assert rest @ r >= -1e-9
    assert abs(rest @ r) < 1e-9 or dot > 0


def test_two_points_give_the_slope_along_a_direction_and_its_mean_is_the_gradient() -> None:
    found, said, weights = gradients_of({"use": "zeroth", "spread": 1e-4}, (0.7, 0.0), step=3)
    _, parts = two()
    z = in_a_row([d.numpy() for d in drawn(parts, 0, 3)])
    expected = (slope(weights, 0.7) @ z) * z
    assert np.allclose(in_a_row(found), expected, rtol=1e-5)
    assert said[LOST] == 0.0
    many = [gradients_of("zeroth", (0.7, 0.0), step=n)[0] for n in range(3000)]
    mean = np.mean([in_a_row(one) for one in many], 0)
    exact = slope(weights, 0.7)
    # The deviation of one number of an estimate is about the length of the gradient.
    assert np.abs(mean - exact).max() < 4 * np.sqrt((exact**2).sum() / 3000)
    other, _, _ = gradients_of("zeroth", (0.7, 0.0), step=4)
    assert not np.allclose(in_a_row(many[3]), in_a_row(other))


def run(folder: Path, cut: int | None = None, **settings: Any) -> tuple[PreTrainedModel, list[Any]]:
    """A small run: the model at its end, and its log."""
    given = {"method": "npo_gdr", "steps": 4, "lr": 1e-3, "batch_size": 4}
    spec = UnlearnSpec.model_validate(given | settings)
    folder.mkdir(exist_ok=True)
    model, terms = in_regime(tiny_model(), spec), terms_of(spec)
    groups = make_streams(model, terms, pools(), 0, spec.seed)
    size = spec.batch_size
    loss = losses_of(spec, terms, lambda own: make_loss(model, own, groups, size, 0))
    moving = attach(model, spec, lambda: forget_losses(model, terms, groups, size, 0))

    def stop(done: int, total: int, note: str) -> None:
        if done == cut:
            raise KeyboardInterrupt

    fit(moving, spec, loss, folder, hearing(stop))
    lines = (folder / "steps.jsonl").read_text().splitlines()
    return model, [json.loads(line) for line in lines]


def weights_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_a_run_that_was_cut_ends_with_the_same_bits(
    update: str, weights: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"update": update, "weights": weights, "accumulate": 2, "batch_size": 2}
    whole, log = run(tmp_path / "whole", **given)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", 2, **given)
    found, own = run(tmp_path / "cut", **given)
    assert log == own
    pairs = zip(weights_of(whole).values(), weights_of(found).values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    plain, _ = run(tmp_path / "plain", **(given | {"update": None}))
    pairs = zip(weights_of(whole).values(), weights_of(plain).values(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("cut", [1, 3])
def test_a_look_that_is_cut_off_leaves_the_weights_as_they_were(
    cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = everything(tiny_model()).parts
    before = [part.read().clone() for part in parts]
    writes: list[int] = []
    own = Part.write

    def write(self: Part, value: Tensor) -> None:
        own(self, value)
        writes.append(1)
        if len(writes) == cut:
            raise KeyboardInterrupt

    def look() -> None:
        with moved_by(parts, (torch.ones_like(one) for one in before)):
            pass

    monkeypatch.setattr(Part, "write", write)
    with pytest.raises(KeyboardInterrupt):
        look()
    assert all(torch.equal(p.read(), b) for p, b in zip(parts, before, strict=True))


@pytest.mark.parametrize("update", UPDATES)
def test_two_small_batches_are_one_large_one(update: str, tmp_path: Path) -> None:
    # A sign is as large where the gradient is next to nothing, so one step is compared there in
    # the numbers that agree; a rate of which the others show no more than their rounding.
    whole, _ = run(tmp_path / "1", update=update, steps=1, lr=1e-3)
    half, _ = run(tmp_path / "2", update=update, steps=1, lr=1e-3, accumulate=2, batch_size=2)
    before, found, own = map(weights_of, (tiny_model(), whole, half))
    moved = torch.cat([(found[n] - before[n]).flatten() for n in before])
    other = torch.cat([(own[n] - before[n]).flatten() for n in before])
    assert float(moved.norm()) > 0
    near = (moved - other).abs() <= 1e-2 * moved.abs() + 1e-7
    assert float(near.float().mean()) > 0.995


@pytest.mark.parametrize("update", UPDATES)
def test_outside_a_mask_nothing_moves_and_nothing_is_looked_at(update: str, tmp_path: Path) -> None:
    masked = {"sure": {"percentile": 70, "unit": "row"}}
    found, _ = run(tmp_path / "run", update=update, train=masked, weight_decay=0.1)
    spec = UnlearnSpec.model_validate({"method": "npo_gdr", "batch_size": 4, "train": masked})
    model, terms = tiny_model(), terms_of(spec)
    groups = make_streams(model, terms, pools(), 0, 0)
    moving = attach(model, spec, lambda: forget_losses(model, terms, groups, 4, 0))
    before = weights_of(tiny_model())
    inside = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in before.items()}
    names = {id(p): name for name, p in model.named_parameters()}
    for part in moving.parts:
        inside[names[id(part.parameter)]][part.index] = True
    moved = {n: found_ != before[n] for n, found_ in weights_of(found).items()}
    assert not any(bool((moved[n] & ~inside[n]).any()) for n in moved)
    assert any(bool(moved[n].any()) for n in moved)


def length(after: dict[str, Tensor], before: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((after[n] - before[n]).square().sum()) for n in before))


@pytest.mark.parametrize("update", ["sam", "zeroth", "rectified"])
def test_the_gradient_that_is_clipped_is_that_of_the_option(update: str, tmp_path: Path) -> None:
    # Plain descent goes as far as the norm says, AdamW in its first step as far as the rate.
    free, _ = run(tmp_path / "free", update=update, steps=1, lr=1e-3)
    clipped, _ = run(tmp_path / "clipped", update=update, steps=1, lr=1e-3, clip=1e-3)
    before = weights_of(tiny_model())
    far, near = (length(weights_of(model), before) for model in (free, clipped))
    if update == "zeroth":
        assert near == pytest.approx(1e-6, rel=1e-2)
        assert far > 10 * near
    else:
        assert near == pytest.approx(far, rel=0.1)


def test_a_sign_step_is_the_rate_and_weight_decay_is_that_of_adamw(tmp_path: Path) -> None:
    model, _ = run(tmp_path / "sign", update="sign", steps=1, lr=1e-3, weight_decay=0.1)
    before = weights_of(tiny_model())
    spec = UnlearnSpec(method="npo_gdr", batch_size=4)
    other, terms = tiny_model(), terms_of(spec)
    loss, _ = make_loss(other, terms, make_streams(other, terms, pools(), 0, 0), 4, 0)(0)
    loss.backward()
    for name, parameter in other.named_parameters():
        assert parameter.grad is not None
        expected = before[name] * (1 - 1e-4) - 1e-3 * parameter.grad.sign()
        assert torch.allclose(weights_of(model)[name], expected, atol=1e-8)


def slow_share(part: Tensor, step: Tensor) -> float:
    """Of the numbers that a step moves, the share that it leaves, one by one."""
    pairs = list(zip(part.flatten().tolist(), step.flatten().tolist(), strict=True))
    stay = [torch.tensor(a + b).to(torch.bfloat16).item() == a for a, b in pairs if b]
    return sum(map(int, stay)) / len(stay)


def test_most_of_a_look_beside_is_lost_in_bfloat16_and_counted(tmp_path: Path) -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16()
    own = nn.Parameter(weight.clone())
    step = torch.randn(40, 30, generator=torch.Generator().manual_seed(1)) * 3e-5
    with moved_by([Part(own)], [step]) as lost:
        assert not torch.equal(own, weight)
    assert torch.equal(own, weight)
    assert lost == pytest.approx(slow_share(weight.float(), step))
    shares = {}
    for weights, compute in (("fp32", None), ("bf16", None), ("bf16", "fp32")):
        given: dict[str, Any] = {"update": "sam", "weights": weights, "compute": compute}
        _, log = run(tmp_path / f"{weights}{compute}", **given)
        shares[weights, compute] = np.mean([line[LOST] for line in log])
    assert shares["bf16", None] > 0.5
    assert shares["fp32", None] < 0.05
    assert shares["bf16", "fp32"] < 0.05


def test_the_stage_unlearns_with_an_option_and_counts(
    corpus: Path, model: PreTrainedModel, folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    target = folder_of(model, "target")
    spec = UnlearnSpec.model_validate(
        {"method": "npo_gdr", "update": "sam", "steps": 2, "batch_size": 2, "max_tokens": 32}
        | {"weights": "bf16", "lr": 1e-3, "select": "last"}
    )
    (tmp_path / "out").mkdir()
    found = unlearn.run(spec, {"target": target, "corpus": corpus}, tmp_path / "out", silent)
    lines = (tmp_path / "out" / "steps.jsonl").read_text().splitlines()
    shares = [json.loads(line)[LOST] for line in lines]
    assert found.lost_perturbation == pytest.approx(sum(shares) / 2)
    assert "was lost in rounding" in found.said


def test_a_result_says_what_was_lost_of_looking_beside() -> None:
    told = {"steps": 1, "stopped": "all steps done", "kept_step": 1, "chosen": None}
    told |= {"share_changed": 1.0, "ended": "Well.", "rule": "the last step", "probes": ()}
    whole = UnlearnResult.model_validate(told | {"lost_perturbation": 0.01})
    lost = UnlearnResult.model_validate(told | {"lost_perturbation": 0.93})
    assert "lost" not in whole.said
    assert "93% was lost in rounding; compute in float32" in lost.said


@pytest.mark.parametrize(("record", "settings", "says"), REFUSED)
def test_what_does_not_go_together_is_refused(
    record: type[OptimSpec], settings: dict[str, Any], says: str
) -> None:
    own = {"method": "npo_gdr"} if record is UnlearnSpec else {}
    with pytest.raises(UserError) as error:
        parse(record, own | settings, "run")
    assert says.lower() in str(error.value).lower()


@pytest.mark.parametrize("update", UPDATES)
def test_several_devices_are_refused_in_words(
    update: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "count", lambda: 2)
    with pytest.raises(UserError, match=f"update = {update} is made on one device"):
        run(tmp_path / "run", update=update)


def test_terms_that_an_option_tells_apart_have_to_be_there() -> None:
    for settings in (
        {"method": "npo", "update": "rectified"},
        {"terms": [{"use": "gdr"}], "update": "sam"},
        {"terms": [{"use": "gdr"}], "update": "rectified"},
    ):
        with pytest.raises(UserError, match="update = "):
            check_update(UnlearnSpec.model_validate(settings))
    for update in UPDATES:
        check_update(UnlearnSpec.model_validate({"method": "npo_gdr", "update": update}))
    check_update(UnlearnSpec(method="npo", update=SamSpec()))


def test_without_an_option_a_run_has_the_key_that_it_had() -> None:
    plain = UnlearnSpec(method="npo_gdr").identity()
    assert "update" not in plain
    other = UnlearnSpec.model_validate({"method": "npo_gdr", "update": "sign"}).identity()
    assert other == plain | {"update": {"use": "sign"}}
