"""What released code computes otherwise than its paper's formula says: a table, every entry with
the law that it breaks and a number that a few lines of our own reproduce.

For comparison only, as ``paper_code.py``: nothing in Remnant knows of it. Each function gives two
numbers: what the formula says, by this project's own code where it has that method, and what the
released code's way gives. Read at open-unlearning d3d7cf9, Unlearn-Simple f1a355d, Unlearn-Smooth
fc655ba, closer-look b622294, G-effect ef368ee, FLAT bf2ef07, Unlearning-TPO d489007, DurableUnl
3d504c8.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, logsigmoid

from remnant.functional import answers, confidence, distributions, losses
from remnant.functional.hidden import Hidden
from remnant.functional.view import IGNORED, View

Pair = tuple[float, float]


class Bug(NamedTuple):
    """One entry: which code, what it does, the law that this breaks, what the two numbers are of,
    and the function that gives them (the formula's, the released code's).
    """

    where: str
    what: str
    law: str
    of: str
    measured: Callable[[], Pair]


def _view(logits: list[list[float]], labels: list[int]) -> View:
    """One text: the logits that predict each label after the first."""
    width = len(logits[0])
    return View(torch.tensor([[*logits, [0.0] * width]]), torch.tensor([labels]))


def _raw_simnpo(view: View) -> float:
    return float((-2.0 * logsigmoid(-view.logits)).mean())


def raw_logits() -> Pair:
    """SimNPO on a text, and the same with 5 more on every logit: the difference."""
    low = _view([[0.0, 1.0]] * 3, [0, 0, 1, 0])
    high = View(low.logits + 5.0, low.labels)
    ours = [losses.simnpo(view, beta=1.0).item() for view in (low, high)]
    return ours[1] - ours[0], _raw_simnpo(high) - _raw_simnpo(low)


def no_labels() -> Pair:
    """SimNPO of what is said with probability 0.99, less that of what is said with 0.01."""
    likely = _view([[math.log(99.0), 0.0]] * 2, [0, 0, 0])
    unlikely = View(likely.logits, 1 - likely.labels)
    ours = [losses.simnpo(view, beta=1.0).item() for view in (likely, unlikely)]
    return ours[0] - ours[1], _raw_simnpo(likely) - _raw_simnpo(unlikely)


def rows_by_columns() -> Pair:
    """RMU's distance for texts of 10 and of 1 token, each at distance 1 from its point."""
    mask = torch.zeros(2, 10, dtype=torch.bool)
    mask[0], mask[1, 0] = True, True
    states = torch.ones(2, 10, 4)
    ours = losses.hidden_mse(Hidden(states, mask), Hidden(0.0 * states, mask)).mean()
    sums = (states.square() * mask[..., None]).mean(2).sum(1)
    return ours.item(), (sums / mask.sum(-1, keepdim=True)).mean().item()


def mask_of_the_token_itself() -> Pair:
    """The logit margin of an answer of one token behind a prompt, which alone has a margin (of
    2).
    """
    view = _view([[0.0, 0.0], [4.0, 0.0]], [IGNORED, IGNORED, 0])
    mask = view.labels != IGNORED
    squares = (view.logits.amax(-1) - view.logits.mean(-1)).square()
    return distributions.logit_margin(view).item(), ((squares * mask).sum() / mask.sum()).item()


def one_token_too_many() -> Pair:
    """The mean loss per token, in nats, that SimNPO makes of a text of four tokens that are guessed
    from four.
    """
    view = _view([[0.0] * 4] * 3, [0, 1, 2, 3])
    tokens = (view.labels != IGNORED).sum(-1)
    return -view.mean_logp().item(), (-view.seq_logp() / tokens).item()


