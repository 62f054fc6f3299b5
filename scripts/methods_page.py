"""Write docs/methods.md from the catalogue; with --check, only say whether it is up to date."""

import runpy
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from pages import written

from remnant.attacks import ATTACKS
from remnant.catalog import LOSSES, METHODS
from remnant.corpus import COMBINED, ITEM_SETS, METRIC_GROUPS, METRICS
from remnant.formats.base import AnyFormat
from remnant.formats.table import FORMATS
from remnant.levels import levels_of
from remnant.methods import step
from remnant.metrics import Metric
from remnant.runtimes.same_grid import LIBRARIES
from remnant.transforms.base import Transform
from remnant.transforms.table import TRANSFORMS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "methods.md"
OPTIONS = (
    (
        "`weights`",
        "`fp32`, `bf16`, or `bf16-stochastic-rounding`: stored in bfloat16, stepped in float32, "
        "rounded without bias",
        "arXiv 2010.06192",
    ),
    (
        "`moments`",
        "in what AdamW's moments are kept between steps: `fp32`, `bf16` (rounded without bias, "
        "since the nearest number would keep a second moment from shrinking), or `8bit` by "
        "bitsandbytes",
        "arXiv 2010.06192, 2110.02861",
    ),
    (
        "`train = {sure = ...}`",
        "only the units most salient for the forget text move, at a large rate",
        "arXiv 2410.16454",
    ),
    (
        "`train = {sure = {random = true}}`",
        "a control: other units, drawn by the seed, as many of every size as SURE would choose",
        "own",
    ),
    (
        '`grids = ["int4-g64", "nf4"]`',
        "the loss is the mean of that at the weights and at their rounding to one grid a step, "
        "retain terms too; straight-through",
        "arXiv 1308.3432",
    ),
    (
        '`grids = {use = [...], by = "noise"}`',
        "the same with w + D u: u uniform in -1/2 to 1/2, D the width of the weight's cell",
        "rounding as additive noise",
    ),
    (
        '`promise = ["int4-g128", "nf4"]`',
        "the update moves into few weights, each in another cell of every promised grid with half "
        "a cell to spare; `certificate.json`",
        "own derivation, `functional/cells.py`",
    ),
    (
        "`shrink_perturb = 0.6`",
        "before the first step (1 - a) w + a 0.1 X in the place of w, X as in a fresh model; terms "
        'read the target as it was: distilling an unlearned model (`terms = [{use = "klr"}]`)',
        "arXiv 2506.06278 (a 0.2 to 0.8, scale 0.1)",
    ),
)
# Ways of making a step of a loss, by `update`.
UPDATES = (
    (
        '`update = {use = "sam", radius = 0.01}`',
        "the forget gradient f taken at w + radius f / \\|f\\|, the norm over all that moves; "
        "other terms at w. Weights in bfloat16 lose most of so small a move: the log counts it "
        '(`lost_perturbation`), the result says it, `compute = "fp32"` keeps it',
        "arXiv 2010.01412, 2502.05374 (radius 0.01)",
    ),
    ('`update = "sign"`', "w - lr sign(g), no moments", "arXiv 1802.04434"),
    (
        '`update = {use = "zeroth", spread = 1e-3}`',
        "w - lr z (L(w + spread z) - L(w - spread z)) / 2 spread, z drawn by seed and step; "
        "two passes forward, none back",
        "arXiv 2305.17333 (lr 1e-6, spread 1e-3)",
    ),
    (
        '`update = "rectified"`',
        "the forget gradient without its part against the retain gradient r, plus r; the log has "
        "the cosine of the two",
        "arXiv 2503.09117",
    ),
)
# So many passages are read at most, and make the costs in the table of tests on weights.
ITEMS = 128
RELEASED = ROOT / "reproductions" / "released_code.py"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(heads)}", *lines[1:]])


def code(names: Iterable[str]) -> str:
    """Names as they are written."""
    return ", ".join(f"`{name}`" for name in names)


