"""The architecture as a test: who may import whom, what stays free of torch, what every public
function says of itself, how dense the text is."""

import ast
import importlib
import re
import runpy
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import chain, groupby
from pathlib import Path

import pytest

from remnant.catalog import LOSSES
from remnant.corpus import COMBINED, METRICS
from remnant.formats.table import FORMATS

SOURCE = Path(__file__).parent.parent / "src" / "remnant"
# A part may import the parts before it; parts in one row may not import each other unless they are
# the same.
RANKS = {
    "errors": 0,
    "installed": 0,
    "levels": 0,
    "names": 0,
    "secrecy": 0,
    "uninterrupted": 0,
    "durable": 1,
    "lineage": 1,
    "livefiles": 6,
    "lean": 0,
    "quiet": 1,
    "context": 2,
    "catalog": 1,
    "readings": 1,
    "records": 1,
    "parsing": 1,
    "metrics": 0,
    "weightfiles": 1,
    "packing": 1,
    "remotecode": 2,
    "usercode": 1,
    "adapterfiles": 2,
    "formats": 2,
    "instrument": 2,
    "resolve": 2,
    "functional": 2,
    "ranks": 2,
    "corpus": 3,
    "transforms": 3,
    "attacks": 4,
    "methods": 4,
    "forecast": 5,
    "model": 5,
    "flow": 5,
    "ancestry": 6,
    "trainable": 6,
    "runtimes": 6,
    "lab": 2,
    "training": 7,
    "evaluate": 7,
    "testing": 8,
    "stages": 8,
    "foreign": 8,
    "score": 9,
    "report": 9,
    "estimate": 10,
    "handles": 10,
    "gate": 9,
    "sign": 10,
    "api": 11,
    "options": 1,
    "guard": 6,
    "verbs": 12,
    "cli_pipeline": 12,
    "pipeline": 13,
    "control": 10,
    "search": 11,
    "deletion": 13,
    "alternatives": 13,
    "tuning": 13,
    "cli_tune": 12,
    "cli_view": 12,
    "cli_forget": 14,
    "cli": 15,
    "__main__": 16,
}
# What a reader takes in at a sitting: some five screens of the 100 columns that a line may have.
MOST_LINES = 600
MOST_OF_A_FUNCTION = 100
ALLOWED_LATE = {
    "ranks.py": {"torch.distributed.fsdp"},
    "packing.py": {"gguf", "gguf.quants"},
    "evaluate/harness.py": None,
    "evaluate/vllm.py": {"vllm"},
    "model/adapter.py": {"peft"},
    "model/nf4.py": {"bitsandbytes"},
    "corpus/muse.py": {"datasets"},
    "corpus/hub.py": {"datasets"},
    "corpus/packed.py": {"pyarrow"},
    "corpus/tables.py": {"pyarrow", "pyarrow.parquet"},
    "corpus/documents.py": {"trafilatura", "pypdf"},
    "functional/text.py": {"rouge_score"},
    "functional/tofu.py": {"rouge_score", "scipy.stats"},
    "report/notebook.py": {"jinja2"},
    **{f"runtimes/{door}.py": None for door in ("oneshot", "bnb", "torchao", "hqq", "llamacpp")},
}

ROOT = SOURCE.parent.parent
TESTS = sorted((ROOT / "tests").glob("*.py"))
COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
# Nodes of the syntax tree on a line: the libraries that are pleasant to read have 4 to 5.
MEDIAN_OF_A_LINE = 7
# Nodes of the tests over those of the source.
SHARE_OF_TESTS = 0.8
MOST_ANY, MOST_IGNORED = 10, 10
MOST_STAYS = 4
IGNORES = "# type: " + "ignore"
CONTAINERS = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp
MAKERS = {"list", "dict", "set", "defaultdict", "Counter", "OrderedDict", "deque"}
CHANGES = {
    "append", "extend", "insert", "remove", "pop", "popitem", "clear", "update", "setdefault",
    "add", "discard", "sort", "reverse", "appendleft",
}  # fmt: skip
# What a process remembers after all, by its file.
REMEMBERED = {
    # An address with a password in it is used in this process and written nowhere.
    "_given": "secrecy.py",
}


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file; nobody changes one."""
    return ast.parse(path.read_text())


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of the tree, in the order of ``ast.walk``."""
    return tuple(ast.walk(parsed(path)))


@cache
def modules() -> list[Path]:
    return [p for p in SOURCE.rglob("*.py") if p.name != "__init__.py"]


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Names of remnant's own modules that a file imports at its top."""
    found = []
    for node in parsed(path).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("remnant"):
            found += [f"{node.module}.{a.name}" for a in node.names]
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    own = part_of(path)
    for name in imports(path):
        other = name.split(".")[1]
        if other in RANKS and other != own:
            assert RANKS[other] < RANKS[own], f"{path} imports {name}"


