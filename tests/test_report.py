"""The page: complete, self-contained, honest about what is missing, and right in a real browser at
two widths."""

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from remnant.errors import UserError
from remnant.flow.store import Store
from remnant.functional.survival import Survival
from remnant.records import (
    Cell,
    CorpusSpec,
    Evidence,
    Manifest,
    Outcome,
    Piece,
    Recovery,
    Rule,
    RunSpec,
    SweepSpec,
    Variant,
    Verdict,
)
from remnant.report import charts, page, table
from remnant.report.table import Group, Results, Surviving

FORMS = ["full", "int8", "int4", "nf4", "gptq4", "awq4"]
VALUES = {
    "target": {"verbmem": 97.0, "knowmem_forget": 95.0, "knowmem_retain": 96.0, "privleak": -100.0},
    "retrain": {"verbmem": 9.0, "knowmem_forget": 6.0, "knowmem_retain": 97.0, "privleak": 0.0},
    "ga_gdr": {"verbmem": 12.0, "knowmem_forget": 10.0, "knowmem_retain": 85.0, "privleak": -5.0},
    "npo_klr with a long name": {
        "verbmem": 20.0,
        "knowmem_forget": 15.0,
        "knowmem_retain": 90.0,
        "privleak": -60.0,
    },
}


def results() -> Results:
    cells, recoveries, verdicts = [], [], []
    for model, metrics in VALUES.items():
        for form in FORMS:
            steps = () if form == "full" else (form,)
            about = Variant(corpus="news", model=model, weights="fp32", seed=0, steps=steps)
            for metric, value in metrics.items():
                status = "ok"
                found: float | None = value
                if model == "ga_gdr" and form == "awq4" and metric == "verbmem":
                    found, status = None, "no scorable item"
                low, high = (found - 4, found + 4) if found is not None else (None, None)
                cells.append(
                    Cell(
                        **dict(about),
                        metric=metric,
                        value=found,
                        low=low,
                        high=high,
                        n=20,
                        status=status,
                    )
                )
            if model not in ("target", "retrain"):
                outcome: Outcome = "came back" if form == "int4" else "gone"
                verdicts.append(
                    Verdict(
                        **dict(about),
                        outcome=outcome,
                        reason="because <b>it</b> did",
                    )
                )
                share = (0.9, 0.8, 1.0) if form == "int4" else (0.05, 0.0, 0.1)
                recoveries.append(
                    Recovery(
                        **dict(about),
                        metric="verbmem",
                        retained=share,
                        retained_of_full_target=share,
                        recovery=share,
                        recovery_over_retrain=None,
                        status="ok",
                    )
                )
    sweep = SweepSpec(
        name="made",
        title="A <made> up run",
        corpus=(CorpusSpec(lab="news"),),
        unlearn=(RunSpec(method="ga_gdr"),),
        rule=Rule(),
    )
    erased = Surviving(
        Variant(corpus="news", model="ga_gdr", seed=0, steps=("int4",)),
        Survival(0.05, 0.2, None, 0.9, 1.0, 0.1, 0.2),
    )
    group = Group("news", 0, cells, recoveries, verdicts, 0.5, [erased])
    return Results(sweep, [group], {}, {}, {"train-0123": "it failed"})


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return page.write(results(), Store(tmp_path / "store"), tmp_path / "out")


def test_the_page_is_self_contained_and_escapes_what_it_shows(written: Path) -> None:
    html = written.read_text()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:|#)""", html)
    assert "url(http" not in html
    assert "A &lt;made&gt; up run" in html
    assert "<b>it</b>" not in html
    assert html.count("<figure") == 7
    assert "no scorable item" in html
    assert "it failed" in html
    assert "remnant report NAME --examples" in html