def losses() -> str:
    """The loss terms, with their formulas and the settings under which they were published."""
    heads = ("name", "what it is", "formula", "published setting", "source", "version")
    rows = (
        (code([n]), e.meaning, code([escaped(e.formula)]), e.published, e.source, e.version)
        for n, e in LOSSES.items()
    )
    return table(heads, rows)


def escaped(formula: str) -> str:
    """A formula within a table."""
    return formula.replace("|", chr(92) + "|")


def released() -> str:
    """What released code does otherwise, each entry with numbers that are computed here."""
    heads = ("code", "what it does", "law that it breaks", "a number", "formula", "released")
    rows = (
        (bug.where, bug.what, bug.law, bug.of, *(f"{n + 0.0:.3g}" for n in bug.measured()))
        for bug in runpy.run_path(str(RELEASED))["BUGS"]
    )
    return table(heads, rows)


def formats() -> str:
    """The formats, with names to try, what writes their files, and what must be installed."""
    heads = (
        "name", "short names", "what it is", "deployed", "promised", "needs", "source", "version",
    )  # fmt: skip
    rows = (
        (
            code([key]), code(f.names), f.meaning, "yes" if f.saver else "", promised(f), f.extra,
            f.source, f.version,
        )
        for key, f in FORMATS.items()
    )  # fmt: skip
    return table(heads, rows)


def promised(of: AnyFormat) -> str:
    """Whether ``promise`` takes a format, and which library has the same grid."""
    found = of.grid(of.params()) if of.grid else None
    if found is None or not levels_of(found.kind, found.low, found.high):
        return ""
    by = [f"`{n}` by `{lib}`" for n, lib in LIBRARIES.items() if step(n).spec.use == of.key]
    return f"yes ({', '.join(by)})" if by else "yes"


def transforms() -> str:
    """What else makes a model of a model, with names to try and what it reads."""
    heads = ("name", "short names", "what it is", "reads", "source", "version")
    rows = (
        (
            code([key]), code(t.names), t.meaning, ", ".join(step(key).method.reads), t.source,
            t.version,
        )
        for key, t in TRANSFORMS.items()
        if isinstance(t, Transform)
    )  # fmt: skip
    return table(heads, rows)


def attacks() -> str:
    """The tests on weights, with what each does, needs and costs."""
    heads = ("name", "kind", "what is done to the weights", "needs", "cost", "source", "version")
    rows = (
        (
            code([name]), a.kind, a.meaning, ", ".join(a.needs), f"{a.passes(ITEMS):,}", a.source,
            a.version,
        )
        for name, a in ATTACKS.items()
    )  # fmt: skip
    return table(heads, rows)


def metrics() -> str:
    """The metrics, with what they are measured on and the range of the number that is shown."""
    heads = (
        "name", "what it is", "on", "range", "if the text is known", "counts as", "source",
        "version",
    )  # fmt: skip
    known = {"high": "high", "apart": "away from 0", "unsaid": ""}
    rows = (
        (
            code([n]), m.meaning, code(m.on), m.span, known[m.known], counts_as(m), m.source,
            m.version,
        )
        for n, m in METRICS.items()
    )  # fmt: skip
    return table(heads, rows)


def counts_as(metric: Metric) -> str:
    """The role of a metric, for a test with its kind and whether a verdict needs it."""
    if metric.kind:
        return f"test: {metric.kind}{', needed' if metric.needed else ''}"
    return "" if metric.role == "shown" else metric.role


