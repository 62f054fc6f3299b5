"""SURE: saliency against slow references, heads sliced where they are, and a mask that holds
whatever the optimiser does."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import Interrupted, UserError
from remnant.functional.weights import at_least_percentile
from remnant.model.data import encode, raw_texts
from remnant.model.load import matrices
from remnant.model.loop import Renewal, fit, storage_dtype
from remnant.model.parts import Part
from remnant.model.sure import PaperCode, find, units_of
from remnant.model.terms import forget_losses, make_loss, make_streams, terms_of
from remnant.records import SureSpec, UnlearnSpec
from remnant.testing import tiny_model
from tests.conftest import silent


def setting(
    model: PreTrainedModel,
    corpus: Path,
    tokenizer: PreTrainedTokenizerBase,
    spec: UnlearnSpec,
    batch: int = 4,
    on_forget: Callable[[Tensor], None] | None = None,
) -> tuple[Any, Any]:
    """The loss of a micro-step, and the loss over the whole forget set in parts."""
    pad, terms = tokenizer.pad_token_id, terms_of(spec)
    texts = {"forget": raw_texts(corpus, "forget")[:8], "retain": raw_texts(corpus, "retain1")[:8]}
    streams = make_streams(
        model, terms, {k: encode(tokenizer, v, 64) for k, v in texts.items()}, pad, spec.seed
    )

    def whole() -> Iterator[Tensor]:
        return forget_losses(model, terms, streams, batch, pad)

    return make_loss(model, terms, streams, spec.batch_size, pad, on_forget), whole


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
    spec = UnlearnSpec.model_validate(
        {"method": method, "sure": {"percentile": 80, "scaled": scaled}}
    )
    assert spec.sure
    _, whole = setting(model, corpus, tokenizer, spec)
    _, at_once = setting(model, corpus, tokenizer, spec, batch=99)
    slow = copy.deepcopy(model).requires_grad_(True)
    (loss,) = setting(slow, corpus, tokenizer, spec, batch=99)[1]()
    loss.backward()
    found = find(model, spec.sure, whole)
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


@pytest.mark.parametrize(
    ("unit", "weights"),
    [
        ("module", "bf16"),
        ("weight", "fp32"),
        pytest.param("module", "fp32", marks=pytest.mark.slow),
        pytest.param("module", "bf16-stochastic-rounding", marks=pytest.mark.slow),
        pytest.param("layer", "fp32", marks=pytest.mark.slow),
        pytest.param("row", "bf16", marks=pytest.mark.slow),
    ],
)
def test_outside_the_mask_nothing_moves_in_200_steps(
    unit: str, weights: Any, corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = tiny_model(vocab=len(tokenizer), num_hidden_layers=2).to(storage_dtype(weights))  # type: ignore[arg-type]
    spec = UnlearnSpec.model_validate(
        {
            "method": "npo_klr",
            "lr": 1e-3,
            "steps": 200,
            "batch_size": 2,
            "weight_decay": 0.1,
            "weights": weights,
            "sure": {"unit": unit, "percentile": 70},
        }
    )
    assert spec.sure
    loss_at, whole = setting(model, corpus, tokenizer, spec)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    found = find(model, spec.sure, whole)
    inside = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
    names = {id(p): n for n, p in model.named_parameters()}
    for part in found.moving:
        inside[names[id(part.parameter)]][... if part.index is None else part.index] = True
    fit(model, spec, loss_at, tmp_path, silent, moving=found.moving)
    changed = {n: p.detach() != before[n] for n, p in model.named_parameters()}
    assert not any(bool((changed[n] & ~inside[n]).any()) for n in changed)
    for part in found.moving:
        own = changed[names[id(part.parameter)]][... if part.index is None else part.index]
        assert float(own.float().mean()) > (0.95 if weights == "fp32" else 0.5)
    assert sum(int(i.sum()) for i in inside.values()) == found.result.moving_weights


def test_no_optimiser_state_exists_outside_the_mask(
    corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    from remnant.model.loop import Stepper

    model = tiny_model(vocab=len(tokenizer))
    spec = UnlearnSpec.model_validate({"method": "ga", "sure": {"percentile": 90}})
    assert spec.sure
    loss_at, whole = setting(model, corpus, tokenizer, spec)
    found = find(model, spec.sure, whole)
    for part in found.moving:
        part.parameter.requires_grad_(True)
    stepper = Stepper(found.moving, spec)
    loss_at(0)[0].backward()
    stepper.step(1e-3)
    held = sum(
        t.numel() for s in stepper.optimizer.state.values() for t in s.values() if t.numel() > 1
    )
    assert held == 2 * found.result.moving_weights


def test_fused_attention_has_no_heads_to_slice(
    corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = tiny_model("gpt2", vocab=len(tokenizer))
    spec = UnlearnSpec.model_validate({"method": "ga", "sure": {}})
    assert spec.sure
    with pytest.raises(UserError, match="fuses query, key and value"):
        find(model, spec.sure, setting(model, corpus, tokenizer, spec)[1])
    rows = find(model, SureSpec(unit="row"), setting(model, corpus, tokenizer, spec)[1])
    assert rows.moving


def gradients_after(
    model: PreTrainedModel, loss_at: Any, code: PaperCode | None = None
) -> dict[str, Tensor]:
    loss_at(0)[0].backward()
    if code:
        code.on_gradients()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_the_released_code_counts_the_forget_gradient_twice(
    corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = tiny_model(vocab=len(tokenizer))
    spec = UnlearnSpec(method="ga_gdr", alpha=2.0)
    doubled = UnlearnSpec.model_validate(
        {"terms": [{"use": "ga", "weight": 2.0}, {"use": "gdr", "weight": 2.0}]}
    )
    code = PaperCode(model, 90, masked=False)
    found = gradients_after(
        model, setting(model, corpus, tokenizer, spec, on_forget=code.on_forget)[0], code
    )
    model.zero_grad()
    expected = gradients_after(model, setting(model, corpus, tokenizer, doubled)[0])
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-6), name


def test_the_released_codes_mask_stops_gradients_but_not_the_optimiser(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = tiny_model(vocab=len(tokenizer))
    spec = UnlearnSpec.model_validate(
        {"method": "ga_gdr", "steps": 6, "lr": 1e-3, "batch_size": 2, "weight_decay": 0.1}
    )
    code = PaperCode(model, 90, masked=True)
    loss_at = setting(model, corpus, tokenizer, spec, on_forget=code.on_forget)[0]
    found = gradients_after(model, loss_at, code)
    rows = {n: (g != 0).flatten(1).any(-1) if g.ndim > 1 else g != 0 for n, g in found.items()}
    share = sum(int(r.sum()) for r in rows.values()) / sum(r.numel() for r in rows.values())
    assert 0 < share <= 0.11
    model.zero_grad()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    fit(model, spec, loss_at, tmp_path, silent, on_gradients=code.on_gradients)
    assert all(
        bool((p.detach() != before[n]).float().mean() > 0.9)
        for n, p in model.named_parameters()
        if p.ndim > 1
    )


def test_a_renewed_mask_moves_other_modules_and_resumes_from_its_last_choice(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    spec = UnlearnSpec.model_validate(
        {
            "method": "npo",
            "steps": 9,
            "lr": 2e-2,
            "batch_size": 2,
            "sure": {"percentile": 90, "renew_every": 3},
        }
    )
    assert spec.sure

    def run(folder: Path, cut: int | None) -> tuple[dict[str, Tensor], int]:
        model = tiny_model(vocab=len(tokenizer))
        loss_at, whole = setting(model, corpus, tokenizer, spec)
        assert spec.sure
        sure, chosen = spec.sure, find(model, spec.sure, whole).moving
        names = {id(p): n for n, p in model.named_parameters()}
        ever = {names[id(part.parameter)] for part in chosen}

        def choose() -> list[Part]:
            found = find(model, sure, whole).moving
            ever.update(names[id(part.parameter)] for part in found)
            return found

        def cut_off(done: int, total: int, note: str) -> None:
            if done == cut:
                raise KeyboardInterrupt

        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        fit(model, spec, loss_at, folder, cut_off, moving=chosen, renew=Renewal(3, choose))
        after = {n: p.detach().clone() for n, p in model.named_parameters()}
        if folder.name == "whole":
            assert all(torch.equal(after[n], before[n]) for n in after if n not in ever)
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
