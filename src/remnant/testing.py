"""A battery of laws for losses, quantizers and metrics, built-in or a user's own, and a tiny model
to try things on.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from remnant.catalog import LOSSES
from remnant.corpus import METRICS
from remnant.errors import Unscorable, UserError, first_line
from remnant.formats.table import FORMATS
from remnant.functional.hidden import Hidden
from remnant.functional.quantized import Quantized
from remnant.functional.tokens import Tokens
from remnant.functional.view import IGNORED, View
from remnant.methods import LOSS_READS, METRIC_READS, TRANSFORM_READS
from remnant.readings import LOSS_READINGS, SIDES
from remnant.resolve import Listed, Method, functions_of, resolve

B, T, V, H = 3, 7, 11, 5
# What a loss reads.
Read = View | Hidden | Tensor


class Result(NamedTuple):
    """What one law says of one function: ok, failed or skipped, with the reason."""

    function: str
    law: str
    outcome: str
    detail: str = ""


def labels(seed: int = 0) -> Tensor:
    """[B, T] labels of uneven length, the rest ignored."""
    found = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))
    for row, length in enumerate((T, T - 2, T - 4)):
        found[row, length:] = IGNORED
    return found


def readings(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """One random value for everything that a loss may read, each of the type that its name says;
    what the policy says wants gradients.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    found: dict[str, Any] = {}
    for offset, side in enumerate(SIDES):
        given = labels(offset)
        found[side] = View(random(B, T, V).requires_grad_(), given)
        found[f"ref_{side}"] = View(random(B, T, V), given)
        found[f"{side}_hidden"] = Hidden(random(B, T, H).requires_grad_(), given != IGNORED)
        found[f"ref_{side}_hidden"] = Hidden(random(B, T, H), given != IGNORED)
    found["reinforced_forget"] = View(random(B, T, V), labels())
    return _derived(found)


def _derived(values: Mapping[str, Any]) -> dict[str, Any]:
    """The readings with those that follow from others: likelihoods and norms of the reference."""
    found = dict(values)
    for side in SIDES:
        states: Hidden = found[f"ref_{side}_hidden"]
        found[f"ref_{side}_logp"] = found[f"ref_{side}"].seq_logp()
        found[f"ref_{side}_norm"] = states.counted().norm(dim=-1)[states.mask].mean()
    return found


def _changed(
    values: Mapping[str, Any],
    change: Callable[[View | Hidden], View | Hidden],
    which: Callable[[str], bool] = lambda name: True,
) -> dict[str, Any]:
    """The readings with some Views and hidden states changed; what is derived follows."""
    return _derived(
        {
            name: change(v) if isinstance(v, View | Hidden) and which(name) else v
            for name, v in values.items()
        }
    )


def noise_where_masked(value: View | Hidden) -> View | Hidden:
    """Other logits wherever the next token does not count, other states where the token does
    not.
    """
    numbers = value.logits if isinstance(value, View) else value.states
    noise = 100 * torch.randn(numbers.shape, generator=torch.Generator().manual_seed(9))
    if isinstance(value, Hidden):
        return Hidden(torch.where(value.mask[..., None], numbers, noise.to(numbers)), value.mask)
    counts = torch.cat([value.mask, torch.zeros(len(value.mask), 1, dtype=torch.bool)], -1)
    return View(torch.where(counts[..., None], numbers, noise.to(numbers)), value.labels)


def shifted(value: View | Hidden) -> View | Hidden:
    """A constant of its own added to the logits of every position, which no probability notices."""
    if isinstance(value, Hidden):
        return value
    constant = torch.randn(B, T, 1, generator=torch.Generator().manual_seed(8))
    return View(value.logits + constant.to(value.logits), value.labels)


def relabelled(value: View | Hidden) -> View | Hidden:
    """Other labels at the places that count."""
    if isinstance(value, Hidden):
        return value
    other = (value.labels + 1) % V
    return View(value.logits, torch.where(value.labels == IGNORED, value.labels, other))


def lowered(value: View | Hidden) -> View | Hidden:
    """The same in bfloat16."""
    if isinstance(value, Hidden):
        return Hidden(value.states.to(torch.bfloat16), value.mask)
    return View(value.logits.to(torch.bfloat16), value.labels)


