"""Charts as inline SVG, drawn by matplotlib without a screen."""

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from remnant.corpus import METRICS, of_role, short_title
from remnant.functional.survival import Survival
from remnant.metrics import SHARE
from remnant.records import FULL
from remnant.report.front import FARTHEST, PLAIN, Dot, drawn
from remnant.report.pareto import Study
from remnant.report.table import Group, number

COLOURS = (
    "#3b3b3b",
    "#8a8a8a",
    "#0b6fb8",
    "#c8501e",
    "#2f8f5b",
    "#8a4fbf",
    "#b8860b",
    "#c2185b",
    "#00838f",
    "#5d4037",
)
# Names are shown as they are: a dollar sign begins no formula.
STYLE: Any = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False, "text.usetex": False,
}  # fmt: skip
# Inches of a chart: a phone of 400 px shows it at five sixths of its size, and a wide screen two
# side by side.
WIDE = 4.6
# So many letters of a legend fit into the width of a chart, of which a mark takes some.
LETTERS, MARK = 64, 6
# In front of what is said of a mark to whoever points at it; it stands in the place of a name, in
# which matplotlib escapes what a page must not run.
SAID = "said: "


def _drawing(inches: tuple[float, float]) -> tuple[Figure, Axes]:
    """An empty drawing of its own, without a window and without matplotlib's list of figures."""
    figure = Figure(figsize=inches)
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _svg(figure: Figure, title: str) -> str:
    """The figure as an <svg> element that scales with its container."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # Letters that the font has not: the page's own font has them.
        warnings.simplefilter("ignore")
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(rf'<g id="{SAID}([^"]*)">', r"<g><title>\1</title>", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def _label(name: str) -> str:
    """A name as legends show it: one with an underscore in front would be left out."""
    return f" {name}" if name.startswith("_") else name


def colours(models: Sequence[str]) -> dict[str, str]:
    """One colour per model, the same in all charts."""
    return {model: COLOURS[i % len(COLOURS)] for i, model in enumerate(models)}


def knowledge_by_form(group: Group, metric: str) -> str:
    """Value and interval of one metric for every model, full precision first and then each form."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _drawing((WIDE, 3.2))
        palette = colours(group.models)
        width = 0.7 / max(1, len(group.models))
        for i, model in enumerate(group.models):
            _points(
                axes,
                group,
                model,
                metric,
                (i - (len(group.models) - 1) / 2) * width,
                palette[model],
            )
        axes.set_xticks(range(len(group.forms)), group.forms, rotation=40, ha="right")
        axes.set_ylabel(metric)
        axes.grid(axis="y", alpha=0.25)
        if METRICS[metric].span == SHARE:
            axes.set_ylim(-3, 103)
        if axes.get_legend_handles_labels()[0]:  # nothing may have been measured
            _legend(axes)
        return _svg(figure, METRICS[metric].title)


def _legend(axes: Axes) -> None:
    """The names of marks above a chart, as many beside each other as fit by their letters."""
    names = axes.get_legend_handles_labels()[1]
    fits = int(LETTERS / (max(map(len, names)) + MARK))
    axes.legend(
        ncols=min(max(1, fits), 3), fontsize=8, frameon=False, loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
    )  # fmt: skip


def _points(axes: Axes, group: Group, model: str, metric: str, shift: float, colour: str) -> None:
    found = [
        (i, c)
        for i, q in enumerate(group.forms)
        if (c := group.cell(model, q, metric)) and c.value is not None
    ]
    for place, cell in found:
        value = cell.value or 0.0
        low, high = (value if bound is None else bound for bound in (cell.low, cell.high))
        drawn_so = axes.errorbar(
            [place + shift], [value], yerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
            fmt="o", ms=4, lw=1, capsize=2, color=colour,
            label=_label(model) if place == found[0][0] else None,
        )  # fmt: skip
        drawn_so[0].set_gid(f"{SAID}{model}, {cell.form}: {number(cell)}")