def test_every_part_has_its_place() -> None:
    assert {part_of(p) for p in modules()} - {"__init__"} == set(RANKS)


def test_there_is_no_import_cycle() -> None:
    known = {
        ".".join(["remnant", *p.relative_to(SOURCE).with_suffix("").parts]): p for p in modules()
    }
    edges: dict[str, set[str]] = {}
    for name, path in known.items():
        named = [f"{i}." for i in imports(path)]
        edges[name] = {k for k in known for i in named if i.startswith(f"{k}.")} - {name}
    done: set[str] = set()
    while ready := {n for n, needs in edges.items() if n not in done and needs <= done}:
        done |= ready
    assert set(edges) - done == set()


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_functions_import_nothing_but_through_the_known_doors(path: Path) -> None:
    late = [
        node
        for function in nodes_of(path)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    allowed = ALLOWED_LATE.get(path.relative_to(SOURCE).as_posix(), set())
    if allowed is not None:
        names = {n.names[0].name if isinstance(n, ast.Import) else str(n.module) for n in late}
        assert names <= allowed


def test_modules_of_the_shell_do_not_import_torch() -> None:
    shell = (
        "catalog", "context", "readings", "records", "resolve", "corpus", "methods",
        "functional.text", "functional.stats", "flow.plan", "flow.sweepfile", "flow.run",
        "flow.store", "flow.hands", "flow.cluster", "foreign", "evaluate.endpoint",
        "stages.audit", "report.table", "report.page", "score", "verbs", "cli",
    )  # fmt: skip
    checked = "\n".join(
        f"import remnant.{m}; assert 'torch' not in sys.modules, {m!r}" for m in shell
    )
    subprocess.run([sys.executable, "-c", f"import sys\n{checked}"], check=True)


def test_pure_arithmetic_imports_torch_and_nothing_heavier() -> None:
    parts = ", ".join(
        f"remnant.functional.{name}" for name in ("losses", "quantizers", "membership", "weights")
    )
    code = f"import sys, {parts}; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def public_functions(path: Path) -> list[ast.FunctionDef]:
    return [
        n
        for n in parsed(path).body
        if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")
    ]


@pytest.mark.parametrize("path", sorted((SOURCE / "functional").glob("*.py")), ids=lambda p: p.name)
def test_every_loss_quantizer_and_metric_names_its_source(path: Path) -> None:
    if path.name in ("losses.py", "quantizers.py", "membership.py"):
        for function in public_functions(path):
            assert (
                "ource" in (ast.get_docstring(function) or "")
                or "arXiv" in (ast.get_docstring(function) or "")
                or "bitsandbytes" in (ast.get_docstring(function) or "")
            ), function.name


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES
    for node in nodes_of(path):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < MOST_OF_A_FUNCTION, node.name


@pytest.mark.parametrize("name", ["methods_page", "models_page", "scale_table"])
def test_the_pages_that_are_made_are_up_to_date(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = SOURCE.parent.parent / "scripts" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--check"])
    monkeypatch.syspath_prepend(script.parent)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0, f"run: python scripts/{name}.py"


def comprehensions(nodes: Iterable[ast.AST]) -> list[ast.expr]:
    return [n for n in nodes if isinstance(n, COMPREHENSIONS)]


@pytest.mark.parametrize("path", [*modules(), *TESTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_comprehension_stands_inside_another(path: Path) -> None:
    nested = [
        outer.lineno
        for outer in comprehensions(nodes_of(path))
        if len(comprehensions(ast.walk(outer))) > 1
    ]
    assert not nested


@cache
def lines_of_nodes(path: Path) -> list[int]:
    """The line of every statement and expression of a file, docstrings left out."""
    nodes = [n for n in nodes_of(path) if isinstance(n, ast.stmt | ast.expr)]
    texts = [
        n
        for n in nodes
        if isinstance(n, ast.Expr)
        and isinstance(n.value, ast.Constant)
        and isinstance(n.value.value, str)
    ]
    left_out = {*map(id, texts), *(id(n.value) for n in texts)}
    return [n.lineno for n in nodes if id(n) not in left_out]


def test_half_of_all_lines_hold_few_nodes() -> None:
    """What a line holds is what a reader must hold at once, however short the lines are."""
    counts: list[int] = []
    for path in [*modules(), *TESTS]:
        counts += Counter(lines_of_nodes(path)).values()
    assert statistics.median(counts) < MEDIAN_OF_A_LINE


def test_tests_are_nearly_as_much_as_what_they_test() -> None:
    source = sum(len(lines_of_nodes(path)) for path in modules())
    tests = sum(len(lines_of_nodes(path)) for path in TESTS)
    assert tests >= SHARE_OF_TESTS * source


def containers(tree: ast.Module) -> set[str]:
    """The names at the top of a file that stand for lists, dictionaries and sets."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            value = node.value
            made = isinstance(value, ast.Call) and ast.unparse(value.func) in MAKERS
            if made or isinstance(value, CONTAINERS):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {t.id for t in targets if isinstance(t, ast.Name)}
    return found


def changed_in(tree: ast.AST) -> set[str]:
    """The last names of all that a file changes in place, or binds anew from within a function."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            found |= set(node.names)
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            found.add(ast.unparse(node.value))
        elif isinstance(node, ast.AugAssign):
            found.add(ast.unparse(node.target))
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in CHANGES
        ):
            found.add(ast.unparse(node.func.value))
    return {name.rpartition(".")[2] for name in found}


def test_no_module_remembers_anything() -> None:
    """What pieces of work share is handed from one to the next (``remnant.context``), and what is
    only read again is a cache of a pure function."""
    trees = {path: parsed(path) for path in modules()}
    tops = {path: containers(tree) for path, tree in trees.items()}
    changed = {path: changed_in(tree) for path, tree in trees.items()}
    own = [(name, path) for path, names in tops.items() for name in names]
    assert {(n, p.name) for n, p in own if n in changed[p]} == set(REMEMBERED.items())
    everywhere = set(chain(*changed.values()))
    assert not {n for n, _ in own if not n.startswith("_")} & everywhere


def test_the_device_is_found_out_in_one_place() -> None:
    asking = ("is_available()", "current_device(", "set_default_device(")
    texts = {p.name: p.read_text() for p in modules() if part_of(p) != "runtimes"}
    found = {name for call in asking for name, text in texts.items() if call in text}
    assert found == {"run.py"}


def calls(node: ast.AST) -> list[str]:
    """The functions that are called by their bare names, in the order of evaluation."""
    found = list(chain(*map(calls, ast.iter_child_nodes(node))))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        found.append(node.func.id)
    return found


def trip(path: Path) -> list[str]:
    """The rooms (modules) that a stage goes to from its own file, in order, each stay once."""
    tree = parsed(path)
    sources = [n for n in tree.body if isinstance(n, ast.ImportFrom)]
    room = {a.name: str(n.module) for n in sources for a in n.names if a.name[0].islower()}
    own = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}

    def rooms(name: str, inside: frozenset[str]) -> list[str]:
        found: list[str] = []
        for called in calls(own[name]):
            if called in own and called not in inside:
                found += rooms(called, inside | {called})
            elif room.get(called, "").startswith("remnant."):
                found.append(room[called])
        return found

    return [stay for stay, _ in groupby(rooms("run", frozenset({"run"})))]


@pytest.mark.parametrize("path", sorted((SOURCE / "stages").glob("*.py")), ids=lambda p: p.name)
def test_a_stage_goes_to_no_room_again_and_again(path: Path) -> None:
    """A room that is left and entered more often is two subjects, or part of the stage."""
    if hasattr(importlib.import_module(f"remnant.stages.{path.stem}"), "LEAVES"):
        assert max(Counter(trip(path)).values()) <= MOST_STAYS


def returns_of(path: Path) -> list[str]:
    """The public functions and methods of a file whose return type has ``Any`` in it."""
    tree = parsed(path)
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef)]
    bodies = chain(tree.body, *(c.body for c in classes))
    public = [n for n in bodies if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    typed = [(n.name, ast.unparse(n.returns)) for n in public if n.returns]
    return [f"{path.name}: {name}" for name, returned in typed if re.search(r"\bAny\b", returned)]


def test_few_public_functions_return_anything_at_all() -> None:
    found = list(chain(*(returns_of(p) for p in modules())))
    assert len(found) <= MOST_ANY, found


def test_few_types_are_ignored() -> None:
    """Outside the passes that numba compiles, whose arrays mypy does not know."""
    paths = [p for p in modules() if part_of(p) != "forecast"] + TESTS
    found = [p.name for p in paths for line in p.read_text().splitlines() if IGNORES in line]
    assert len(found) <= MOST_IGNORED, found


def catalogued() -> list[str]:
    """The "module:function" of every loss, metric, number and format but those of a library, which
    may not be there."""
    listed = {entry.path for entry in LOSSES.values()}
    listed |= {metric.path for metric in METRICS.values()}
    listed |= {number.function for metric in METRICS.values() for number in metric.reduce}
    listed |= {number.function for number in COMBINED}
    listed |= {form.path for form in FORMATS.values()}
    return sorted(path for path in listed if not path.startswith("remnant.runtimes."))


@pytest.mark.parametrize("path", catalogued())
def test_every_catalogued_function_shows_an_example(path: str) -> None:
    module, name = path.split(":")
    assert ">>>" in (getattr(importlib.import_module(module), name).__doc__ or "")
