"""Tables and charts -> one self-contained HTML page and summary.json."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from remnant.ancestry.member import Member
from remnant.corpus import METRICS, of_role
from remnant.durable import write_text
from remnant.flow.store import Store, disk_errors
from remnant.methods import writes
from remnant.parsing import lines_of
from remnant.report import account, front, table
from remnant.report.charts import forget_utility_plane, knowledge_by_form, pareto_plane, places
from remnant.report.descent import descent
from remnant.report.league import league
from remnant.report.notebook import environment
from remnant.report.pareto import study
from remnant.report.pooled import over_seeds
from remnant.report.table import Group, Results
from remnant.report.tree import drawing
from remnant.secrecy import redacted

WORST = 3


def write(results: Results, store: Store, out: Path, *, examples: bool = False) -> Path:
    """Write report.html and summary.json into a folder.

    Args:
        results: what is to be shown.
        store: where the generated texts lie.
        out: the folder; made if missing.
        examples: put the worst examples (forget text!) into the page, hidden until clicked.

    Returns:
        The path of the page.
    """
    with disk_errors(out, "Choose another folder with --out."):
        out.mkdir(parents=True, exist_ok=True)
        summary = json.dumps(table.summary(results), indent=1, allow_nan=False) + "\n"
        page = out / "report.html"
        write_text(page, rendered(results, store, _examples(results, store) if examples else None))
        write_text(out / "summary.json", summary)  # last, since a gate reads it
    return page


def rendered(results: Results, store: Store, examples: list[dict[str, Any]] | None = None) -> str:
    """The page as text; ``examples``: forget text, left out unless it is given."""
    studies = study(results, store) if results.sweep.study else []
    templates = environment()
    templates.filters["number"] = table.number
    return templates.get_template("page.html.j2").render(
        title=results.sweep.title or results.sweep.name,
        headline=front.headline(results),
        standings=league(results.groups),
        failed=front.failed(results),
        story=table.story(results),
        groups=[_group(g) for g in (*over_seeds(results.groups), *results.groups)],
        signs=table.signs(results),
        checks=table.checks(results),
        rule=results.sweep.rule,
        failures=results.failures,
        settings=_settings(results),
        runs=_runs(results),
        packages=_packages(results),
        examples=examples,
        studies=[(found, pareto_plane(found)) for found in studies],
        metrics=METRICS,
        models=drawing(descent(results, store), descended),
        descended=descended,
        **_account(results, store),
    )


def descended(model: Member) -> str:
    """How a model was made, and what was found of it."""
    return ", ".join(filter(None, (model.step, model.verdict)))


def _account(results: Results, store: Store) -> dict[str, Any]:
    """The part for who reads no code."""
    return {
        "texts": account.texts(results, store),
        "audited": account.audited(results, store),
        "kinds": account.kinds(results.groups),
        "checked": account.checked(results),
        "words": account.words(results),
        "not_claimed": account.not_claimed(results),
    }


def _group(group: Group) -> dict[str, Any]:
    return {
        "group": group,
        "boards": [_board(group, model) for model in group.unlearned],
        "verdicts": front.judged(group),
        "tone": partial(table.tone, group),
        "lacking": partial(_lacking, group),
        "charts": [(METRICS[m].title, knowledge_by_form(group, m)) for m in _numbered(group)],
        "plane": forget_utility_plane(group),
        "expected": table.expected,
    }


def _numbered(group: Group) -> list[str]:
    """The headline numbers that any model has; of the others a chart would be empty."""
    there = {c.metric for c in group.cells if c.value is not None}
    return [metric for metric in group.metrics if metric in there]


def _lacking(group: Group, form: str, metric: str) -> str:
    """Why a share of the target's number is none, where the table has that number."""
    return group.lacking(form, metric) if group.cell("target", form, metric) else ""


def _board(group: Group, model: str) -> dict[str, Any]:
    """What is seen first of one model: its verdicts, its picture, and what tells most."""
    found = front.dots(group, model)
    return {
        "model": model,
        "badges": front.badges(group, model),
        "picture": places(found) if found else "",
        "strongest": front.strongest(group, model),
    }


def _settings(results: Results) -> list[tuple[str, str]]:
    """The sweep as written, one line per part, only what differs from the defaults."""
    written = redacted(results.sweep.model_dump(mode="json", exclude_defaults=True))
    return [(key, json.dumps(value, ensure_ascii=False)) for key, value in written.items()]


def _runs(results: Results) -> list[dict[str, Any]]:
    """One line per artefact: what it is, how long it took, and what its stage has to say."""
    rows = []
    for name, m in results.manifests.items():
        about = results.labels[name]
        said = {
            k: m.summary[k]
            for k in ("steps", "stopped", "chosen", "loss", "share_quantized", "rule")
            if k in m.summary
        }
        rows.append(
            {
                "name": name,
                "stage": m.stage,
                "what": about.words,
                "seconds": m.seconds,
                "seed": about.seed,
                "said": json.dumps(said),
            }
        )
    return rows


def _packages(results: Results) -> dict[str, str]:
    found = {k: v for m in results.manifests.values() for k, v in m.packages.items()}
    last = next(reversed(results.manifests.values()), None)
    return found | (
        {
            "device": last.device,
            "commit": f"{last.commit or 'unknown'}{' with changes' if last.dirty else ''}",
        }
        if last
        else {}
    )


def _examples(results: Results, store: Store) -> list[dict[str, Any]]:
    """For every unlearned model the items on which most is left, by ROUGE-L of the rows."""
    found = []
    for name, m in results.manifests.items():
        about = results.labels[name]
        if m.stage != "measure" or about.is_reference:
            continue
        rows = [
            json.loads(line)
            for line in lines_of((store.path(name) / "rows.jsonl").read_text(encoding="utf-8"))
        ]
        plain = [m for m in of_role("knowledge") if writes(m) and not METRICS[m].beside]
        worst = sorted(
            (r for r in rows if r["metric"] in plain and r["value"]),
            key=lambda r: -r["value"],
        )[:WORST]
        texts = {}
        for line in lines_of((store.path(name) / "texts.jsonl").read_text(encoding="utf-8")):
            record = json.loads(line)
            texts[record["metric"], record["id"]] = record
        shown = [{"value": r["value"], **texts[METRICS[r["metric"]].on[0], r["id"]]} for r in worst]
        if shown:
            found.append({"what": about.words, "items": shown})
    return found