def places(dots: Sequence[Dot]) -> str:
    """Every test as a dot on the way from never read (0) to the target (1), a line per form; what a
    dot is stands behind it, for whoever points at it.
    """
    forms = list(dict.fromkeys(d.form for d in dots))
    kinds = sorted({d.kind for d in dots}, key=lambda kind: (kind != PLAIN, kind))
    palette = dict(zip(kinds, COLOURS[2:], strict=False))
    with matplotlib.rc_context(STYLE):
        figure, axes = _drawing((WIDE, 1.3 + 0.34 * len(forms)))
        for dot in dots:
            # Kinds lie beside each other within the line of their form.
            shift = (kinds.index(dot.kind) - (len(kinds) - 1) / 2) * 0.7 / max(1, len(kinds))
            axes.scatter(
                drawn(dot.left),
                forms.index(dot.form) + shift,
                s=26,
                color=palette.get(dot.kind, COLOURS[0]),
                gid=SAID + dot.said,
            )
        for kind in kinds:
            axes.scatter([], [], s=26, color=palette.get(kind, COLOURS[0]), label=kind)
        axes.axvline(0, color="#2f8f5b", lw=1)
        axes.axvline(1, color="#c8501e", lw=1)
        pushed = min(drawn(d.left) for d in dots) < -0.5
        axes.set_xlim(-FARTHEST - 0.05 if pushed else -0.5, FARTHEST + 0.05)
        marks = {-1: "pushed away", 0: "never read", 1: "target"}
        axes.set_xticks(*zip(*list(marks.items())[not pushed :], strict=True))
        axes.set_yticks(range(len(forms)), forms)
        axes.set_ylim(len(forms) - 0.5, -0.5)
        axes.grid(axis="y", alpha=0.25)
        _legend(axes)
        return _svg(figure, "Every test between never read and target")


def forget_utility_plane(group: Group) -> str:
    """Knowledge left (left is forgotten) against utility (up is useful), a mark per model and
    form, lines from full precision; empty where the target itself shows nothing of either.
    """
    told = [m for m in group.metrics if not group.lacking(FULL, m)]
    utility = next((m for m in told if m in of_role("utility")), None)
    known = [m for m in told if m in of_role("knowledge")]
    if utility is None or not known:
        return ""
    with matplotlib.rc_context(STYLE):
        figure, axes = _drawing((WIDE, 3.6))
        for model, colour in colours(group.models).items():
            _walk(axes, group, model, (*known, utility), colour)
        names = " and ".join(map(short_title, known))
        axes.set_xlabel(f"knowledge of forget text ({'mean of ' * (len(known) > 1)}{names})")
        axes.set_ylabel(utility)
        axes.set_xlim(-3, 103)
        axes.set_ylim(-3, 108)
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:  # nothing may have been measured
            _legend(axes)
        return _svg(figure, "Forgetting against utility")


def _walk(axes: Axes, group: Group, model: str, metrics: Sequence[str], colour: str) -> None:
    """A line from full precision to every form; ``metrics``: those of knowledge, then utility."""
    points: dict[str, tuple[float, float]] = {}
    for form in group.forms:
        cells = [group.cell(model, form, m) for m in metrics]
        values = [c.value for c in cells if c is not None and c.value is not None]
        if len(values) == len(cells):
            points[form] = (sum(values[:-1]) / (len(values) - 1), values[-1])
    if FULL not in points:
        return
    start = points[FULL]
    for form, point in points.items():
        axes.plot([start[0], point[0]], [start[1], point[1]], color=colour, lw=0.8, alpha=0.5)
        axes.plot(
            *point,
            marker="s" if form == FULL else "o",
            ms=7 if form == FULL else 4,
            color=colour,
            gid=f"{SAID}{model}, {form}: knowledge {point[0]:.1f}, utility {point[1]:.1f}",
        )
    axes.plot([], [], "s", color=colour, label=_label(model))


def _gains(found: Mapping[str, Survival], grids: Sequence[str]) -> list[float]:
    """The gain of one weight under each grid; NaN where there is none."""
    gains = [found[name].gain if name in found else None for name in grids]
    return [math.nan if gain is None else gain for gain in gains]


