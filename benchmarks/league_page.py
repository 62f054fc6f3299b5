"""What came of the league: one page, its picture first, and the same table in Markdown."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from remnant.corpus import METRICS, of_role
from remnant.records import FULL, Recovery, Shares, Variant
from remnant.report import table
from remnant.report.charts import knowledge_by_form, recovery_map
from remnant.report.notebook import environment
from remnant.report.pooled import over_seeds
from remnant.report.table import Group, Results
from remnant.tuning.search import ASKED, Searched
from remnant.tuning.told import came_to, settings_said

# The picture's metric: its texts are many words long, so that its shares have narrower intervals.
PICTURED = "verbmem"
KNOWN = [m for m in of_role("knowledge") if m in ASKED]
HEADS = (
    "corpus", "model", "level reached", "VerMem", "KnowMem forget", "KnowMem retain",
    "most VerMem back", "most KnowMem back", "forms with some back",
)  # fmt: skip
# Some is back where the whole interval lies above nothing, and the middle above this: the limit of
# the verdict's rule (src/remnant/records/audit.py).
SOME = 0.2
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1c1c; --dim: #595959; --line: #ccc;
  --head: #fafafa; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e8e6e3; --dim: #a8a6a2;
  --line: #444; --head: #1c1f23; } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --head: #fafafa; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
svg { width: 100%; height: auto; background: #fff; color: #000; }
{% include 'tables.css.j2' %}
td { font-variant-numeric: tabular-nums; } figure { margin: 0; } .narrow { display: none; }
@media screen and (max-width: 40rem) { .narrow { display: block; } .wide { display: none; } }
</style></head><body>
<figure><div class="wide">{{ picture | safe }}</div>
<div class="narrow"><table class="cards">
{% for name, back in pictured %}<tr><th>{{ name }}</th>{% for form, said, shade in back %}
<td data-h="{{ form }}" style="background: rgba(230, 85, 13, {{ shade }})">{{ said }}</td>
{% endfor %}</tr>{% endfor %}</table></div>
<figcaption>How much of what every method had forgotten is back in every form (VerMem; 0 as in
full precision, 1 all of it; "-" where there was nothing to come back).
Means over {{ seeds }}; intervals show where you point.</figcaption></figure>
<h1>{{ title }}</h1>
<p>{{ said }}</p>
<div class="scroll"><table class="cards">
<tr class="head">{% for h in heads %}<th>{{ h }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for c in row %}<td data-h="{{ heads[loop.index0] }}">{{ c }}</td>
{% endfor %}</tr>
{% endfor %}</table></div>
<p>x100 with 95 % intervals in full precision, test half; then the largest recovery among the forms,
with its form, and in how many forms an interval lies above nothing and the value above
{{ some }}. Several seeds: means, the intervals as of independent seeds (each has a corpus and a
target of its own).</p>
<h2>The settings</h2>
<ul>{% for line in settings %}<li>{{ line }}</li>{% endfor %}</ul>
</body></html>
"""


class Run(NamedTuple):
    """One unlearning run of the league."""

    corpus: str
    model: str
    seed: int | None

    @classmethod
    def of(cls, label: Variant) -> "Run":
        """The run that a piece of work belongs to."""
        return cls(str(label.corpus), label.model, label.seed)


def share(shares: Shares | None) -> str:
    """Value and interval in a cell of a table."""
    return "-" if shares is None else "{:.2f} [{:.2f}, {:.2f}]".format(*shares)


def back(group: Group, model: str, metrics: Sequence[str] = KNOWN) -> list[Recovery]:
    """What came back of a model, in all forms that have a share."""
    own = (r for r in group.recoveries if r.model == model and r.form != FULL and r.recovery)
    return [r for r in own if r.metric in metrics]


def value_of(row: Recovery) -> float:
    """The middle of a recovery."""
    return row.recovery[0] if row.recovery else 0.0


def most_back(group: Group, model: str, metrics: Sequence[str] = KNOWN) -> Recovery | None:
    """The form and kind of knowledge of which most is back."""
    return max(back(group, model, metrics), key=value_of, default=None)


def told_back(row: Recovery | None) -> str:
    """A recovery with its form."""
    return "-" if row is None else f"{share(row.recovery)} ({row.form})"


def some_back(group: Group, model: str) -> str:
    """In how many forms some of any knowledge is back beyond doubt."""
    rows = back(group, model)
    sure = {r.form for r in rows if r.recovery and r.recovery[0] > SOME and r.recovery[1] > 0}
    return f"{len(sure)} of {len({r.form for r in rows})}"