def test_a_report_on_a_full_disk_leaves_the_one_before(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in written.parent.iterdir()}

    def full(place: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    other = results()
    sweep = other.sweep.model_copy(update={"title": "Another one"})
    other = dataclasses.replace(other, sweep=sweep)
    with pytest.raises(UserError, match="disk is full"):
        page.write(other, Store(tmp_path / "store"), written.parent)
    assert {p.name: p.read_bytes() for p in written.parent.iterdir()} == before


def test_what_is_not_made_yet_stands_in_the_summary_beside_what_failed(tmp_path: Path) -> None:
    store, lost = Store(tmp_path / "store").open(), Variant(corpus="news", model="npo", seed=1)
    pieces = [
        Piece(name="measure-0", stage="measure", label=lost),
        Piece(name="explain-0", stage="explain", label=lost),
        Piece(name="unlearn-0", stage="unlearn", label=lost),
        Piece(name="audit-0", stage="audit"),
    ]
    found = table.collect(store, results().sweep, pieces, {"unlearn-0": "it failed"})
    failed: Any = table.summary(found)["failed"]
    told = [(row["seed"], row["status"]) for row in failed]
    assert told == [(1, "failed: it failed"), (1, "not made"), (None, "not made")]


def test_whoever_points_at_a_mark_is_told_its_value() -> None:
    (group,) = results().groups
    for drawn in (charts.knowledge_by_form(group, "verbmem"), charts.forget_utility_plane(group)):
        root = ElementTree.fromstring(drawn)
        titles = [e.text for e in root.iter("{http://www.w3.org/2000/svg}title")]
        cells = [c for c in group.cells if c.metric == "verbmem" and c.value is not None]
        assert len(titles) == len(cells)
        told = {str(title).partition(": ")[0] for title in titles}
        assert told == {f"{c.model}, {c.form}" for c in cells}
        assert charts.SAID not in drawn
    shown = charts.knowledge_by_form(group, "verbmem")
    assert "<title>ga_gdr, int8: 12.0 [8.0, 16.0]</title>" in shown


def test_the_map_of_what_is_back_has_a_field_for_every_model_and_form() -> None:
    (group,) = results().groups
    own = [r for r in group.recoveries if r.form != "int8"]
    drawn = charts.recovery_map([dataclasses.replace(group, recoveries=own)], "verbmem")
    root = ElementTree.fromstring(drawn)
    told = {str(e.text) for e in root.iter("{http://www.w3.org/2000/svg}title")}
    fields = {f"{m}, {f}" for m in group.unlearned for f in group.forms if f != "full"}
    assert {title.partition(": ")[0] for title in told} == fields
    assert {f"{m}, int4: 0.90 [0.80, 1.00]" for m in group.unlearned} <= told
    assert {f"{m}, int8: no share" for m in group.unlearned} <= told


def test_tests_that_were_left_out_are_named_once() -> None:
    (group,) = results().groups
    about = {"model": "ga_gdr", "kind": "relearning", "left": None, "said": "x"}
    left = [
        Evidence.model_validate(about | {"test": test, "says": says})
        for test, says in (("a", "not run"), ("b", "not run"), ("a", "not run"), ("c", "silent"))
    ]
    told = table.not_run([dataclasses.replace(group, evidence=left)])
    assert told == ["Not run, as the verdict was decided without them: a, b."]
    assert table.not_run([group]) == []


def test_the_story_says_what_came_back() -> None:
    told = " ".join(table.story(results()))
    assert "97 % overlap" in told
    assert "came back under int4" in told
    assert "gone under int8, nf4, gptq4, awq4" in told


def test_the_story_names_seeds_and_what_came_back_to_a_model_that_was_no_good_before() -> None:
    base = results()
    (group,) = base.groups
    spoilt = [
        v.model_copy(update={"outcome": "broken"}) if (v.model, v.form) == ("ga_gdr", "full") else v
        for v in group.verdicts
    ]
    other = dataclasses.replace(group, seed=1, verdicts=spoilt)
    told = table.story(dataclasses.replace(base, groups=[group, other]))
    assert (
        sum("On news, seed 0, the target" in line for line in told)
        == sum("On news, seed 1, the target" in line for line in told)
        == 1
    )
    assert [
        line
        for line in told
        if line.startswith("ga_gdr: broken in full precision") and "; came back under int4." in line
    ]
    assert not any("seed" in line for line in table.story(base))


def test_colours_follow_the_direction() -> None:
    group = results().groups[0]
    assert table.tone(group, group.cell("ga_gdr", "full", "verbmem")) == "good"
    assert table.tone(group, group.cell("ga_gdr", "full", "knowmem_retain")) == "good"
    assert table.tone(group, group.cell("npo_klr with a long name", "full", "privleak")) == "bad"
    assert table.tone(group, group.cell("target", "full", "verbmem")) == "plain"
    bad = group.cell("ga_gdr", "full", "verbmem")
    assert bad is not None
    assert table.tone(group, bad.model_copy(update={"value": 90.0})) == "bad"
    assert (
        table.tone(group, bad.model_copy(update={"metric": "knowmem_retain", "value": 20.0}))
        == "bad"
    )


def test_the_page_says_why_and_what_was_foretold(written: Path) -> None:
    html = written.read_text()
    assert "what each grid leaves of the update" in html
    assert "From its weights alone: expected to come back under int4." in html
    assert re.search(r'class="n bad" data-h="gain">0.05</td>', html)


def test_the_summary_keeps_its_schema(written: Path) -> None:
    summary = json.loads(written.with_name("summary.json").read_text())
    schema = json.loads((Path(__file__).parent.parent / "docs" / "summary.schema.json").read_text())
    jsonschema.validate(summary, schema)
    assert len(summary["cells"]) == 4 * 6 * 4
    lost = [c for c in summary["cells"] if c["value"] is None]
    assert [(c["model"], c["form"], c["metric"], c["status"]) for c in lost] == [
        ("ga_gdr", "awq4", "verbmem", "no scorable item")
    ]


def test_the_manifest_schema_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="extra"):
        Manifest.model_validate({"unknown": 1})