def layer_heat_map(layers: Mapping[str, Mapping[str, Survival]]) -> str:
    """The gain of every weight (rows) under every grid (columns): dark is erased, light
    survives.
    """
    grids = list(dict.fromkeys(name for found in layers.values() for name in found))
    gains = [_gains(found, grids) for found in layers.values()]
    labels = [
        re.sub(r"^(model|transformer)\.", "", name).removesuffix(".weight") for name in layers
    ]
    every = max(1, len(labels) // 40)
    with matplotlib.rc_context(STYLE):
        figure, axes = _drawing((WIDE, 1.4 + 0.16 * min(len(labels), 60)))
        colours = matplotlib.colormaps["magma"].with_extremes(bad="#bbbbbb")
        image = axes.imshow(
            gains, vmin=0, vmax=1, cmap=colours, aspect="auto", interpolation="nearest"
        )
        axes.set_xticks(range(len(grids)), grids, rotation=40, ha="right")
        axes.set_yticks(range(0, len(labels), every), labels[::every], fontsize=8)
        figure.colorbar(image, label="gain", location="top", shrink=0.6, aspect=30, pad=0.02)
        return _svg(figure, "Gain per layer and grid")


def pareto_plane(found: Study) -> str:
    """Knowledge left against utility left on the development half: the front as a line, the chosen
    setting ringed.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _drawing((WIDE, 3.6))
        at = {p.model: p for p in found.dev}
        line = [at[name] for name in found.front]
        axes.plot(
            [p.knowledge for p in line],
            [p.utility for p in line],
            color="#0b6fb8",
            marker="o",
            markersize=5,
            label="front",
        )
        axes.scatter([], [], s=22, color="#8a8a8a", label="settings")
        for p in found.dev:
            axes.scatter(
                [p.knowledge],
                [p.utility],
                s=22,
                color="#0b6fb8" if p.model in found.front else "#8a8a8a",
                gid=f"{SAID}{p.model}: knowledge {p.knowledge:.2f}, utility {p.utility:.2f}",
                zorder=3,
            )
        if found.chosen:
            best = at[found.chosen]
            axes.scatter(
                [best.knowledge],
                [best.utility],
                s=130,
                facecolors="none",
                edgecolors="#c8501e",
                linewidths=2,
                label="chosen",
            )
        axes.set_xlabel("knowledge left, share of the target's, worst grid")
        axes.set_ylabel("utility left, share")
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:  # nothing may have been measured
            axes.legend(frameon=False, fontsize=8)
        return _svg(figure, "Knowledge against utility")


def recovery_map(groups: Sequence[Group], metric: str) -> str:
    """How much is back of what every model (a row) had forgotten, in every form (a column), a panel
    for each group: 0 light, 1 dark; a dash where there is no share.
    """
    with matplotlib.rc_context(STYLE):
        rows = sum(len(group.unlearned) + 2 for group in groups)
        figure = Figure(figsize=(9.0, 0.8 + 0.3 * rows))
        FigureCanvasSVG(figure)
        heights = [len(group.unlearned) for group in groups]
        panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)
        for group, axes in zip(groups, panels[:, 0], strict=True):
            _recovered(axes, group, metric)
        figure.tight_layout()
        return _svg(figure, f"What is back of {METRICS[metric].title}")


def _recovered(axes: Axes, group: Group, metric: str) -> None:
    """One panel of the map, full precision left out."""
    forms = [form for form in group.forms if form != FULL]
    found = {
        (r.model, r.form): r.recovery
        for r in group.recoveries
        if r.metric == metric and r.recovery is not None
    }
    models = group.unlearned
    shares = np.full((len(models), len(forms)), math.nan)
    for model, form in found.keys() & set(product(models, forms)):
        shares[models.index(model), forms.index(form)] = found[model, form][0]
    tones = matplotlib.colormaps["Oranges"].with_extremes(bad="#eeeeee")
    axes.imshow(shares, vmin=0, vmax=1.4, cmap=tones, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(forms)), forms, rotation=30, ha="right")
    axes.set_yticks(range(len(models)), models)
    axes.set_title(group.title, loc="left")
    axes.spines[:].set_visible(False)
    for (row, model), (column, form) in product(enumerate(models), enumerate(forms)):
        share = found.get((model, form))
        text = "-" if share is None else f"{share[0]:.2f}"
        said = "no share" if share is None else "{:.2f} [{:.2f}, {:.2f}]".format(*share)
        shade = "white" if share is not None and share[0] > 0.8 else "black"
        axes.text(
            column, row, text, ha="center", va="center", fontsize=8, color=shade,
            gid=f"{SAID}{model}, {form}: {said}",
        )  # fmt: skip