def mean_over_padding() -> Pair:
    """KL to the target, log 2 at both tokens that count, in a batch padded from 3 to 9 places."""
    sure, open_ = [60.0, 0.0], [0.0, 0.0]
    labels = [0, 0, 0, *[IGNORED] * 6]
    ref = _view([*[sure] * 2, *[open_] * 6], labels)
    own = _view([open_] * 8, labels)
    flat = [log_softmax(v.logits, -1).view(-1, 2) for v in (own, ref)]
    found = kl_div(flat[0], flat[1], reduction="batchmean", log_target=True)
    return losses.klr(own, ref).item(), found.item()


def label_as_an_index() -> Pair:
    """UNDIAL's loss above its floor where the model is the aim itself, 8 of 9 places masked, and
    entry 50 of 150 is what the target says.
    """
    labels = torch.tensor([[0, 1, *[IGNORED] * 8]])
    said = torch.zeros(1, 10, 150)
    said[..., 50] = 5.0
    ref, aim = View(said, labels), said.clone()
    aim[0, 0, 1] -= 10.0
    places = labels[:, 1:, None]
    one_hot = torch.zeros(1, 9, 150).scatter(-1, places % 150, 1.0)
    teacher = log_softmax(ref.logits[:, :-1] - 10.0 * one_hot, -1)
    gap = teacher.exp() * (teacher - log_softmax(aim[:, :-1], -1))
    return distributions.undial(View(aim, labels), ref).item(), gap.sum(-1).mean().item()


def padding_in_a_probability() -> Pair:
    """FLAT's mean probability of an answer that is certain, 2 tokens long, in a batch 8 long."""
    view = _view([[60.0, 0.0]] * 8, [0, 0, 0, *[IGNORED] * 6])
    chances = view.token_logp().exp()
    return view.mean(chances).item(), chances.masked_fill(~view.mask, 0.0).mean().item()


def tanh_of_the_mean() -> Pair:
    """FLAT's term of the true answers of two texts, one certain, one impossible."""
    chances = torch.tensor([1.0, 0.0])
    return (chances.tanh() / 2).mean().item(), (chances.mean().tanh() / 2).item()


def sigmoid_of_the_mean() -> Pair:
    """NPO (beta 1) of two texts, 10 nats above the reference and 10 below."""
    ratios = torch.tensor([10.0, -10.0])
    return (-2 * logsigmoid(-ratios)).mean().item(), (-2 * logsigmoid(-ratios.mean())).item()


def constant_penalty() -> Pair:
    """The slope of a penalty |gradient of w^2| at w = 3."""
    slopes = []
    for kept in (True, False):
        w = torch.tensor(3.0, requires_grad=True)
        (g,) = torch.autograd.grad(w.square(), w, create_graph=True)
        norm = g.abs() if kept else g.abs().item()
        (slope,) = torch.autograd.grad(norm + 0.0 * w, w)
        slopes.append(slope.item())
    return slopes[0], slopes[1]


def weights_swapped_back() -> Pair:
    """The gradient of the first of two layers under a grid of whole numbers, w2 = 0.6, where
    weights are rounded by replacing ``.data`` and put back before the backward pass (DurableUnl,
    SAF). It looks wrong and is right: autograd has kept the rounded weights.
    """

    def layers() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        for module, weight in zip(model, (1.4, 0.6), strict=True):
            nn.init.constant_(module.get_parameter("weight"), weight)
        return model

    straight, swapped, one = layers(), layers(), torch.ones(1, 1)
    through = {n: p + (p.round() - p).detach() for n, p in straight.named_parameters()}
    torch.func.functional_call(straight, through, one).sum().backward()
    before = [p.data.clone() for p in swapped.parameters()]
    for p in swapped.parameters():
        p.data = p.data.round()
    value = swapped(one).sum()
    for p, kept in zip(swapped.parameters(), before, strict=True):
        p.data = kept
    value.backward()
    return _gradient(straight), _gradient(swapped)


def _gradient(model: nn.Sequential) -> float:
    gradient = model[0].get_parameter("weight").grad
    assert gradient is not None
    return gradient.item()