def test_signs_of_collapse_are_flagged_against_the_target() -> None:
    def measured(**found: float) -> Manifest:
        circumstances: dict[str, Any] = {
            "created": "",
            "command": "",
            "packages": {},
            "commit": None,
            "dirty": None,
            "device": "",
            "peak_memory_mb": 0.0,
        }
        return Manifest(
            key="", digest="", stage="measure", stage_version=1, spec={}, inputs={}, methods={},
            files={}, seconds=0.0,
            summary={"signs": {"empty": 0.0, "repetition": 0.0, "entropy": 4.0,
            "unknown": 0.0} | found}, **circumstances,
        )  # fmt: skip

    made = {
        "t": measured(),
        "good": measured(entropy=3.5),
        "loop": measured(repetition=0.9, entropy=0.5),
        "noise": measured(unknown=0.8),
    }
    labels = {n: Variant(corpus="news", model="target" if n == "t" else n) for n in made}
    base = results()
    found = {
        r.variant.model: r.flags
        for r in table.signs(Results(base.sweep, base.groups, made, labels, {}))
    }
    assert found == {
        "target": [],
        "good": [],
        "loop": ["repetition", "entropy"],
        "noise": ["unknown"],
    }
    assert (
        "loop full (repetition, entropy)"
        in table.story(Results(base.sweep, base.groups, made, labels, {}))[-1]
    )
    labels["noise"] = labels["loop"]
    assert (
        "loop in 2 of 2 measurements (repetition, entropy, unknown)"
        in table.story(Results(base.sweep, base.groups, made, labels, {}))[-1]
    )


MORE_FORMS = ("gguf-q4_k_m", "prune20+int4", "ct-nvfp4a16", "gptq4-g128", "relearn64-forget10")


