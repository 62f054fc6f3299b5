"""SURE: saliency against slow references, heads sliced where they are, and a mask that holds
whatever the optimiser does."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.corpus.prepared import raw_texts
from remnant.errors import Interrupted, UserError
from remnant.functional.weights import at_least_percentile
from remnant.model.data import encode
from remnant.model.examples import pool_of
from remnant.model.load import in_dtype, matrices
from remnant.model.terms import forget_losses, make_loss, make_streams, terms_of
from remnant.records import SureResult, SureSpec, UnlearnSpec
from remnant.testing import tiny_model
from remnant.trainable.parts import Part
from remnant.trainable.sure import find, salient, units_of
from remnant.training.loop import fit
from remnant.training.stepper import Stepper, storage_dtype
from tests.conftest import hearing, silent


def setting(
    model: PreTrainedModel,
    corpus: Path,
    tokenizer: PreTrainedTokenizerBase,
    spec: UnlearnSpec,
    batch: int = 4,
) -> tuple[Any, Any]:
    """The loss of a micro-step, and the loss over the whole forget set in parts."""
    pad, terms = tokenizer.pad_token_id, terms_of(spec)
    texts = {"forget": raw_texts(corpus, "forget")[:8], "retain": raw_texts(corpus, "retain1")[:8]}
    streams = make_streams(
        model,
        terms,
        {k: pool_of(encode(tokenizer, v, 64)) for k, v in texts.items()},
        pad,
        spec.seed,
    )

    def whole() -> Iterator[Tensor]:
        return forget_losses(model, terms, streams, batch, pad)

    return make_loss(model, terms, streams, spec.batch_size, pad), whole


def test_percentiles_agree_with_numpy_and_hold_at_the_ends() -> None:
    scores = torch.randn(101, generator=torch.Generator().manual_seed(0))
    for percentile in (0.0, 10.0, 37.5, 90.0, 99.0, 100.0):
        limit = torch.quantile(scores.double(), percentile / 100)
        assert torch.equal(at_least_percentile(scores, percentile), scores.double() >= limit)
    assert bool(at_least_percentile(scores, 0).all())
    assert int(at_least_percentile(scores, 100).sum()) == 1
    with pytest.raises(ValueError, match="0 to 100"):
        at_least_percentile(scores, 101)


@pytest.mark.parametrize("method", ["ga_gdr", "npo_klr"])
@pytest.mark.parametrize("scaled", [False, True])
def test_module_saliency_equals_a_slow_reference(
    method: str, scaled: bool, corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = tiny_model(vocab=len(tokenizer))
    spec, sure = UnlearnSpec(method=method), SureSpec(percentile=80, scaled=scaled)
    _, whole = setting(model, corpus, tokenizer, spec)
    _, at_once = setting(model, corpus, tokenizer, spec, batch=99)
    slow = copy.deepcopy(model).requires_grad_(True)
    (loss,) = setting(slow, corpus, tokenizer, spec, batch=99)[1]()
    loss.backward()
    found = find(model, sure, whole)
    expected: dict[str, float] = {}
    for name, parameter in slow.named_parameters():
        grad = parameter.grad
        if grad is None or grad.ndim != 2 or "embed" in name or "lm_head" in name:
            continue
        if any(p in name for p in ("q_proj", "k_proj", "v_proj")):
            heads = {
                f"{name}[head {h}]": grad[16 * h : 16 * (h + 1)] for h in range(grad.shape[0] // 16)
            }
        elif "o_proj" in name:
            heads = {
                f"{name}[head {h}]": grad[:, 16 * h : 16 * (h + 1)]
                for h in range(grad.shape[1] // 16)
            }
        else:
            heads = {name: grad}
        expected |= {
            k: float(g.norm() / (g.numel() ** 0.5 if scaled else 1)) for k, g in heads.items()
        }
    assert found.result.units == len(expected) == 2 * (4 + 2 + 2 + 4 + 3)
    best = sorted(expected.items(), key=lambda pair: -pair[1])[:10]
    assert [name for name, _ in found.result.most_salient] == [name for name, _ in best]
    assert [s for _, s in found.result.most_salient] == pytest.approx(
        [s for _, s in best], rel=1e-4
    )
    chosen = at_least_percentile(torch.tensor(list(expected.values())), 80)
    assert found.result.moving_units == int(chosen.sum())
    assert all(p.grad is None for p in model.parameters())
    assert at_once is not None


def test_heads_are_sliced_where_they_are() -> None:
    """Zeroing the o-slice of a head equals zeroing what the head computes.

    So does zeroing its group's value slice for all its queries.
    """
    model = tiny_model(num_attention_heads=4, num_key_value_heads=2)
    ids = torch.arange(12)[None]
    attention = model.get_submodule("model.layers.0.self_attn")
    by_name = {m.name: m for m in matrices(model)}
    prefix = "model.layers.0.self_attn."

    def with_zeroed(part_of: str, unit: int) -> Tensor:
        changed = copy.deepcopy(model)
        matrix = {m.name: m for m in matrices(changed)}[prefix + part_of]
        part = list(units_of(changed, matrix, "module"))[unit].parts[0]
        part.write(torch.zeros_like(part.read()))
        with torch.no_grad():
            return torch.as_tensor(changed(input_ids=ids).logits)

    def with_silent_heads(heads: list[int]) -> Tensor:
        def silence(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            mixed = args[0].clone()
            for head in heads:
                mixed[..., 16 * head : 16 * (head + 1)] = 0.0
            return (mixed,)

        hook = attention.get_submodule("o_proj").register_forward_pre_hook(silence)
        with torch.no_grad():
            out = torch.as_tensor(model(input_ids=ids).logits)
        hook.remove()
        return out

    for head in range(4):
        assert torch.allclose(
            with_zeroed("o_proj.weight", head), with_silent_heads([head]), atol=1e-6
        )
    for group in range(2):
        assert torch.allclose(
            with_zeroed("v_proj.weight", group),
            with_silent_heads([2 * group, 2 * group + 1]),
            atol=1e-6,
        )
    assert len(list(units_of(model, by_name[prefix + "q_proj.weight"], "module"))) == 4
    assert len(list(units_of(model, by_name[prefix + "k_proj.weight"], "module"))) == 2


@pytest.mark.parametrize("unit", ["module", "layer", "row", "weight"])
def test_random_units_are_as_many_of_every_size_and_drawn_by_the_seed(
    unit: str, corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    spec = UnlearnSpec(method="ga")
    found: dict[Any, list[tuple[str, Tensor]]] = {}
    results = {}
    for seed in (None, 0, 0, 1):
        model = tiny_model(vocab=len(tokenizer))
        names = {id(p): n for n, p in model.named_parameters()}
        _, whole = setting(model, corpus, tokenizer, spec)
        also = {} if unit in ("module", "layer") else {"also": ["norm"]}
        given = {"unit": unit, "percentile": 70, "random": seed is not None or None} | also
        chosen = find(model, SureSpec.model_validate(given), whole, seed or 0)
        places = []
        for part in chosen.moving:
            mask = torch.zeros_like(part.parameter, dtype=torch.bool)
            mask[... if part.index is None else part.index] = True
            places.append((names[id(part.parameter)], mask))
        if seed in found:
            assert same(found[seed], places)
        found[seed], results[seed] = places, chosen.result
    for seed in (0, 1):
        assert results[seed].moving_units == results[None].moving_units
        assert results[seed].moving_weights == results[None].moving_weights
        assert results[seed].most_salient == ()
    if unit != "layer":  # of two layers one moves
        assert not same(found[None], found[0]) or not same(found[None], found[1])
        assert not same(found[0], found[1])


def same(one: list[tuple[str, Tensor]], other: list[tuple[str, Tensor]]) -> bool:
    if [name for name, _ in one] != [name for name, _ in other]:
        return False
    return all(torch.equal(a, b) for (_, a), (_, b) in zip(one, other, strict=True))


def test_random_units_are_refused_where_they_are_chosen_again() -> None:
    with pytest.raises(ValueError, match="leave renew_every out"):
        SureSpec(random=True, renew_every=3)
    assert SureSpec().identity() == SureSpec.model_validate({"unit": "module"}).identity()
    assert "random" not in SureSpec().identity()


@pytest.mark.parametrize(
    ("unit", "weights"),
    [
        ("module", "bf16"),
        pytest.param("weight", "fp32", marks=pytest.mark.slow),
        pytest.param("module", "fp32", marks=pytest.mark.slow),
        pytest.param("module", "bf16-stochastic-rounding", marks=pytest.mark.slow),
        pytest.param("layer", "fp32", marks=pytest.mark.slow),
        pytest.param("row", "bf16", marks=pytest.mark.slow),
    ],
)
def test_outside_the_mask_nothing_moves_in_many_steps(
    unit: str, weights: Any, corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    plain = tiny_model(vocab=len(tokenizer), num_hidden_layers=2)
    model = in_dtype(plain, storage_dtype(weights))
    spec = UnlearnSpec.model_validate(
        {
            "method": "npo_klr",
            "lr": 1e-3,
            "steps": 60,
            "batch_size": 2,
            "weight_decay": 0.1,
            "weights": weights,
        }
    )
    sure = SureSpec.model_validate({"unit": unit, "percentile": 70})
    loss_at, whole = setting(model, corpus, tokenizer, spec)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    found = salient(model, sure, whole)
    inside = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
    names = {id(p): n for n, p in model.named_parameters()}
    for part in found.parts:
        inside[names[id(part.parameter)]][... if part.index is None else part.index] = True
    fit(found, spec, loss_at, tmp_path, silent)
    changed = {n: p.detach() != before[n] for n, p in model.named_parameters()}
    assert not any(bool((changed[n] & ~inside[n]).any()) for n in changed)
    for part in found.parts:
        own = changed[names[id(part.parameter)]][... if part.index is None else part.index]
        assert float(own.float().mean()) > (0.95 if weights == "fp32" else 0.5)
    assert isinstance(found.result, SureResult)
    assert sum(int(i.sum()) for i in inside.values()) == found.result.moving_weights


def test_no_optimiser_state_exists_outside_the_mask(
    corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model, spec = tiny_model(vocab=len(tokenizer)), UnlearnSpec(method="ga")
    loss_at, whole = setting(model, corpus, tokenizer, spec)
    found = salient(model, SureSpec(percentile=90), whole)
    stepper = Stepper(found.parts, spec)
    loss_at(0)[0].backward()
    stepper.step(1e-3)
    states = [state for optimizer in stepper.optimizers for state in optimizer.state.values()]
    held = sum(t.numel() for state in states for t in state.values() if t.numel() > 1)
    assert isinstance(found.result, SureResult)
    assert held == 2 * found.result.moving_weights


def test_fused_attention_has_no_heads_to_slice(
    corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = tiny_model("gpt2", vocab=len(tokenizer))
    spec = UnlearnSpec(method="ga")
    with pytest.raises(UserError, match="fuses query, key and value"):
        find(model, SureSpec(), setting(model, corpus, tokenizer, spec)[1])
    rows = find(model, SureSpec(unit="row"), setting(model, corpus, tokenizer, spec)[1])
    assert rows.moving


def test_a_renewed_mask_moves_other_modules_and_resumes_from_its_last_choice(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    spec = UnlearnSpec(method="npo", steps=9, lr=2e-2, batch_size=2)
    sure = SureSpec(percentile=90, renew_every=3)

    def run(folder: Path, cut: int | None) -> tuple[dict[str, Tensor], int]:
        model = tiny_model(vocab=len(tokenizer))
        loss_at, whole = setting(model, corpus, tokenizer, spec)
        names = {id(p): n for n, p in model.named_parameters()}
        moving = salient(model, sure, whole)
        renewal = moving.renewal
        assert renewal is not None
        assert renewal.every == 3
        ever = {names[id(part.parameter)] for part in moving.parts}

        def choose() -> list[Part]:
            found = renewal.choose()
            ever.update(names[id(part.parameter)] for part in found)
            return found

        def cut_off(done: int, total: int, note: str) -> None:
            if done == cut:
                raise KeyboardInterrupt

        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        watched = moving._replace(renewal=renewal._replace(choose=choose))
        fit(watched, spec, loss_at, folder, hearing(cut_off))
        after = {n: p.detach().clone() for n, p in model.named_parameters()}
        if folder.name == "whole":
            assert all(torch.equal(after[n], before[n]) for n in after if n not in ever)
            assert ever <= set(moving.state()) < set(names.values())
        return after, len(ever)

    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole, moved = run(tmp_path / "whole", None)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", 5)
    resumed, _ = run(tmp_path / "cut", None)
    assert moved > 1
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name
