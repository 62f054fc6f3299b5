"""Forgetting in closed form: down-projections of MLPs are edited so that on forget text they no
longer raise the true tokens. Nothing is trained.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.functional.edits import least_squares_edit
from remnant.model.activations import summed
from remnant.model.blocks import blocks
from remnant.model.data import encode
from remnant.model.head import output_layer
from remnant.model.load import Matrix, context_length, matrices
from remnant.model.whole import check_ids
from remnant.training.loop import Loop
from remnant.training.relearning import MOST_TOKENS, texts_of

# What the matrix is called through which an MLP gives its answer, in the architectures that open.
_DOWN = re.compile(r"\.(mlp|ffn|feed_forward)\.(down_proj|c_proj|dense_4h_to_h|fc2|w2)\.weight$")


class Pass(NamedTuple):
    """What one text says, at the tokens behind which another one stands. ``inputs`` and ``outputs``
    of some weights by their names, [T-1, in] and [T-1, out]; ``rising`` [T-1, hidden], how the
    logit of the true next token rises with what the last block gives. All float64.
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    rising: Tensor


def edit(  # noqa: PLR0913 (four are settings, which a user writes by their names)
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Path,
    loop: Loop,
    *,
    layers: int = 3,
    strength: float = 1.0,
    retain: float = 1.0,
    ridge: float = 0.01,
) -> None:
    """Edit a model in place: in the layers that raise the true tokens of forget text most, the
    outputs of the MLP's down-projection are moved against these tokens, and those on retain text
    held (``functional.edits``).

    The layers are solved from the first to the last, each on the inputs that the edited ones before
    it give. The change that is wanted of an output is ``strength`` times the outputs' mean length,
    against the direction in which the true next token's logit rises.

    Args:
        model: in evaluation mode, in float32.
        tokenizer: the model's.
        corpus: the prepared one; of its retain text what repeats no long run of forget text.
        loop: is told how far it is.
        layers: how many are edited.
        strength: 0 changes nothing.
        retain: what retain tokens weigh against forget tokens, by their means.
        ridge: over the mean square of an input on forget text.

    Raises:
        UserError: the corpus lacks text, or the model has no such layers, or fewer.

    Source: GROM 2026 (arXiv 2608.05783) for the problem. *Differs from the source in*: its targets,
    its choice of layers and its weights are not published; the direction and the attribution here
    are the logit lens's (through the final norm, no later block), the rest is own.
    """
    check_ids(model, tokenizer)
    forget, other = (_told(tokenizer, corpus, text, model) for text in ("forget", "retain"))
    found = down_projections(model)
    if layers > len(found):
        raise UserError(
            f"The model has {len(found)} MLPs, fewer than {layers}.", f"Set layers to {len(found)}."
        )
    passes = (1 + layers) * len(forget) + layers * len(other)
    told = partial(_counted, count(1), lambda done, note: loop.work.progress(done, passes, note))
    chosen = raising(model, found, told(forget, "looking for layers"))[:layers]
    for matrix in (m for m in found if m.name in chosen):
        pull, seen = pulled(model, matrix, told(forget, matrix.name), strength)
        held = retain * second_moment(model, matrix.name, told(other, matrix.name))
        change = least_squares_edit(pull, seen, held, ridge=ridge)
        matrix.write((matrix.read().double() + change).to(matrix.parameter.dtype))


def _counted(
    numbers: Iterator[int], report: Callable[[int, str], None], texts: Sequence[Tensor], note: str
) -> Iterator[Tensor]:
    """Texts one after the other, each told of when the next is asked for."""
    for ids in texts:
        yield ids
        report(next(numbers), note)


def _told(
    tokenizer: PreTrainedTokenizerBase, corpus: Path, text: str, model: PreTrainedModel
) -> list[Tensor]:
    """Token ids of the texts of one side, each [1, T]."""
    most = min(context_length(model), MOST_TOKENS)
    found = encode(tokenizer, texts_of(corpus, text, 100, 0), most)
    if not found:
        raise UserError(f"The corpus has no {text} text to edit by.", "Give another corpus.")
    return [torch.tensor([ids]) for ids in found]