def flipped(value: Read) -> Read:
    """A reading of the batch in the reverse order."""
    if isinstance(value, View):
        return View(value.logits.flip(0), value.labels.flip(0))
    if isinstance(value, Hidden):
        return Hidden(value.states.flip(0), value.mask.flip(0))
    return value.flip(0) if value.ndim else value


def alone(value: Read, row: int, length: int) -> Read:
    """One text of a batch by itself, cut to its length; a number that is no text's stays."""
    if isinstance(value, View):
        return View(value.logits[row : row + 1, :length], value.labels[row : row + 1, :length])
    if isinstance(value, Hidden):
        return Hidden(value.states[row : row + 1, :length], value.mask[row : row + 1, :length])
    return value[row : row + 1] if value.ndim else value


def padded(value: View | Hidden) -> View | Hidden:
    """The batch with three more places of padding, which hold anything."""
    numbers = value.logits if isinstance(value, View) else value.states
    longer = torch.cat([numbers, 100 * torch.ones_like(numbers[:, :3])], 1)
    if isinstance(value, Hidden):
        return Hidden(longer, torch.cat([value.mask, torch.zeros(B, 3, dtype=torch.bool)], 1))
    return View(longer, torch.cat([value.labels, torch.full((B, 3), IGNORED)], 1))


def reads_views(method: Method) -> bool:
    """Whether a loss reads logits or likelihoods at all, so that the laws on these apply."""
    return any(LOSS_READINGS[name].what in ("view", "logp") for name in method.reads)


def reads_labels(method: Method) -> bool:
    """Whether the true tokens are to matter to a loss, as to all but those listed otherwise."""
    return method.use not in LOSSES or LOSSES[method.use].labels


class Law(NamedTuple):
    """A law and the test of it: None if it holds, else what is wrong."""

    name: str
    test: Callable[[Callable[[Mapping[str, Any]], Any], Method], str | None]


def _shape(call: Callable[[Mapping[str, Any]], Tensor], method: Method) -> str | None:
    value = call(readings())
    if tuple(value.shape) != (B,):
        return f"gives shape {tuple(value.shape)}, not [{B}]"
    return None if bool(value.isfinite().all()) else "gives values that are not finite"


def _gradient(call: Callable[[Mapping[str, Any]], Tensor], method: Method) -> str | None:
    values = readings()
    call(values).sum().backward()
    own = [
        v.logits if isinstance(v, View) else v.states
        for n, v in values.items()
        if n in method.reads and LOSS_READINGS[n].model == "policy"
    ]
    return (
        None
        if any(t.grad is not None and bool((t.grad != 0).any()) for t in own)
        else "no gradient reaches the model"
    )


def _same(before: Tensor, after: Tensor, what: str, tolerance: float = 0.0) -> str | None:
    return (
        None
        if torch.allclose(before, after, rtol=tolerance, atol=tolerance)
        else f"{what} changes the value"
    )


def _masked(call: Callable[[Mapping[str, Any]], Tensor], method: Method) -> str | None:
    values = readings()
    return _same(
        call(values),
        call(_changed(values, noise_where_masked)),
        "what stands at masked positions",
    )


def _constant(call: Callable[[Mapping[str, Any]], Tensor], method: Method) -> str | None:
    values = readings()
    faults = [
        _same(
            call(values),
            call(_changed(values, shifted, which)),
            f"a constant added to the {whose} logits",
            1e-4,
        )
        for whose, which in (
            ("policy's", lambda n: LOSS_READINGS[n].model == "policy"),
            ("reference's", lambda n: LOSS_READINGS[n].model == "reference"),
            ("reinforced model's", lambda n: LOSS_READINGS[n].model == "reinforced"),
        )
    ]
    return next((f for f in faults if f), None)


def _order(call: Callable[[Mapping[str, Any]], Tensor], method: Method) -> str | None:
    values = readings()
    turned = {name: flipped(value) for name, value in values.items()}
    return _same(call(values), call(turned).flip(0), "the order of the batch", 1e-6)


def _alone(call: Callable[[Mapping[str, Any]], Tensor], method: Method) -> str | None:
    values = readings()
    lengths = (labels() != IGNORED).sum(-1).tolist()
    rows = []
    for row, length in enumerate(lengths):
        rows.append(call({name: alone(value, row, length) for name, value in values.items()}))
    return _same(call(values), torch.cat(rows), "what else is in the batch", 1e-5)