def last_batch_only() -> Pair:
    """The gradient of w x over two micro-batches, x = 1 and x = 3, accumulated."""
    w, x = torch.tensor(1.0, requires_grad=True), torch.tensor([1.0, 3.0])
    (whole,) = torch.autograd.grad((w * x).mean(), w)
    kept = 0.0
    for part in x / 2:
        (gradient,) = torch.autograd.grad(w * part, w)
        kept = gradient.item()
    return whole.item(), kept


def four_updates_a_step() -> Pair:
    """PDU's weight after a step of four micro-batches whose retain loss is 0.1 above the bound,
    from 1 with a step of 5.
    """
    once, often = 1.0 + 5.0 * 0.1, 1.0
    for _ in range(4):
        often = max(0.0, often + 5.0 * 0.1)
    return once, often


def norm_of_what_was_moved() -> Pair:
    """How far out adaptive RMU's point lies (scale 5) in a run that goes on after the states' norm
    has grown from 2 to 3.
    """
    mask = torch.ones(1, 1, dtype=torch.bool)
    target, moved = torch.tensor(2.0), torch.tensor(3.0)
    nothing = Hidden(torch.zeros(1, 1, 4), mask)
    pair = [losses.adaptive_rmu(nothing, n).item() for n in (target, moved)]
    return math.sqrt(4 * pair[0]), math.sqrt(4 * pair[1])


def floor_under_the_probability() -> Pair:
    """The slope of ME in the logit of an entry of four that is 40 below the others."""
    slopes = []
    for small in (False, True):
        logits = torch.tensor([[[0.0, 0.0, 0.0, -40.0], [0.0] * 4]], requires_grad=True)
        said = logits.softmax(-1)
        value = (
            -(said[0, 0] + 1e-12).log().mean()
            if small
            else distributions.max_entropy(View(logits, torch.tensor([[0, 0]]))).sum()
        )
        (slope,) = torch.autograd.grad(value, logits)
        slopes.append(slope[0, 0, 3].item())
    return slopes[0], slopes[1]


def constant_below_the_line() -> Pair:
    """TNPO's weight (beta 4) of a token of probability 0.01 under both models, whose formula is
    1.
    """
    view = _view([[math.log(0.01 / 0.99), 0.0]], [0, 0])
    logp = view.token_logp()
    ours = confidence.tnpo(view, view) / logp.sum()
    p = logp.exp() ** 4
    return ours.item(), (2 * p / (p + p + 1e-5)).item()


def skipped_before_the_shift() -> Pair:
    """CE-U, one token skipped, on plain text whose first predicted token has probability 0.99 and
    whose second 0.5.
    """
    view = _view([[math.log(99.0), 0.0], [0.0, 0.0]], [0, 0, 0])
    counted = (view.labels != IGNORED).cumsum(-1) > 1
    late = View(view.logits, view.labels.masked_fill(~counted, IGNORED))
    ours = distributions.unlikelihood(view, skip=1)
    return ours.item(), distributions.unlikelihood(late, skip=0).item()


def forget_counted_twice() -> Pair:
    """The gradient of a forget loss w^2 at w = 1 that reaches the optimiser."""
    gradients = []
    for times in (1, 2):
        w = torch.tensor(1.0, requires_grad=True)
        for _ in range(times):
            w.square().backward()
        gradients.append(float(w.grad if w.grad is not None else 0.0))
    return gradients[0], gradients[1]


def name_without_a_branch() -> Pair:
    """How many of five configured unlearners of NPO can be made."""
    configured = ("NPO+FT", "NPO+FT+SAM", "NPO+FT+RS", "NPO+FT+GNR", "NPO+FT+CR")
    branches = {"NPO+FT", "NPO+FT+SAM", "NPO+FT+RS", "NPO+FT+GNR"}
    return float(len(configured)), float(sum(name in branches for name in configured))


def appended_to_a_tensor() -> Pair:
    """How many of two rows are gathered before it fails."""
    rows, gathered = [torch.zeros(2), torch.ones(2)], 0
    found: list[Tensor] | Tensor = []
    try:
        for row in rows:
            found = torch.where(row == 0, row, row)
            getattr(found, "append")(found)  # noqa: B009
            gathered += 1
    except AttributeError:
        pass
    return float(len(rows)), float(gathered)