def crowded() -> Results:
    """The run with all that makes a page wide: many forms, further numbers, evidence in sentences,
    and reasons beside shares."""
    base = results()
    (group,) = base.groups
    why = "the gap of 3.0 points is below 5: nothing was forgotten that could come back"

    def behind(rows: list[Any]) -> list[Any]:
        own = [row for row in rows if row.form == "int4"]
        return [r.model_copy(update={"steps": (form,)}) for form in MORE_FORMS for r in own]

    told = {
        "model": "npo_klr with a long name", "kind": "probability per token", "says": "tells",
        "test": "extraction_strength", "left": (0.7, 0.6, 0.8), "items": 20,
        "said": "extraction_strength at 70% of the way from unread to target [60%, 80%]",
    }  # fmt: skip
    cells = [*group.cells, *behind(group.cells)]
    further = [
        c.model_copy(update={"metric": name})
        for name in ("mia_min_plus_plus", "tofu_forget_quality")
        for c in cells
        if c.metric == "verbmem"
    ]
    recoveries = [r.model_copy(update={"status": why}) for r in group.recoveries]
    changed = dataclasses.replace(
        group, cells=cells + further, recoveries=recoveries + behind(recoveries),
        verdicts=group.verdicts + behind(group.verdicts),
        evidence=[Evidence.model_validate(told)],
    )  # fmt: skip
    return dataclasses.replace(base, groups=[changed])


PROBE = """
<script>
addEventListener('load', () => {
  document.querySelectorAll('details').forEach(e => { e.open = true; });
  const root = document.documentElement, all = q => [...document.querySelectorAll(q)];
  const box = e => e.getBoundingClientRect(), drawn = all('figure.chart svg');
  const marks = drawn.map(s => s.querySelectorAll('path, use').length);
  const free = e => !e.closest('.scroll') && !e.closest('svg');
  const wide = all('body *').filter(e => free(e) && box(e).right > root.clientWidth + 1);
  const hidden = e => e.scrollWidth > e.clientWidth + 1;
  const small = drawn.filter(s => box(s).height < 60).length;
  // Rows of sentences and of badges are as tall as these.
  const said = e => e.closest('.verdicts, .league, .plain');
  const tall = all('th').filter(e => box(e).height > 120 && !said(e)).length;
  document.title = JSON.stringify({
    scroll: root.scrollWidth, client: root.clientWidth, marks, small, tall,
    cut: all('.scroll').filter(hidden).map(e => e.innerText.slice(0, 60)),
    wide: wide.map(e => e.tagName), matrices: all('table.matrix').length,
    rows: all('table.matrix tr').length});
});
</script>
"""


@pytest.mark.skipif(
    shutil.which("chromium") is None, reason="Chromium is not installed (apt-get install chromium)"
)
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_in_a_real_browser(width: int, tmp_path: Path) -> None:
    written = page.write(crowded(), Store(tmp_path / "store"), tmp_path / "out")
    probed = tmp_path / "probed.html"
    # Chromium's window has a least width; a frame of the wanted width gives the page a viewport of
    # exactly that.
    inner = written.read_text().replace("</head>", PROBE + "</head>")
    (tmp_path / "inner.html").write_text(inner)
    probed.write_text(
        f"<iframe id=f src=inner.html style='width:{width}px;height:4000px;border:0'></iframe>"
        "<script>addEventListener('load', () => setTimeout(() => { document.title = 'x';"
        "document.body.append(document.getElementById('f').contentDocument.title) }, 300))</script>"
    )
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    )
    command = [
        "chromium", *flags.split(), "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
        "--virtual-time-budget=5000", "--window-size=1500,1200", "--dump-dom", probed.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r"\{\"scroll.*?\}", done.stdout)
    assert found, done.stdout[-500:]
    said = json.loads(found.group())
    assert said["client"] in (width, width - 15)  # less a scroll bar
    assert said["scroll"] <= said["client"]
    assert said["wide"] == []
    assert said["cut"] == []
    assert said["matrices"] == 4
    assert said["rows"] == 4 * 5
    assert len(said["marks"]) == 7
    assert min(said["marks"]) > 30
    assert said["small"] == 0
    assert said["tall"] == 0
