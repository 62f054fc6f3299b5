"""Every loss of the table and its gradient against a slow second implementation in float64, token
by token, and what each term promises: bounds, fixed points, slopes."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from remnant.catalog import LOSSES, METHODS
from remnant.functional import answers, confidence, distributions, losses
from remnant.functional.hidden import Hidden
from remnant.functional.view import View
from remnant.methods import LOSS_READS
from remnant.model.examples import Example, Pool
from remnant.model.terms import Beside, make_loss, make_streams, terms_of
from remnant.readings import SIDES
from remnant.records import UnlearnSpec
from remnant.resolve import Method, resolve
from remnant.testing import B, readings, tiny_model


class Side(NamedTuple):
    """What the models say of one text, at the tokens that count only: logits [n, V], states [m, H],
    the true tokens, the mean norm of the reference's states over the batch, and the logits of the
    reinforced model."""

    z: np.ndarray
    r: np.ndarray
    y: list[int]
    h: np.ndarray
    g: np.ndarray
    norm: float
    x: np.ndarray


Text = Mapping[str, Side]


def text_of(values: Mapping[str, Any], row: int) -> dict[str, Side]:
    found = {}
    for side in SIDES:
        view, ref = values[side], values[f"ref_{side}"]
        hidden, ref_hidden = values[f"{side}_hidden"], values[f"ref_{side}_hidden"]
        at = view.mask[row]
        found[side] = Side(
            view.logits[row, :-1][at].detach().double().numpy(),
            ref.logits[row, :-1][at].double().numpy(),
            view.targets()[row][at].tolist(),
            hidden.states[row][hidden.mask[row]].detach().double().numpy(),
            ref_hidden.states[row][hidden.mask[row]].double().numpy(),
            float(values[f"ref_{side}_norm"]),
            values.get(f"reinforced_{side}", ref).logits[row, :-1][at].double().numpy(),
        )
    return found


def said(z: np.ndarray) -> list[list[float]]:
    """Log-probabilities, one by one."""
    found = []
    for row in z.tolist():
        total = math.log(math.fsum(math.exp(x - max(row)) for x in row)) + max(row)
        found.append([x - total for x in row])
    return found


def logp(z: np.ndarray, y: list[int]) -> list[float]:
    return [row[token] for row, token in zip(said(z), y, strict=True)]


def mean(values: list[float]) -> float:
    return math.fsum(values) / max(1, len(values))


def kl(q: list[float], p: list[float]) -> float:
    """KL(q || p) of log-probabilities."""
    return math.fsum(math.exp(x) * (x - y) for x, y in zip(q, p, strict=True))


def soft(x: float) -> float:
    """log(1 + exp(x))."""
    return math.log1p(math.exp(x)) if x < 30 else x


def distance(states: np.ndarray, to: np.ndarray) -> float:
    return float(((states - to) ** 2).sum() / states.size)


def drawn(size: int) -> np.ndarray:
    r = torch.rand(size, generator=torch.Generator().manual_seed(0)).double().numpy()
    return r / math.sqrt(sum(x * x for x in r))


# Each takes the text as it is now, and as it was when weights that have no gradient were taken.
Slow = Callable[[Text, Text], float]


def slow_undial(now: Text, was: Text) -> float:
    f = now["forget"]
    found = []
    for own, ref, token in zip(said(f.z), f.r.copy(), f.y, strict=True):
        ref[token] -= 10.0
        (teacher,) = said(ref[None])
        found.append(kl(teacher, own))
    return mean(found)


def slow_whp(now: Text, was: Text) -> float:
    f = now["forget"]
    found = []
    for own, ref, plus in zip(said(f.z), said(f.r), said(f.x), strict=True):
        left = [a - 5.0 * max(0.0, b - a) for a, b in zip(ref, plus, strict=True)]
        found.append(-own[left.index(max(left))])
    return mean(found)


def slow_unlikelihood(now: Text, was: Text) -> float:
    """CE-U by its own formula, less the entropy of its aim."""
    f, before = now["forget"], was["forget"]
    found = []
    for own, old, token in list(zip(said(f.z), said(before.z), f.y, strict=True))[1:]:
        others = [v for v in range(len(own)) if v != token]
        rest = math.fsum(math.exp(old[v]) for v in others)
        aim = {v: math.exp(old[v]) / rest for v in others}
        found.append(math.fsum(a * (math.log(a) - own[v]) for v, a in aim.items()))
    return mean(found)


def slow_tnpo(now: Text, was: Text) -> float:
    f, before = now["forget"], was["forget"]
    found = []
    for own, old, ref in zip(logp(f.z, f.y), logp(before.z, f.y), logp(f.r, f.y), strict=True):
        p, q = math.exp(old) ** 4, math.exp(ref) ** 4
        found.append(2 * p / (p + q) * own)
    return mean(found)


def weighted(weight: Callable[[float], float]) -> Slow:
    def slow(now: Text, was: Text) -> float:
        f = now["forget"]
        weights = [weight(math.exp(old)) for old in logp(was["forget"].z, f.y)]
        return mean([w * own for w, own in zip(weights, logp(f.z, f.y), strict=True)])

    return slow


def slow_entropy(now: Text, was: Text) -> float:
    rows = said(now["forget"].z)
    return mean([-math.log(len(row)) - mean(row) for row in rows])


def slow_klr(now: Text, was: Text) -> float:
    r = now["retain"]
    return mean([kl(q, p) for p, q in zip(said(r.z), said(r.r), strict=True)])


def gained(side: Side) -> float:
    return math.fsum(logp(side.z, side.y)) - math.fsum(logp(side.r, side.y))


def total(side: Side) -> float:
    return math.fsum(logp(side.z, side.y))


def probability(side: Side) -> float:
    return mean([math.exp(x) for x in logp(side.z, side.y)])


SLOW: Mapping[str, Slow] = {
    "ga": weighted(lambda p: 1.0),
    "npo": lambda now, was: 20 * soft(0.1 * gained(now["forget"])),
    "simnpo": lambda now, was: (
        2 / 4.5 * soft(4.5 * mean(logp(now["forget"].z, now["forget"].y)))
    ),
    "dpo": lambda now, was: 20 * soft(-0.1 * (gained(now["alternative"]) - gained(now["forget"]))),
    "alternative_nll": lambda now, was: -mean(logp(now["alternative"].z, now["alternative"].y)),
    "wga": weighted(lambda p: p),
    "tnpo": slow_tnpo,
    "satimp": weighted(lambda p: p**5 * (1 - p)),
    "undial": slow_undial,
    "whp": slow_whp,
    "unlikelihood": slow_unlikelihood,
    "max_entropy": slow_entropy,
    "logit_margin": lambda now, was: mean(
        [(max(z) - mean(z)) ** 2 for z in now["forget"].z.tolist()]
    ),
    "flat": lambda now, was: (
        (math.tanh(probability(now["forget"])) - math.tanh(probability(now["alternative"]))) / 2
    ),
    "rmu": lambda now, was: distance(now["forget"].h, 6.5 * drawn(now["forget"].h.shape[1])),
    "adaptive_rmu": lambda now, was: distance(
        now["forget"].h, 5 * now["forget"].norm * drawn(now["forget"].h.shape[1])
    ),
    "hidden_mse": lambda now, was: distance(now["retain"].h, now["retain"].g),
    "gdr": lambda now, was: -mean(logp(now["retain"].z, now["retain"].y)),
    "klr": slow_klr,
    "answer_preservation": lambda now, was: (
        10 * soft(-0.1 * (total(now["retain"]) - total(now["retain_alternative"])))
    ),
}  # fmt: skip


def method(name: str) -> Method:
    return resolve("loss", name, LOSSES, LOSS_READS, {})


def value(name: str, values: Mapping[str, Any]) -> Tensor:
    found = method(name)
    result: Tensor = found.load()(*(values[read] for read in found.reads), **found.params)
    return result


def test_every_loss_of_the_table_has_a_slow_reference() -> None:
    assert set(SLOW) == set(LOSSES)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_what_its_slow_reference_says(name: str, seed: int) -> None:
    values = readings(seed)
    texts = [text_of(values, row) for row in range(B)]
    known = [SLOW[name](text, text) for text in texts]
    assert value(name, values).tolist() == pytest.approx(known, rel=2e-5, abs=2e-6)


def slopes(name: str, text: dict[str, Side], side: str, what: str) -> np.ndarray:
    """Central differences in float64; weights that have no gradient stay as they were."""
    at: np.ndarray = getattr(text[side], what)
    found = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        ends = []
        for step in (1e-6, -1e-6):
            moved = at.copy()
            moved[place] += step
            own = text[side]
            now = {**text, side: own._replace(z=moved) if what == "z" else own._replace(h=moved)}
            ends.append(SLOW[name](now, text))
        found[place] = (ends[0] - ends[1]) / 2e-6
    return found


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_a_loss_is_that_of_its_slow_reference(name: str) -> None:
    values = readings()
    value(name, values).sum().backward()
    for side in SIDES:
        view, hidden = values[side], values[f"{side}_hidden"]
        for row in range(B):
            text = text_of(values, row)
            for what, given, mask in (
                ("z", view.logits, torch.nn.functional.pad(view.mask, (0, 1))),
                ("h", hidden.states, hidden.mask),
            ):
                grad = torch.zeros_like(given) if given.grad is None else given.grad
                assert not grad[row][~mask[row]].any()
                known = torch.tensor(slopes(name, text, side, what))
                assert torch.allclose(grad[row][mask[row]].double(), known, atol=5e-6), side


def one(logits: list[list[float]], labels: list[int]) -> View:
    return View(torch.tensor([[*logits, [0.0] * len(logits[0])]]), torch.tensor([[0, *labels]]))


# The least and the greatest value that a term can take, whatever the models say.
BOUNDS: Mapping[str, tuple[float, float]] = {
    "ga": (-math.inf, 0.0), "npo": (0.0, math.inf), "simnpo": (0.0, 2 / 4.5 * math.log(2)),
    "dpo": (0.0, math.inf), "alternative_nll": (0.0, math.inf), "wga": (-1 / math.e, 0.0),
    "tnpo": (-math.inf, 0.0), "satimp": (-0.06698, 0.0), "undial": (0.0, math.inf),
    "whp": (0.0, math.inf),
    "unlikelihood": (0.0, math.inf), "max_entropy": (0.0, math.inf),
    "logit_margin": (0.0, math.inf), "flat": (-math.tanh(1) / 2, math.tanh(1) / 2),
    "rmu": (0.0, math.inf), "adaptive_rmu": (0.0, math.inf), "hidden_mse": (0.0, math.inf),
    "gdr": (0.0, math.inf), "klr": (0.0, math.inf), "answer_preservation": (0.0, math.inf),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_stays_within_its_bounds_and_finite_far_out(name: str) -> None:
    low, high = BOUNDS[name]
    for seed, size in ((0, 1.0), (1, 10.0), (2, 300.0)):
        values = readings(seed)
        for side in SIDES:
            for read in (side, f"ref_{side}"):
                view = values[read]
                loud = (view.logits.detach() * size).requires_grad_(not read.startswith("ref"))
                values[read] = View(loud, view.labels)
            values[f"ref_{side}_logp"] = values[f"ref_{side}"].seq_logp()
        found = value(name, values)
        assert bool((found >= low - 1e-6).all())
        assert bool((found <= high + 1e-6).all())
        found.sum().backward()
        for side in SIDES:
            grad = values[side].logits.grad
            assert grad is None or bool(grad.isfinite().all())


def slope_in_logp(term: Callable[[View], Tensor], p: float) -> float:
    """The slope in the log-probability of one token, which the logit of the true one of two moves
    by 1 - p."""
    logits = torch.tensor([[[math.log(p / (1 - p)), 0.0], [0.0, 0.0]]], requires_grad=True)
    term(View(logits, torch.tensor([[0, 0]]))).sum().backward()
    assert logits.grad is not None
    return logits.grad[0, 0, 0].item() / (1 - p)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.8333, 0.99])
def test_the_slopes_in_log_p_are_the_stated_ones(p: float) -> None:
    ref = one([[0.0, 0.0]], [0])
    for term, known in (
        (lambda v: losses.ga(v), 1.0),
        (lambda v: losses.simnpo(v, beta=2.0, margin=0.5), 2 / (1 + p**-2 * math.exp(-0.5))),
        (lambda v: confidence.wga(v, beta=0.0), 1.0),
        (lambda v: confidence.wga(v, beta=2.0), p**2),
        (lambda v: confidence.tnpo(v, ref, beta=2.0), 2 * p**2 / (p**2 + 0.25)),
        (lambda v: confidence.tnpo(v, ref, beta=2.0, power=1.5), 2 * p**3.5 / (p**2 + 0.25)),
        (lambda v: confidence.satimp(v), p**5 * (1 - p)),
        (lambda v: distributions.unlikelihood(v, skip=0), p / (1 - p)),
    ):  # fmt: skip
        assert slope_in_logp(term, p) == pytest.approx(known, rel=1e-4)


def test_simnpo_does_not_notice_a_text_twice_as_long_and_npo_does() -> None:
    short, long = one([[1.0, 0.0]] * 2, [0, 0]), one([[1.0, 0.0]] * 4, [0, 0, 0, 0])
    assert torch.allclose(losses.simnpo(short), losses.simnpo(long))
    zero = torch.zeros(1)
    assert not torch.allclose(losses.npo(short, zero), losses.npo(long, zero))


def test_a_token_that_is_known_by_heart_is_left_alone_by_satimp_but_not_by_unlikelihood() -> None:
    sure = torch.tensor([[[200.0, 0.0, 0.0], [0.0, 0.0, 0.0]]], requires_grad=True)
    view = View(sure, torch.tensor([[0, 0]]))
    (still,) = torch.autograd.grad(confidence.satimp(view).sum(), sure)
    assert not still.any()
    found = distributions.unlikelihood(view, skip=0)
    assert found.item() == pytest.approx(200 - math.log(2))
    (grad,) = torch.autograd.grad(found.sum(), sure)
    assert grad[0, 0].tolist() == pytest.approx([1.0, -0.5, -0.5], rel=1e-5)


def test_unlikelihood_of_a_text_no_longer_than_what_is_skipped_is_nothing() -> None:
    view = one([[1.0, 0.0]] * 2, [0, 1])
    assert distributions.unlikelihood(view, skip=2).tolist() == [0.0]
    assert distributions.unlikelihood(view, skip=1).item() > 0


def test_undial_ends_where_the_odds_of_the_true_token_are_lower_by_beta() -> None:
    ref = one([[2.0, 1.0, -1.0]], [0])
    there = one([[2.0 - 10.0, 1.0, -1.0]], [0])
    assert distributions.undial(there, ref).item() == pytest.approx(0.0, abs=1e-6)
    assert distributions.undial(ref, ref).item() > 1
    p, q = there.log_probs()[0, 0].exp(), ref.log_probs()[0, 0].exp()
    assert (p[0] / p[1]).item() == pytest.approx(4.54e-5 * (q[0] / q[1]).item(), rel=1e-3)


def test_flat_and_answer_preservation_are_balanced_where_both_answers_are_alike() -> None:
    values = readings()
    forget, retain = values["forget"], values["retain"]
    assert torch.equal(answers.flat(forget, forget), torch.zeros(B))
    even = answers.answer_preservation(retain, retain, beta=0.2)
    assert even.tolist() == pytest.approx([5 * math.log(2)] * B)


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
        "retain_alternative": Pool(some((6, 4, 7, 3, 5)), order),
    }  # fmt: skip


def gradients(name: str, size: int) -> tuple[dict[str, Tensor], list[Any]]:
    """The gradients of one step of four texts, in batches of some size, on a model that is no
    longer the target, and the reference's values that were read."""
    layers = {"layer": 1} if "layer" in method(name).params else {}
    spec = UnlearnSpec.model_validate({"terms": [{"use": name, **layers}], "batch_size": size})
    model, terms = tiny_model(), terms_of(spec)
    groups = make_streams(model, terms, pools(), 0, 1, Beside(tiny_model(seed=5)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.sin(torch.arange(parameter.numel())).view_as(parameter))
    loss_at = make_loss(model, terms, groups, size, 0)
    for micro in range(4 // size):
        (loss_at(micro)[0] * size / 4).backward()
    streams = [s for g in groups.values() for s in g.streams.values()]
    caches = [cache for stream in streams for cache in stream.kept.values()]
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return found, caches


@pytest.mark.parametrize("name", LOSSES)
def test_two_small_batches_have_the_gradient_of_one_large_one(name: str) -> None:
    (once, caches), (twice, _) = gradients(name, 4), gradients(name, 2)
    assert once
    assert once.keys() == twice.keys()
    largest = max(float(g.abs().max()) for g in once.values())
    assert largest > 0
    for parameter, gradient in once.items():
        assert torch.allclose(gradient, twice[parameter], atol=1e-5 * largest), parameter
    for cache in caches:
        held = [cache.seq_logp, *cache.finals, *cache.norms.values()]
        assert not any(kept.requires_grad for kept in held)


def test_hidden_states_are_counted_as_the_reference_counts_them() -> None:
    hidden = readings()["forget_hidden"]
    assert isinstance(hidden, Hidden)
    assert hidden.mask.sum(-1).tolist() == [7, 5, 3]


def test_every_method_names_losses_of_the_table() -> None:
    for recipe in METHODS.values():
        assert {*recipe.forget, *recipe.retain} <= set(LOSSES)