def argument_that_is_not_taken() -> Pair:
    """How many of two calls go through: transformers' before 4.46, and that since, which names the
    number of items.
    """

    def compute_loss(model: object, inputs: object, return_outputs: bool = False) -> float:
        return 0.0

    def call(**more: object) -> bool:
        loss: Callable[..., float] = compute_loss
        try:
            loss(None, None, **more)
        except TypeError:
            return False
        return True

    return 2.0, float(call() + call(num_items_in_batch=4))


def weights_exchanged() -> Pair:
    """The forget weight over the retain weight."""
    return 1.0 / 0.1, 0.1 / 1.0


def tokens_over_texts() -> Pair:
    """Ascent's value for two texts, of 9 tokens at 1 nat and of 1 token at 11 nats."""
    lengths, nats = torch.tensor([9.0, 1.0]), torch.tensor([1.0, 11.0])
    return -nats.mean().item(), -((lengths * nats).sum() / lengths.sum()).item()


def flat_over_flat() -> Pair:
    """FLAT's value where both answers are certain and of 1 and 4 tokens, padded to 4."""
    short = _view([[60.0, 0.0]] * 4, [0, 0, *[IGNORED] * 3])
    long = _view([[60.0, 0.0]] * 4, [0, 0, 0, 0, 0])
    p, q = (v.token_logp().exp().masked_fill(~v.mask, 0.0).mean() for v in (short, long))
    return answers.flat(short, long).item(), ((p.tanh() - q.tanh()) / 2).item()


_CONSTANT = "a constant on the logits does not matter"
_LABELS = "labels matter to a likelihood"
_PADDING = "longer padding does not matter"
_ALONE = "a text is worth alone what it is in a batch"
_MASKED = "masked positions do not matter"
_SLOPE = "the slope in log p is the stated one"
_SPLIT = "two small batches have the gradient of one large one"
_RESUMED = "a run that was cut goes on as the whole one"
_RUNS = "what is published runs"

