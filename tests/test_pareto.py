"""The front and the choice, by hand; and that the choice is told on items it was not made by."""

import json
from pathlib import Path
from typing import Any

from remnant.flow.store import Store
from remnant.records import Manifest, Rule, SweepSpec, Variant
from remnant.report.pareto import Point, choose, front, study
from remnant.report.table import Group, Results


def point(model: str, knowledge: float, utility: float) -> Point:
    return Point("news", model, knowledge, knowledge, utility, 1)


def test_the_front_holds_what_nothing_beats() -> None:
    points = [
        point("a", 0.1, 0.5),
        point("b", 0.3, 0.9),
        point("c", 0.3, 0.8),
        point("d", 0.6, 0.95),
        point("e", 0.7, 0.95),
    ]
    assert front(points) == ["a", "b", "d"]
    assert front([point("a", 0.1, 0.5), point("twin", 0.1, 0.5)]) == ["a", "twin"]


def test_the_choice_knows_least_among_the_useful() -> None:
    points = [point("a", 0.1, 0.5), point("b", 0.3, 0.9), point("d", 0.6, 0.95)]
    assert choose(points, 0.8) == "b"
    assert choose(points, 0.4) == "a"
    assert choose(points, 0.99) is None


def manifest(name: str) -> Manifest:
    return Manifest(
        key=name, digest=name, stage="measure", stage_version=1, spec={}, inputs={}, methods={},
        files={}, summary={}, seconds=0.0,
        created="", command="", packages={}, commit=None, dirty=None, device="", peak_memory_mb=0.0,
    )  # fmt: skip


def test_a_study_chooses_on_one_half_and_tells_the_other(tmp_path: Path) -> None:
    store = Store(tmp_path).open()
    values: dict[tuple[str, str], dict[str, Any]] = {
        ("target", "full"): {"verbmem": (1.0, 1.0), "knowmem_retain": (1.0, 1.0)},
        ("target", "int4"): {"verbmem": (0.5, 0.5), "knowmem_retain": (0.8, 0.8)},
        ("keen", "full"): {"verbmem": (0.1, 0.4), "knowmem_retain": (0.9, 0.6)},
        ("keen", "int4"): {"verbmem": (0.1, 0.4), "knowmem_retain": (0.8, 0.8)},
        ("mild", "full"): {"verbmem": (0.3, 0.3), "knowmem_retain": (1.0, 1.0)},
        ("mild", "int4"): {"verbmem": (0.4, 0.2), "knowmem_retain": (0.8, 0.8)},
    }
    manifests, labels = {}, {}
    for (model, form), metrics in values.items():
        name = f"measure-{model}-{form}"
        rows = [
            {
                "metric": m,
                "split": "",
                "id": f"{half}-{i}",
                "half": half,
                "value": 0.9 * (v + (i - 0.5) * 0.02),
                "status": "ok",
            }
            for m, pair in metrics.items()
            for half, v in zip(("dev", "test"), pair, strict=True)
            for i in range(2)
        ]
        folder = tmp_path / "objects" / name
        folder.mkdir()
        (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        manifests[name] = manifest(name)
        labels[name] = Variant(
            corpus="news",
            model=model,
            seed=None if model == "target" else 0,
            steps=() if form == "full" else (form,),
        )
    sweep = SweepSpec(name="made", corpus=(), unlearn=(), rule=Rule(utility_floor=0.8), study=True)
    results = Results(sweep, [Group("news", 0, [], [], [], None)], manifests, labels, {})
    (found,) = study(results, store)
    assert found.chosen == "keen"
    dev = {p.model: p for p in found.dev}
    assert [
        round(x, 6) for x in (dev["keen"].knowledge, dev["keen"].in_full, dev["keen"].utility)
    ] == [0.2, 0.1, 0.9]
    assert [
        round(x, 6) for x in (dev["mild"].knowledge, dev["mild"].in_full, dev["mild"].utility)
    ] == [0.8, 0.3, 1.0]
    test = found.on_test("keen")
    assert [round(x, 6) for x in (test.knowledge, test.in_full, test.utility)] == [0.8, 0.4, 0.6]