def down_projections(model: PreTrainedModel) -> list[Matrix]:
    """The matrices through which the MLPs give their answers, from the first block to the last.

    Raises:
        UserError: there are none that are one matrix per block.
    """
    found = [m for m in matrices(model, ()) if _DOWN.search(m.name) and m.parameter.ndim == 2]
    if not found:
        raise UserError(
            "The MLPs of this model have no down-projection of their own.",
            "Unlearn it by a loss, such as npo_gdr.",
        )
    return found


def raising(model: PreTrainedModel, among: Sequence[Matrix], texts: Iterable[Tensor]) -> list[str]:
    """The names of weights by how much their outputs add to the true tokens' logits over some
    texts, the most first.
    """
    names = [m.name for m in among]
    totals = dict.fromkeys(names, 0.0)
    for ids in texts:
        seen = look(model, names, ids)
        for name in names:
            totals[name] += float((seen.outputs[name] * seen.rising).sum())
    return sorted(names, key=lambda name: -totals[name])


def pulled(
    model: PreTrainedModel, matrix: Matrix, texts: Iterable[Tensor], strength: float
) -> tuple[Tensor, Tensor]:
    """The means over tokens of c x^T, c the change that is wanted of an output, and of x x^T; [out,
    in] and [in, in].
    """
    name = matrix.name
    rows, columns = matrix.read().shape
    like = torch.zeros(rows, columns, dtype=torch.float64, device=matrix.parameter.device)
    toward, square, length, tokens = like, like.new_zeros(columns, columns), 0.0, 0
    for ids in texts:
        seen = look(model, [name], ids)
        inputs, direction = seen.inputs[name], nn.functional.normalize(seen.rising, dim=-1)
        toward = toward + direction.T @ inputs
        square = square + inputs.T @ inputs
        length += float(seen.outputs[name].norm(dim=-1).sum())
        tokens += len(inputs)
    return -strength * (length / tokens) * toward / tokens, square / tokens


def second_moment(model: PreTrainedModel, name: str, texts: Iterable[Tensor]) -> Tensor:
    """The mean over tokens of x x^T, x the input of a weight; [in, in]."""

    def products(inputs: Tensor) -> Tensor:
        # One more column, of ones, counts the tokens.
        more = torch.cat([inputs, torch.ones_like(inputs[:, :1])], -1)
        return more.T @ more

    total = summed(model, [name], texts, products)[name]
    return total[:-1, :-1] / total[-1, -1]


def look(model: PreTrainedModel, names: Sequence[str], ids: Tensor) -> Pass:
    """One pass over a text [1, T]. The slope is taken through what lies behind the last block
    alone.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    last: list[Tensor] = []
    final: list[Tensor] = []

    def keep(name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        inputs[name] = args[0][0, :-1].detach().double()
        outputs[name] = output[0, :-1].detach().double()

    def begin(module: nn.Module, args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        last.append(states.detach().requires_grad_())
        return (last[0], *output[1:]) if isinstance(output, tuple) else last[0]

    def end(module: nn.Module, args: tuple[Any, ...]) -> None:
        final.append(args[0])

    head = output_layer(model)
    layers = [(model.get_submodule(name.rpartition(".")[0]), partial(keep, name)) for name in names]
    with _hooked(layers, blocks(model)[-1], begin), _frozen(model), torch.enable_grad():
        hook = head.register_forward_pre_hook(end)
        try:
            model(input_ids=ids.to(model.device), use_cache=False)
        finally:
            hook.remove()
        assert isinstance(head.weight, Tensor)
        wanted = head.weight[ids[0, 1:].to(model.device)]
        (rising,) = torch.autograd.grad((final[0][0, :-1] * wanted).sum(), last[0])
    return Pass(inputs, outputs, rising[0, :-1].double())


@contextmanager
def _hooked(
    layers: Sequence[tuple[nn.Module, Callable[..., None]]],
    block: nn.Module,
    begin: Callable[..., Any],
) -> Iterator[None]:
    hooks = [layer.register_forward_hook(keep) for layer, keep in layers]
    hooks.append(block.register_forward_hook(begin))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """A model whose weights want no gradients, so that a graph begins where it is told to."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
