"""Whose a number is: told by values, written once, and read back as it was."""

import ast
import json
from pathlib import Path

import pytest

from remnant.flow.plan import Node, explained, plan
from remnant.methods import chain
from remnant.records import AuditSpec, Cell, CorpusSpec, RunSpec, SweepSpec, TransformSpec, Variant

SOURCE = Path(__file__).parent.parent / "src" / "remnant"
# "full" also says that all weights relearn, which is another word.
OTHERS = {"stages/attack.py", "training/relearning.py", "transforms/relearning.py"}
INT3 = TransformSpec(use="rtn", params={"bits": 3}, skip=("mlp",))


@pytest.mark.parametrize(
    ("variant", "form"),
    [
        (Variant(), "full"),
        (Variant(steps=("int4",)), "int4"),
        (Variant(steps=("prune20", "gptq4 calibration_samples=64")), "prune20+gptq4 calib"),
        (Variant(steps=("bnb-nf4",), packed=True), "bnb-nf4 packed"),
        (Variant(steps=("mine.py:a+b",)), "mine.py:a+b"),
    ],
)
def test_a_form_is_shown_by_its_steps(variant: Variant, form: str) -> None:
    assert variant.form.startswith(form)
    assert variant.in_full == (form == "full")


def test_forms_that_look_alike_are_other_variants() -> None:
    one, two = Variant(steps=("mine.py:a", "b")), Variant(steps=("mine.py:a+b",))
    assert one.form == two.form
    assert one != two
    assert len({one, two, Variant(steps=("mine.py:a", "b"))}) == 2


def test_a_number_is_read_back_as_whose_it_was_written() -> None:
    about = Variant(corpus="c", model="m", seed=3, steps=("int4",), packed=True)
    cell = Cell(**dict(about), metric="verbmem", value=1.0, low=None, high=None, n=2, status="ok")
    again = Cell.model_validate(json.loads(cell.model_dump_json()))
    assert again == cell
    assert (again.form, again.is_reference) == ("int4 packed", False)
    assert cell.behind("nf4").form == "nf4"
    assert about.behind().in_full


def test_the_names_of_a_chains_steps_say_what_was_set() -> None:
    assert chain(("bf16", INT3)).names == ("bf16", "int3 without mlp")
    assert chain("full").names == ()
    assert chain("prune20+full+int4").names == ("prune20", "int4")


def test_every_measured_model_of_a_plan_says_how_it_came_about() -> None:
    sweep = SweepSpec(
        name="s",
        seeds=(0, 1),
        corpus=(CorpusSpec(lab="news"),),
        unlearn=(RunSpec(method="ga", weights="bf16"),),
        quantizers=("int4", ("bf16", "nf4")),
        packed=("bnb-nf4",),
    )
    nodes = plan(sweep)
    measured = {n.label: n for n in nodes if n.stage == "measure"}
    own = {v for v in measured if not v.is_reference}
    forms = ((), ("int4",), ("bf16", "nf4"))
    about = Variant(corpus="news", model="ga bf16", method="ga", weights="bf16")
    at = [about.model_copy(update={"seed": seed}) for seed in (0, 1)]
    dense = {v.behind(*steps) for v in at for steps in forms}
    assert own == dense | {v.behind("bnb-nf4", packed=True) for v in at}
    (judged, _) = [n for n in nodes if n.stage == "audit"]
    assert isinstance(judged.spec, AuditSpec)
    assert set(judged.spec.members.values()) <= set(measured)
    inputs = {role: n for role, n in judged.inputs.items() if isinstance(n, Node)}
    kept = {n.label for n in explained(inputs)}
    assert {(v.steps, v.packed) for v in kept} == {(s, False) for s in forms if s}


def test_the_word_for_full_precision_stands_in_one_place() -> None:
    """Elsewhere a value is asked, so that nothing is told apart by how it is spelt."""
    paths = {p.relative_to(SOURCE).as_posix(): p for p in SOURCE.rglob("*.py")}
    found = set()
    for name, path in paths.items():
        nodes = ast.walk(ast.parse(path.read_text()))
        words = {n.value for n in nodes if isinstance(n, ast.Constant)}
        found |= {name} if words & {"full", "packed", " packed"} else set()
    assert found - OTHERS == {"records/variant.py"}