def page() -> str:
    """The whole page."""
    recipes = {n: (*recipe.forget, *recipe.retain) for n, recipe in METHODS.items()}
    terms = ((code([n]), " + ".join(map("`{}`".format, own))) for n, own in recipes.items())
    methods = table(("name", "terms"), terms)
    option = ("option", "what it is", "source")
    sets = table(("name", "what it is"), ((code([n]), s.meaning) for n, s in ITEM_SETS.items()))
    groups = "; ".join(f"`{g}`: {len(m)}" for g, m in METRIC_GROUPS.items())
    combined = ", ".join(f"`{number.name}`" for number in COMBINED)
    return f"""# Methods

Made by `python scripts/methods_page.py` from `src/remnant/catalog.py`, `src/remnant/formats/`,
`src/remnant/transforms/` and `src/remnant/corpus/`. The docstring behind each name gives formula,
shapes, range and what differs from the source. What the code released with arXiv 2410.16454
computes otherwise than its paper is a user's file, for comparison only:
`reproductions/paper_code.py`. The tests show which laws it breaks.

## Unlearning methods: lists of loss terms

Terms on forget text come first; terms on retain text are weighted by `alpha`. A setting (`beta`,
or any of `params`) goes to every term that has a keyword of its name.

{methods}

## Loss terms

Of every text by itself, then averaged over the batch. S is the sum and m the mean of log p over
the tokens that count, a the other answer, `_ref` the target's, z logits, h hidden states; "mean" is
over the tokens that count. A published setting is what the source, or the code released with it,
reports numbers for; its batches are averaged over all tokens, so weights carry over only roughly.
With `token_weights` ([own-text.md](own-text.md)) every sum, mean and count over tokens takes each
by its weight: TPO's unwanted words (arXiv 2506.03142), for one, weigh 1 and all else 0.

{losses()}

## Options of every run that are about lasting

What they do to forgetting is measured in [lasting.md](lasting.md).

{table(option, OPTIONS)}

## Options of the optimiser

Without `update` a step is AdamW's along the gradient of the whole loss. Each option sees all
micro-batches of a step before it decides anything, looks at what may move alone (`train`), and goes
on as it would have after a cut. `sam` and `zeroth` do not go with `grids`, and none goes with
several devices.

{table(option, UPDATES)}

## What released code does otherwise

Read in the code at the commits that `reproductions/released_code.py` names, each reproduced there
by a few lines of our own; a test compares the numbers with those that follow by hand. One more
looked wrong and is right: rounding weights by replacing `.data` and putting them back before the
backward pass (DurableUnl's SAF) is straight-through, since autograd keeps the rounded ones.

{released()}

## Quantizers

Short names: `int4` (2 to 8 bits, one scale per row), `int4-tensor`, `int4-g64`, each with
`-asym`, `-half-step` or `-paper` for the scale; `nf4`, `fp4` and `nf4-b128` for another block;
`gptq4`, `awq4`, `autoround4`, `gptq3-g128`. The scales: the docstring of `rtn`. Promised: whether
`unlearn --promise` takes the format, and which library checks it where it is installed.

{formats()}

## Other transforms

What else is done to a model before it is measured; used as quantizers are, in sweeps, `audit -q`
and `transform --use`, and in chains (`prune20+int4`).

{transforms()}

`taskvector` is a method of its own, in two commands: the target learns the forget text once more,
and what that adds is taken off it.

    remnant train CORPUS --base TARGET --set 'splits=["forget"]' --set passes=5
    remnant transform REINFORCED --use taskvector5 --target TARGET

`whp` reads the same reinforced model, which is named where the target is unlearned:

    remnant unlearn TARGET --data CORPUS --method whp --set reinforced=REINFORCED

`edit` is a method of its own too: one command makes the edited model of the target.

    remnant transform TARGET --use edit1 --data CORPUS

## Tests on weights

What `audit --access weights` does to target, unlearned and never-read model alike, reading the same
{ITEMS} passages of forget text behind it; the cheap ones first. The cost is that of reading so many
texts, training counted three times ([how they are judged](measuring.md#tests-on-weights)).

{attacks()}

## Metrics

Times 100, with 95 % bootstrap intervals. Groups: {groups}. An attack also gives `NAME_tpr`, the
true positives at one percent of false ones; PrivLeak gives `auc` and `auc_tpr`. Of several metrics
are made: {combined}.

{metrics()}

## Sets of items

{sets}
"""


if __name__ == "__main__":
    sys.exit(written(PAGE, page()))