def _padding(call: Callable[[Mapping[str, Any]], Tensor], method: Method) -> str | None:
    values = readings()
    return _same(call(values), call(_changed(values, padded)), "longer padding", 1e-6)


def _labels(call: Callable[[Mapping[str, Any]], Tensor], method: Method) -> str | None:
    views = {
        LOSS_READINGS[name].model for name in method.reads if LOSS_READINGS[name].what == "view"
    }
    if views != {"policy"}:
        return None
    values = readings()
    changes = bool((call(values) != call(_changed(values, relabelled))).any())
    what = "the labels do not matter, which only a loss on whole distributions may say of itself"
    return None if changes else what


def _bfloat16(call: Callable[[Mapping[str, Any]], Tensor], method: Method) -> str | None:
    values = readings()
    low = _changed(values, lowered)
    return _same(call(values).float(), call(low).float(), "bfloat16 input by more than 5 %", 5e-2)


LOSS_LAWS = (
    Law("one finite value per example", _shape),
    Law("a gradient reaches the model", _gradient),
    Law("masked positions do not matter", _masked),
    Law("a constant on the logits does not matter", _constant),
    Law("the order of the batch does not matter", _order),
    Law("a text is worth alone what it is in a batch", _alone),
    Law("longer padding does not matter", _padding),
    Law("labels matter to a likelihood", _labels),
    Law("bfloat16 is close to float32", _bfloat16),
)


def check_loss(method: Method, laws: tuple[Law, ...] = LOSS_LAWS) -> Iterator[Result]:
    """All laws on one loss."""
    function = method.load()

    def call(values: Mapping[str, Any]) -> Tensor:
        found = function(*(values[name] for name in method.reads), **method.params)
        if not isinstance(found, Tensor):
            raise TypeError(f"gives a {type(found).__name__}, not a tensor")
        return found

    for law in laws:
        if law.test in (_constant, _labels) and not reads_views(method):
            yield Result(method.use, law.name, "skipped", "(reads no likelihood)")
            continue
        if law.test is _labels and not reads_labels(method):
            yield Result(method.use, law.name, "skipped", "(of whole distributions)")
            continue
        fault = _fault(partial(law.test, call, method))
        yield Result(
            method.use, law.name, "failed" if fault else "ok", f"- {fault}" if fault else ""
        )


def _fault(test: Callable[[], str | None]) -> str | None:
    """What is wrong by a law; of a function of a user's that fails on it, its own words."""
    try:
        return test()
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"


def check_quantizer(method: Method) -> Iterator[Result]:
    """All laws on one quantizer of single weights."""
    if "weight" not in method.reads:
        yield Result(method.use, "laws of weight quantizers", "skipped", "(quantizes whole models)")
        return
    function = method.load()

    def call(weight: Tensor) -> Quantized:
        found = function(weight, **method.params)
        return Quantized(**found) if isinstance(found, dict) else Quantized(*found)

    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    once = call(weight)
    again = call(once.weight)
    yield _result(
        method,
        "weight and codes keep the shape",
        once.weight.shape == weight.shape
        and (once.codes is None or once.codes.shape == weight.shape),
    )
    yield _result(method, "values are finite", bool(once.weight.isfinite().all()))
    yield _result(
        method, "equal input gives equal output", torch.equal(call(weight).weight, once.weight)
    )
    yield _result(method, "zeros stay zeros, or are refused", _keeps_zeros(call))
    worst = float((weight - once.weight).abs().max())
    yield _result(
        method,
        "the error is at most the largest weight",
        worst <= float(weight.abs().max()),
        f"- {worst:.3f}",
    )
    # Not less than the first time: a grid that clips may decode a block's largest weight to a
    # larger one, whose step is wider.
    moved = float((again.weight - once.weight).abs().max())
    yield _result(
        method,
        "a decoded weight moves at most twice the first error when quantized again",
        moved <= 2 * worst,
        f"- {moved:.3f}",
    )


def _keeps_zeros(call: Callable[[Tensor], Quantized]) -> bool:
    try:
        return not bool(call(torch.zeros(4, 256)).weight.any())
    except ValueError:
        return True