def rows_of(group: Group, came: Mapping[Run, bool]) -> Iterator[tuple[str, ...]]:
    """The table of one corpus: a row for every model."""
    for model in group.models:
        own = [there for run, there in came.items() if run[:2] == (group.corpus, model)]
        level = f"{sum(own)} of {len(own)}" if own else ""
        numbers = [table.number(group.cell(model, FULL, metric)) for metric in ASKED]
        if model in group.unlearned:
            worst = [told_back(most_back(group, model, [metric])) for metric in KNOWN]
            yield (group.corpus, model, level, *numbers, *worst, some_back(group, model))
        else:
            yield (group.corpus, model, level, *numbers, "", "", "")


def pictured_of(groups: Sequence[Group]) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """The picture for narrow screens: of every model its forms, what is back, and how dark."""
    for group in groups:
        for model in group.unlearned:
            rows = back(group, model, [PICTURED])
            shades = (f"{0.6 * min(max(value_of(row), 0.0), 1.0):.2f}" for row in rows)
            own = [(r.form, share(r.recovery), dark) for r, dark in zip(rows, shades, strict=True)]
            yield f"{group.corpus}, {model}", own


def settings_of(searched: Mapping[str, Sequence[Searched]]) -> list[str]:
    """What was found of every method, on every corpus."""
    lines = []
    for corpus, found in searched.items():
        for one in found:
            kept = "" if one.useful else " (no trial kept enough utility)"
            said = f"{settings_said(one.best)}; {came_to(one.best)}{kept}"
            lines.append(f"{corpus}, {one.method}: {said}")
    return lines


def said_of(groups: Sequence[Group]) -> str:
    """What the picture amounts to, in one sentence."""
    cells = [r for g in groups for m in g.unlearned for r in back(g, m, [PICTURED])]
    some = [r for r in cells if r.recovery and r.recovery[0] > SOME and r.recovery[1] > 0]
    models = {(r.corpus, r.model) for r in some}
    return (
        f"Of {len(cells)} pairs of model and form in which something could come back of "
        f"{METRICS[PICTURED].title}, {len(some)} bring back more than {SOME:.0%} beyond doubt, in "
        f"{len(models)} models."
    )


def by_weights(group: Group, weights: str) -> Group:
    """The models of one kind of weights, with target and never-read model."""
    cells = [c for c in group.cells if c.is_reference or c.model.endswith(f" {weights}")]
    return replace(group, cells=cells)


def draw(groups: Sequence[Group], folder: Path) -> None:
    """For every corpus and kind of weights a picture of what is known in every form."""
    folder.mkdir(parents=True, exist_ok=True)
    for group in groups:
        for weights in dict.fromkeys(m.rpartition(" ")[2] for m in group.unlearned):
            drawing = knowledge_by_form(by_weights(group, weights), PICTURED)
            name = f"league-{group.corpus}-{weights}.svg"
            (folder / name).write_text(drawing, encoding="utf-8")


def write(
    work: Path,
    results: Results,
    searched: Mapping[str, Sequence[Searched]],
    came: Mapping[Run, bool],
) -> None:
    """Write the page and its pictures, and print the tables.

    Args:
        work: receives league.html, figures/ and summary.json (in report/).
        results: of all seeds.
        searched: by corpus, what was chosen of every method.
        came: which runs reached the common level.
    """
    groups = over_seeds(results.groups) or results.groups
    rows = [row for group in groups for row in rows_of(group, came)]
    lines, picture = settings_of(searched), recovery_map(groups, PICTURED)
    count = groups[0].seeds
    text = environment().from_string(PAGE).render(
        title=results.sweep.title, picture=picture, said=said_of(groups), heads=HEADS, rows=rows,
        settings=lines, some=SOME, pictured=list(pictured_of(groups)),
        seeds=f"{count} seeds" if count > 1 else "one seed",
    )  # fmt: skip
    draw(groups, work / "figures")
    (work / "figures" / "league-recovery.svg").write_text(picture, encoding="utf-8")
    (work / "league.html").write_text(text, encoding="utf-8")
    print(work / "league.html", *lines, said_of(groups), sep="\n")
    for row in (HEADS, ("---",) * len(HEADS), *rows):
        print("| " + " | ".join(row) + " |")
    for group in groups:
        for model in group.unlearned:
            for one in back(group, model):
                print(f"{group.corpus} {model:18} {one.form:12} {one.metric:15} "
                      f"{share(one.recovery)}")  # fmt: skip
    worst = {
        f"{group.corpus} {model}": row.recovery
        for group in groups
        for model in group.unlearned
        if (row := most_back(group, model))
    }
    chosen = {
        corpus: {one.method: dict(one.best.drawn) for one in found}
        for corpus, found in searched.items()
    }
    print(json.dumps({"chosen": chosen, "most_back": worst}))
