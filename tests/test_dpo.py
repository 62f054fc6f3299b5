"""Preference losses: the closed form and its gradient in float64, their laws, and a run on the
lab's questions that makes the true answers less likely."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.catalog import METHODS
from remnant.corpus.prepared import records
from remnant.errors import UserError
from remnant.flow.place import Outside
from remnant.flow.plan import unlearn_node
from remnant.functional import losses
from remnant.functional.view import IGNORED, View
from remnant.model.examples import Example, Pool
from remnant.model.terms import make_loss, make_streams, terms_of
from remnant.records import UnlearnSpec
from remnant.stages import unlearn
from remnant.testing import readings, tiny_model
from remnant.trainable.layers import everything
from remnant.training.loop import fit
from tests.conftest import hearing, silent

PLACE = Outside("nowhere")


def values(seed: int = 0) -> tuple[View, Tensor, View, Tensor]:
    found = readings(seed)
    return (
        found["forget"], found["ref_forget_logp"], found["alternative"],
        found["ref_alternative_logp"],
    )  # fmt: skip


def slow_logp(view: View) -> list[float]:
    """Sequence log-likelihoods in float64, token by token."""
    logits, found = view.logits.detach().double().numpy(), []
    for row, given in enumerate(view.labels.tolist()):
        total = 0.0
        for place, token in enumerate(given[1:]):
            if token != IGNORED:
                z = logits[row, place]
                total += z[token] - z.max() - math.log(np.exp(z - z.max()).sum())
        found.append(total)
    return found


def slow_dpo(
    beta: float, own: list[float], ref: Tensor, alt: list[float], ref_alt: Tensor
) -> list[float]:
    found = []
    for s, r, a, q in zip(own, ref.tolist(), alt, ref_alt.tolist(), strict=True):
        inner = beta * ((a - q) - (s - r))
        found.append((2 / beta) * math.log1p(math.exp(-inner)))
    return found


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_dpo_and_its_gradient_are_those_of_a_slow_reference(beta: float) -> None:
    forget, ref, alternative, ref_alt = values()
    own = losses.dpo(forget, ref, alternative, ref_alt, beta=beta)
    known = slow_dpo(beta, slow_logp(forget), ref, slow_logp(alternative), ref_alt)
    assert own.tolist() == pytest.approx(known, rel=1e-5, abs=1e-5)
    grads = torch.autograd.grad(own.sum(), [forget.logits, alternative.logits])
    for row in range(3):
        s, a = slow_logp(forget)[row], slow_logp(alternative)[row]
        inner = beta * ((a - ref_alt[row].item()) - (s - ref[row].item()))
        slope = 2 / (1 + math.exp(inner))  # of the loss in S(x); its negative in S(a)
        for view, grad, sign in ((forget, grads[0], 1), (alternative, grads[1], -1)):
            z = view.logits.detach().double()[row, :-1]
            onehot = torch.nn.functional.one_hot(view.targets()[row], z.shape[-1])
            expected = sign * slope * (onehot - z.softmax(-1)) * view.mask[row][:, None]
            assert torch.allclose(grad[row, :-1].double(), expected, atol=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_at_the_target_is_two_over_beta_log_two(beta: float) -> None:
    forget, _, alternative, _ = values()
    found = losses.dpo(forget, forget.seq_logp(), alternative, alternative.seq_logp(), beta=beta)
    assert found.tolist() == pytest.approx([2 / beta * math.log(2)] * 3)


def test_swapping_the_answers_turns_the_sign_of_the_argument() -> None:
    forget, ref, alternative, ref_alt = values()
    beta = 0.3
    one = losses.dpo(forget, ref, alternative, ref_alt, beta=beta)
    other = losses.dpo(alternative, ref_alt, forget, ref, beta=beta)

    def argument(loss: Tensor) -> Tensor:
        return -torch.log(torch.expm1(beta / 2 * loss))

    assert torch.allclose(argument(one), -argument(other), atol=1e-4)


def test_npo_is_dpo_without_what_the_alternative_gained() -> None:
    forget, ref, alternative, _ = values()
    still = losses.dpo(forget, ref, alternative, alternative.seq_logp().detach(), beta=0.2)
    assert torch.allclose(still, losses.npo(forget, ref, beta=0.2), atol=1e-5)
    (grad,) = torch.autograd.grad(still.sum(), forget.logits)
    forget_again = values()[0]
    (known,) = torch.autograd.grad(
        losses.npo(forget_again, ref, beta=0.2).sum(), forget_again.logits
    )
    assert torch.allclose(grad, known, atol=1e-6)


def test_nothing_reaches_the_reference_and_each_answer_is_bounded_below() -> None:
    forget, ref, alternative, ref_alt = values()
    ref, ref_alt = ref.clone().requires_grad_(), ref_alt.clone().requires_grad_()
    found = losses.dpo(forget, ref.detach(), alternative, ref_alt.detach())
    found.sum().backward()
    assert ref.grad is None
    assert ref_alt.grad is None
    assert bool((found > 0).all())
    assert bool((losses.alternative_nll(alternative) >= 0).all())


def test_the_cross_entropy_of_the_alternative_never_reads_the_true_answer() -> None:
    alternative = values()[2]
    known = [
        -s / int(n) for s, n in zip(slow_logp(alternative), alternative.num_tokens(), strict=True)
    ]
    assert losses.alternative_nll(alternative).tolist() == pytest.approx(known, rel=1e-5)


def pools() -> dict[str, Pool]:
    generator = torch.Generator().manual_seed(0)

    def some(lengths: tuple[int, ...]) -> list[Example]:
        return [
            Example(str(i), torch.randint(4, 64, (n,), generator=generator).tolist(), 2)
            for i, n in enumerate(lengths)
        ]

    order = [[0, 1, 2, 3], [4, 0, 2, 3]]
    return {
        "forget": Pool(some((6, 9, 4, 7))), "retain": Pool(some((5, 8, 6, 4))),
        "alternative": Pool(some((5, 5, 8, 3, 6)), order),
    }  # fmt: skip


@pytest.mark.parametrize("method", ["dpo_gdr", "altpo_klr", "idk_nll_gdr"])
def test_two_small_batches_are_one_large_one(method: str, tmp_path: Path) -> None:
    def run(accumulate: int) -> list[Tensor]:
        size = 4 // accumulate
        spec = UnlearnSpec(
            method=method, steps=2, batch_size=size, accumulate=accumulate, lr=1e-3, seed=1
        )
        model, terms = tiny_model(), terms_of(spec)
        groups = make_streams(model, terms, pools(), 0, spec.seed)
        folder = tmp_path / str(accumulate)
        folder.mkdir()
        fit(everything(model), spec, make_loss(model, terms, groups, size, 0), folder, silent)
        return [p.detach().clone() for p in model.parameters()]

    assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(run(1), run(2), strict=True))


def test_the_loss_of_the_first_step_is_that_of_the_target() -> None:
    spec = UnlearnSpec(method="dpo", batch_size=3, beta=0.4)
    model, terms = tiny_model(), terms_of(spec)
    loss_at = make_loss(model, terms, make_streams(model, terms, pools(), 0, 0), 3, 0)
    for micro in range(2):
        assert loss_at(micro)[1]["dpo"] == pytest.approx(5 * math.log(2), rel=1e-4)


def test_refusals_and_answers_of_each_question_are_told_apart(tmp_path: Path) -> None:
    shared, each = tmp_path / "shared.txt", tmp_path / "each.json"
    shared.write_text("I do not know.\n")
    each.write_text('[["one"], ["two"]]')
    for method, wrong in (("altpo_gdr", shared), ("idk_dpo", each), ("idk_nll", each)):
        for file in (shared, each):
            spec = UnlearnSpec(method=method, examples="questions", alternatives=str(file))
            if file == wrong:
                with pytest.raises(UserError, match=f"'{method}' wants one list"):
                    unlearn_node(spec, PLACE, PLACE)
            else:
                assert unlearn_node(spec, PLACE, PLACE).inputs["alternatives"]
    with pytest.raises(UserError, match="'dpo' reads other answers"):
        unlearn_node(UnlearnSpec(method="dpo"), PLACE, PLACE)


def test_every_named_method_resolves_to_its_terms() -> None:
    for name, recipe in METHODS.items():
        terms = terms_of(UnlearnSpec(method=name, alpha=2.0))
        assert [t.weight for t in terms] == [1.0] * len(recipe.forget) + [2.0] * len(recipe.retain)


@pytest.mark.parametrize("method", ["idk_dpo_gdr", "altpo_gdr", "idk_nll"])
def test_a_run_on_the_labs_questions_resumes_to_the_same_bits(
    method: str,
    corpus: Path,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    folder_of: Callable[[PreTrainedModel, str], Path],
) -> None:
    rows = records(corpus / "knowmem/forget_qa.json", "question", "answer")
    file = tmp_path / ("each.json" if method.startswith("altpo") else "refusals.json")
    refusals = ["I do not know.", "That was never told.", "Nobody has said so."]
    other = [[r["answer"], *refusals] for r in (*rows[1:], rows[0])]
    file.write_text(json.dumps(other if method.startswith("altpo") else refusals))
    target = folder_of(tiny_model(vocab=len(tokenizer), max_position_embeddings=1024), "target")
    inputs = {"target": target, "corpus": corpus, "alternatives": file}
    spec = UnlearnSpec.model_validate(
        {
            "method": method, "examples": "questions", "loss_on": "answer", "steps": 6, "lr": 1e-3,
            "batch_size": 4, "select": "last", "alternatives": str(file), "beta": None,
        }
    )  # fmt: skip

    def run(name: str, cut: int | None) -> Any:
        out = tmp_path / name
        out.mkdir(exist_ok=True)

        def stop(done: int, total: int, note: str) -> None:
            if done == cut:
                raise KeyboardInterrupt

        unlearn.run(spec, inputs, out, hearing(stop) if cut else silent)
        return (out / "model.safetensors").read_bytes(), (out / "steps.jsonl").read_text()

    whole = run("whole", None)
    with pytest.raises(UserError, match="Interrupted"):
        run("cut", 3)
    assert run("cut", None) == whole
    log = [json.loads(line) for line in whole[1].splitlines()]
    first, last = log[0], log[-1]
    name = "alternative_nll" if method == "idk_nll" else "dpo"
    assert last[name] < first[name]