def what_is_read(truth: str, generated: str, memory: float, count: int) -> dict[str, object]:
    """One value for everything that a metric may read but a view: each of ``count`` tokens has the
    probability ``memory``.
    """

    def tokens(chance: float) -> Tokens:
        return Tokens(
            np.full(count, math.log(chance)),
            np.full(count, float(chance < 1)),
            np.full(count, -2.0),
            np.full(count, 1.0),
        )

    texts = {
        "prompt": "",
        "truth": truth,
        "answers": (),
        "text": truth,
        "generated": generated,
        "samples": [generated] * 8,
    }
    read = {name: tokens(memory) for name in ("tokens", "paraphrased", "reference_on_generated")}
    return (
        texts
        | read
        | {name: tokens(0.5) for name in ("lowercased", "behind_prefix", "reference")}
        | {"wrong": [tokens(0.5)], "grad_norm": 1 - memory}
        | {"choices": [tokens(0.5), tokens(memory)], "right": 1}
    )


def check_metric(method: Method) -> Iterator[Result]:
    """All laws on one metric: it is a number at both ends, and it says so when there is nothing to
    score.
    """
    function = method.load()
    if "view" in method.reads:
        wanted = labels()
        right = View(
            50.0 * torch.nn.functional.one_hot(wanted.roll(-1, 1).clamp(min=0), V).float(), wanted
        )
        wrong = View(-right.logits, wanted)
        ends = [function(view, **method.params) for view in (right, wrong)]
        yield _result(method, "one value per example", all(tuple(e.shape) == (B,) for e in ends))
        yield _result(method, "perfect and worst memory differ", bool((ends[0] != ends[1]).all()))
        masked = function(noise_where_masked(right), **method.params)
        yield _result(method, "masked positions do not matter", torch.equal(masked, ends[0]))
        return

    def call(generated: str, memory: float, count: int = 3) -> float | None:
        values = what_is_read("seven brass lanterns", generated, memory, count)
        try:
            found: float = function(*(values[r] for r in method.reads), **method.params)
        except Unscorable:
            return None
        return found

    same, other = call("seven brass lanterns", 1.0), call("no", 0.1)
    yield _result(
        method,
        "perfect and worst memory differ",
        same != other,
        f"- both give {same}" if same == other else "",
    )
    for name, empty in (
        ("an empty answer", call("", 0.1)),
        ("a text without tokens", call("seven", 0.1, 0)),
    ):
        yield _result(
            method,
            f"{name} gives a finite number or a reason",
            empty is None or math.isfinite(empty),
        )


def _result(method: Method, law: str, holds: bool, detail: str = "") -> Result:
    return Result(method.use, law, "ok" if holds else "failed", "" if holds else detail)


Check = Callable[[Method], Iterator[Result]]
KINDS: tuple[tuple[str, Mapping[str, Listed], tuple[str, ...], Check], ...] = (
    ("loss", LOSSES, LOSS_READS, check_loss),
    ("transform", FORMATS, TRANSFORM_READS, check_quantizer),
    ("metric", METRICS, METRIC_READS, check_metric),
)


def check_file(path: str) -> list[Result]:
    """The battery on every public function of a user's file, its kind told by what it reads.

    Raises:
        UserError: no such file, or a function whose parameters fit no kind.
    """
    results: list[Result] = []
    for name in functions_of(path):
        results += _check_one(f"{path}:{name}")
    if not results:
        raise UserError(
            f"{path} holds no public function.",
            "Write one and name its inputs as the documentation says.",
        )
    return results


def _check_one(use: str) -> list[Result]:
    faults = []
    for kind, table, readable, check in KINDS:
        try:
            method = resolve(kind, use, table, readable, {})
        except UserError as error:
            faults.append(str(error))
            continue
        return list(_to_the_end(check, method))
    raise UserError(f"'{use}' fits no kind of method.", " ".join(faults))


def _to_the_end(check: Check, method: Method) -> Iterator[Result]:
    """All laws that a function got to, and that it failed on the next."""
    method.load()  # what cannot be loaded is told as it is
    laws = check(method)
    while True:
        try:
            yield next(laws)
        except StopIteration:
            return
        except Exception as error:
            yield _result(
                method, "it runs on all that it reads", False,
                f"- {type(error).__name__}: {first_line(error)}",
            )  # fmt: skip
            return


def tiny_model(
    architecture: str = "llama", *, vocab: int = 64, seed: int = 0, **shape: Any
) -> PreTrainedModel:
    """A random model of a few thousand weights in any architecture of transformers."""
    sizes: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "head_dim": 16,
    }
    config = AutoConfig.for_model(architecture, **(sizes | shape))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.eval()
    return model
