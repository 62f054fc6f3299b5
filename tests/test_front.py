"""The first screen of a report: a sentence, badges, places between never read and target."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from remnant.flow.store import Store
from remnant.records import Check, Evidence
from remnant.report import front
from remnant.report.charts import places
from remnant.report.front import Dot, Failed
from remnant.report.page import write
from remnant.report.table import Group, Results
from tests.test_report import results


def group() -> Group:
    (found,) = results().groups
    return found


def with_evidence(**more: object) -> Group:
    said = {
        "model": "ga_gdr", "steps": ("int4",), "kind": "samples", "test": "leak", "says": "tells",
        "left": (0.7, 0.6, 0.8), "said": "leak at 70%", "items": 20,
    }  # fmt: skip
    return dataclasses.replace(group(), evidence=[Evidence.model_validate(said | more)])


def judged(outcome: str) -> Results:
    base = results()
    verdicts = [v.model_copy(update={"outcome": outcome}) for v in group().verdicts]
    return dataclasses.replace(base, groups=[dataclasses.replace(group(), verdicts=verdicts)])


def test_the_sentence_counts_forms_and_names_where_text_came_back() -> None:
    said = front.headline(results())
    assert said.startswith("Not gone. Of 12 forms")
    assert "2 came back (under int4)" in said
    assert "10 gone" in said
    assert front.headline(judged("gone")).startswith("Gone in all 12 forms")
    assert "12 not measured" in front.headline(judged("not measured"))
    assert front.headline(dataclasses.replace(results(), groups=[])) == ""


def test_a_place_is_counted_from_the_never_read_model_to_the_target() -> None:
    own = group()
    found = [d for d in front.dots(own, "ga_gdr") if (d.form, d.test) == ("full", "VerMem")]
    cells = [own.cell(m, "full", "verbmem") for m in ("retrain", "ga_gdr", "target")]
    unread, left, target = (c.value for c in cells if c and c.value is not None)
    assert [d.left for d in found] == [pytest.approx((left - unread) / (target - unread))]
    told = front.dots(with_evidence(), "ga_gdr")
    assert Dot("int4", "samples", "leak", 0.7) in told
    assert front.dots(with_evidence(left=None), "ga_gdr") == front.dots(own, "ga_gdr")


def test_the_strongest_test_is_named_and_only_where_one_tells() -> None:
    assert front.strongest(with_evidence(), "ga_gdr") == "leak at 70% (samples, int4)"
    assert front.strongest(with_evidence(says="silent"), "ga_gdr") == ""
    assert front.strongest(with_evidence(), "another") == ""


def test_badges_begin_in_full_precision() -> None:
    found = front.badges(group(), "ga_gdr")
    assert found[0][:2] == ("full", "gone")
    assert ("int4", "came back") in [badge[:2] for badge in found]


@pytest.mark.parametrize("far", [-40.0, 0.5, 40.0])
def test_every_dot_is_drawn_and_says_what_it_is(far: float) -> None:
    drawn = places([Dot("int4", "samples", "a <b>", far), Dot("full", "plain asking", "c", 0.1)])
    titles = re.findall("<title>(.*?)</title>", drawn)
    assert titles == [f"int4, samples, a &lt;b&gt;: {far:.0%} of the target",
                      "full, plain asking, c: 10% of the target"]  # fmt: skip
    assert ("pushed away" in drawn) is (far < 0)


def test_failed_checks_of_one_kind_stand_together(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Check(name="texts", ok=False, said="cut").model_dump()
    good = Check(name="texts", ok=True, said="fine").model_dump()
    about = group().cells[-1]
    forms = [about.model_copy(update={"steps": steps}) for steps in ((), ("int4",), ("nf4",))]
    made = list(zip(forms, (bad, bad, good), strict=True))
    monkeypatch.setattr(front, "checks", lambda _: made)
    assert front.failed(results()) == [
        Failed("news", about.model, "texts", ("full", "int4"), "cut")
    ]


HOSTILE = (
    "</svg></style><script>document.title='pwned'</script>{{7*7}}",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{a}$ & $x",
    "",
)


def renamed(text: str) -> Results:
    """A run in which every name and sentence that a user sets is this text."""
    base, own = results(), with_evidence(test=text, said=text)

    def hostile(rows: list[Any]) -> list[Any]:
        return [row.model_copy(update=changes(row)) for row in rows]

    def changes(row: Any) -> dict[str, Any]:
        found: dict[str, Any] = {"corpus": text, "steps": (text,) if row.steps else ()}
        found |= {} if row.is_reference else {"model": text}
        return found | ({"reason": text} if hasattr(row, "reason") else {})

    changed = dataclasses.replace(
        own, corpus=text, cells=hostile(own.cells), recoveries=hostile(own.recoveries),
        verdicts=hostile(own.verdicts), evidence=hostile(own.evidence), surviving=[],
    )  # fmt: skip
    sweep = base.sweep.model_copy(update={"title": text, "name": text})
    return dataclasses.replace(base, groups=[changed], sweep=sweep, failures={text: text})


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_or_sentence_of_a_user_runs_or_breaks_the_page(text: str, tmp_path: Path) -> None:
    page = write(renamed(text), Store(tmp_path / "store").open(), tmp_path / "out")
    shown = page.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(shown)
    assert not tags.found & {"script", "img", "iframe"}
    assert not tags.handlers
    assert "&lt;/script&gt;49" not in shown
    ElementTree.fromstring(re.findall(r"<svg.*?</svg>", shown, re.DOTALL)[0])


class Tags(HTMLParser):
    """The elements of a page, and attributes that run something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
