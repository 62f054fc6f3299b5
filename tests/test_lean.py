"""What a process of Remnant's own does not import before it is needed."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from remnant import lean
from tests.conftest import BROUGHT

# A library of a second, and a module that takes a function and a class of it.
LIBRARY = """
loaded = True
def twice(value): return 2 * value
class Box:
    size = 3
"""
READER = "from slow_library.part import twice, Box\nBox.colour = 'red'\n"


def test_models_and_training_bring_no_library_that_they_do_not_use() -> None:
    assert {"transformers.generation.candidate_generator", "transformers.cache_utils"} <= BROUGHT
    heavy = {"hqq", "sklearn", "pandas", "torchao", "scipy", "torch._inductor.compile_fx"}
    assert heavy & BROUGHT == set()


def test_what_transformers_takes_is_still_the_real_function() -> None:
    matching = importlib.import_module("transformers.loss.loss_for_object_detection")
    assert isinstance(matching.linear_sum_assignment, lean.Later)
    cost = np.random.default_rng(0).random((5, 7))
    own, real = matching.linear_sum_assignment(cost), linear_sum_assignment(cost)
    assert np.array_equal(own, real)


def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> object:
    (tmp_path / "slow_library").mkdir()
    (tmp_path / "slow_library/__init__.py").write_text("")
    (tmp_path / "slow_library/part.py").write_text(LIBRARY)
    (tmp_path / "reading_it.py").write_text(READER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(lean.LATER, "reading_it", ("slow_library.part", names))
    for name in ("slow_library", "slow_library.part", "reading_it"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("reading_it")


def test_a_library_is_imported_when_something_of_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = vars(reader(tmp_path, monkeypatch, ("twice", "Box")))
    assert "slow_library.part" not in sys.modules
    assert found["twice"](4) == 8
    assert sys.modules["slow_library.part"].loaded
    assert not hasattr(sys.modules["slow_library.part"].Box, "colour")
    assert (found["Box"].size, found["Box"].colour) == (3, "red")
    assert isinstance(found["Box"](), sys.modules["slow_library.part"].Box)
    assert sys.modules["slow_library.part"].Box.colour == "red"


def test_a_version_that_takes_something_else_imports_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = vars(reader(tmp_path, monkeypatch, ("twice",)))
    assert found["twice"] is sys.modules["slow_library.part"].twice


def test_what_is_there_already_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader(tmp_path, monkeypatch, ("twice", "Box"))
    there = importlib.import_module("slow_library.part")
    monkeypatch.delitem(sys.modules, "reading_it")
    assert importlib.import_module("reading_it").twice is there.twice


def test_a_process_gets_one_finder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    lean.import_leanly()
    lean.import_leanly()
    assert sum(type(f).__module__ == lean.__name__ for f in sys.meta_path) == 1