BUGS: tuple[Bug, ...] = (
    Bug(
        "MUSE's NPO; Unlearn-Simple and Unlearn-Smooth on MUSE (NPO, SimNPO, SAM)",
        "the sigmoid is taken of raw logits, entry by entry",
        _CONSTANT,
        "SimNPO's change when 5 is added to every logit",
        raw_logits,
    ),
    Bug(
        "the same",
        "labels are never read",
        _LABELS,
        "SimNPO of text at p = 0.99 less that at p = 0.01",
        no_labels,
    ),
    Bug(
        "open-unlearning, RMU",
        "sums [b] are divided by counts [b, 1], which makes [b, b]",
        _ALONE,
        "distance, 1 for both texts, of 10 and of 1 token",
        rows_by_columns,
    ),
    Bug(
        "open-unlearning, PDU",
        "the mask of the labels is put on the logits without the shift",
        _MASKED,
        "margin of an answer of one token, squared",
        mask_of_the_token_itself,
    ),
    Bug(
        "open-unlearning and Unlearn-Simple on TOFU, SimNPO",
        "the sum over predicted tokens is divided by the count of all labels",
        "equal tokens have their own mean",
        "nats per token of text that is guessed from four",
        one_token_too_many,
    ),
    Bug(
        "TOFU, open-unlearning, closer-look, G-effect: KL on retain text",
        "`batchmean` over all places, without a mask",
        _PADDING,
        "KL of log 2 at 2 of 9 places",
        mean_over_padding,
    ),
    Bug(
        "open-unlearning, UNDIAL",
        "the label -100 is an index, so entry V - 100 is lowered where nothing counts, and the "
        "mean is over all places",
        _MASKED,
        "loss above its floor where the model is the aim",
        label_as_an_index,
    ),
    Bug(
        "FLAT",
        "the mean probability is taken over the padded length",
        _PADDING,
        "P of a certain answer of 2 tokens in a batch 8 long",
        padding_in_a_probability,
    ),
    Bug(
        "FLAT",
        "so a short certain answer counts as an improbable one",
        _ALONE,
        "loss where both answers are certain, of 1 and of 4 tokens",
        flat_over_flat,
    ),
    Bug(
        "FLAT, Unlearning-TPO",
        "the nonlinear function is taken of the batch's mean",
        _ALONE,
        "tanh(P) / 2 of two texts with P = 1 and P = 0",
        tanh_of_the_mean,
    ),
    Bug(
        "Unlearn-Smooth on WMDP, NPO",
        "the sigmoid is taken of the batch's mean loss per token",
        _ALONE,
        "NPO of two texts 10 nats above and 10 below the reference",
        sigmoid_of_the_mean,
    ),
    Bug(
        "GA, WGA, SatImp, CE-U, ME in their releases",
        "the mean is over all tokens of a batch, not per text; alphas belong to it",
        _ALONE,
        "ascent on texts of 9 tokens at 1 nat and 1 at 11",
        tokens_over_texts,
    ),
    Bug(
        "Unlearn-Smooth, gradient penalty (NPO+FT+GNR)",
        "the norm is made a number by `.item()` before it is added, its weight is 0.01 whatever is "
        "set",
        "the penalty has a gradient",
        "slope at w = 3 of the penalty, the norm of 2 w",
        constant_penalty,
    ),
    Bug(
        "Unlearn-Smooth, curvature (NPO+FT+CR)",
        "the forget loss is sent back once to find the direction and stays in the gradient",
        "every loss counts once",
        "gradient of w^2 at 1",
        forget_counted_twice,
    ),
    Bug(
        "Unlearn-Smooth, curvature (NPO+FT+CR)",
        "it is configured and imported, and no branch makes it",
        _RUNS,
        "unlearners that can be made of five",
        name_without_a_branch,
    ),
    Bug(
        "Unlearning-TPO, `tpo`",
        "a list is replaced by a tensor of the same name, to which rows are then appended",
        _RUNS,
        "rows gathered of two",
        appended_to_a_tensor,
    ),
    Bug(
        "open-unlearning, every trainer",
        "`compute_loss` takes no `num_items_in_batch`; transformers is held at 4.45.1",
        _RUNS,
        "calls that go through of two",
        argument_that_is_not_taken,
    ),
    Bug(
        "Unlearn-Smooth on MUSE, SAM",
        "every micro-batch overwrites the gradient",
        _SPLIT,
        "gradient of w x over x = 1 and x = 3",
        last_batch_only,
    ),
    Bug(
        "open-unlearning, PDU",
        "the dual variable moves at every micro-batch, by the retain loss of one process",
        _SPLIT,
        "weight after a step of four micro-batches",
        four_updates_a_step,
    ),
    Bug(
        "adaptive RMU",
        "the norm is measured on the model in training, once at the first step of a call",
        _RESUMED,
        "distance of the point after a run goes on",
        norm_of_what_was_moved,
    ),
    Bug(
        "closer-look, ME",
        "log(softmax + 1e-12), a floor under which nothing is raised again",
        "the slope in a logit is p - 1/V",
        "slope at a logit 40 below three others",
        floor_under_the_probability,
    ),
    Bug(
        "G-effect, TNPO and WTNPO",
        "1e-5 is added below the line, which is more than p^4 of improbable tokens",
        _SLOPE,
        "weight at the target of a token with p = 0.01",
        constant_below_the_line,
    ),
    Bug(
        "open-unlearning, CE-U",
        "tokens are skipped before the shift, so on plain text the one that is never predicted",
        "the first predicted tokens are skipped",
        "nats of the tokens left of p = 0.99, 0.5",
        skipped_before_the_shift,
    ),
    Bug(
        "open-unlearning, SatImp",
        "its file has the weights of the README the other way round",
        "the published setting is the one that is run",
        "forget weight over retain weight",
        weights_exchanged,
    ),
)
