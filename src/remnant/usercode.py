"""A user's function, read from source text alone: nothing is imported and nothing runs.

Names are followed to where they are defined (``from .x import f``), defaults are worked out where
they are literals, names of literals or arithmetic on them, and annotations become types where they
are built of plain ones.
"""

import ast
import importlib.util
import operator
import sys
import tokenize
import types
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union

from remnant.errors import UserError, unknown

# Longest source that is read, and the longest chain of imports that is followed.
MOST_BYTES, MOST_STEPS = 5_000_000, 10
# Larger powers than this are not worked out.
MOST_POWER = 64

_PLAIN: dict[str, Any] = {
    "int": int, "float": float, "str": str, "bool": bool, "list": list, "tuple": tuple,
    "dict": dict, "set": set, "None": None, "Any": Any,
    "List": list, "Tuple": tuple, "Dict": dict, "Sequence": list, "object": Any,
}  # fmt: skip
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_CONSTANTS = {
    "math.pi": 3.141592653589793,
    "math.e": 2.718281828459045,
    "math.inf": float("inf"),
    "math.tau": 6.283185307179586,
}


class Unreadable(Exception):
    """An expression whose value only running the file would tell."""


class Found(NamedTuple):
    """A function: its tree, what the names of its module stand for, and all sources that were read
    to find it.
    """

    tree: ast.FunctionDef
    names: Mapping[str, ast.expr]
    sources: tuple[str, ...]


def find(use: str, module: str, function: str) -> Found:
    """The function of a module or file, followed through imports to its definition.

    Args:
        use: as the user wrote it, for messages.
        module: a file that ends in .py, or a dotted name.
        function: its name there.

    Raises:
        UserError: nothing there can be read, or the name is no plain function.
    """
    path, sources = path_of(use, module), []
    for _ in range(MOST_STEPS):
        sources.append(source_of(use, path))
        tree = parsed(use, sources[-1])
        node = _definition(tree, function)
        if isinstance(node, ast.FunctionDef):
            _check_plain(use, node)
            return Found(node, _assigned(tree), tuple(sources))
        if not isinstance(node, ast.ImportFrom):
            raise _no_function(use, module, function, tree, node)
        path, function = _followed(use, path, node, function)
    raise UserError(
        f"'{use}' is imported through more than {MOST_STEPS} files.",
        "Name the file that defines it.",
    )


def tree_of(use: str, path: Path) -> ast.Module:
    """The syntax tree of a file; raises UserError where it cannot be read."""
    return parsed(use, source_of(use, path))


def functions_in(tree: ast.Module) -> list[str]:
    """Names of the public functions at the top of a file, in order."""
    return [
        n.name for n in tree.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")
    ]


def path_of(use: str, module: str) -> Path:
    """The source file of a module, found by looking along the import path: importing a parent
    package would run it.

    Raises:
        UserError: there is none, or no source of it.
    """
    if module.endswith(".py"):
        if not module.isprintable() or len(module) > 4000:
            raise UserError(f"'{use[:80]!a}' names no file.")
        if not Path(module).exists():
            raise UserError(
                f"'{use}' names the file {module}, which does not exist.",
                "Paths are relative to the current folder.",
            )
        if not Path(module).is_file():
            raise UserError(
                f"'{use}' names {module}, which is no file.", "Name a file with Python in it."
            )
        return Path(module)
    parts = module.split(".")
    if not all(p.isidentifier() for p in parts):
        raise UserError(
            f"'{use}' names neither a file that ends in .py nor a module.",
            "Write mine.py:function or package.module:function.",
        )
    for place in _homes(parts):
        if found := _source_file(place, parts[-1]):
            return found
        if any(place.glob(f"{parts[-1]}.*.so")) or (place / f"{parts[-1]}.so").is_file():
            raise UserError(
                f"The module {module} of '{use}' is compiled and has no source to read.",
                "Wrap it in a Python function.",
            )
    raise UserError(
        f"'{use}' names the module {module}, which is not installed.",
        "Install it, or name a file that ends in .py.",
    )


def _homes(parts: list[str]) -> list[Path]:
    """The folders in which the last part of a dotted name may lie, first on the import path
    first.
    """
    if len(parts) == 1:
        return [Path(p) for p in sys.path if p]
    try:
        # Finding a name without a dot imports nothing.
        top = importlib.util.find_spec(parts[0])
    except (ImportError, ValueError):
        top = None
    return [
        Path(p).joinpath(*parts[1:-1])
        for p in (top.submodule_search_locations or () if top else ())
    ]


def _source_file(place: Path, name: str) -> Path | None:
    return next(
        (p for p in (place / name / "__init__.py", place / f"{name}.py") if p.is_file()), None
    )


def source_of(use: str, path: Path) -> str:
    """The text of a Python file in the encoding that it declares.

    Raises UserError where it cannot be read.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(
                f"{path} of '{use}' is longer than {MOST_BYTES} bytes.",
                "Put the function into a file of its own.",
            )
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise UserError(
            f"{path} of '{use}' is not text in the encoding that it declares ({error}).",
            "Save it as UTF-8.",
        ) from error
    except OSError as error:
        raise UserError(f"{path} of '{use}' cannot be read ({error.strerror or error}).") from error


def parsed(use: str, source: str) -> ast.Module:
    """The syntax tree of a text; raises UserError where it is not valid Python."""
    try:
        return _tree(source)
    except SyntaxError as error:
        raise UserError(
            f"'{use}' is not valid Python: {error.msg} in line {error.lineno}."
        ) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(
            f"'{use}' is not valid Python: {str(error) or 'it is nested too deeply'}."
        ) from error


# A sweep resolves the same few files for each of its thousands of pieces.
@lru_cache(maxsize=256)
def _tree(source: str) -> ast.Module:
    return ast.parse(source)


def literal(node: ast.expr, names: Mapping[str, ast.expr], depth: int = 0) -> object:
    """The value of an expression made of literals, names of literals and arithmetic.

    Raises:
        Unreadable: it is made of something else.
    """
    if depth > 50:
        raise Unreadable("it refers to itself")

    def inner(part: ast.expr) -> Any:
        return literal(part, names, depth + 1)

    match node:
        case ast.Constant():
            return node.value
        case ast.Name(id=name) if name in names:
            return inner(names[name])
        case ast.Attribute() if ast.unparse(node) in _CONSTANTS:
            return _CONSTANTS[ast.unparse(node)]
        case ast.UnaryOp() | ast.BinOp():
            return _arithmetic(node, inner)
        case ast.Tuple() | ast.List() | ast.Set():
            made: Callable[[list[Any]], Any] = {ast.Tuple: tuple, ast.List: list, ast.Set: set}[
                type(node)
            ]
            return made([inner(e) for e in node.elts])
        case ast.Dict() if all(node.keys):
            return {inner(k): inner(v) for k, v in zip(node.keys, node.values, strict=True) if k}
        case ast.Call(
            func=ast.Name(id=("float" | "int" | "str" | "tuple" | "frozenset") as kind),
            args=args,
            keywords=[],
        ) if len(args) < 2:
            return _called(kind, [inner(a) for a in args])
    raise Unreadable(ast.unparse(node)[:60])


def _called(kind: str, args: list[Any]) -> Any:
    try:
        return {"float": float, "int": int, "str": str, "tuple": tuple, "frozenset": frozenset}[
            kind
        ](*args)
    except (TypeError, ValueError) as error:
        raise Unreadable(str(error)) from error


def _arithmetic(node: ast.UnaryOp | ast.BinOp, inner: Callable[[ast.expr], Any]) -> Any:
    try:
        if isinstance(node, ast.UnaryOp):
            value = inner(node.operand)
            signs: dict[type[ast.unaryop], Callable[[Any], Any]] = {
                ast.USub: operator.neg,
                ast.UAdd: operator.pos,
                ast.Not: operator.not_,
            }
            return signs[type(node.op)](value)
        left, right = inner(node.left), inner(node.right)
        if not all(isinstance(v, int | float) for v in (left, right)) or (
            isinstance(node.op, ast.Pow) and abs(right) > MOST_POWER
        ):
            raise Unreadable(ast.unparse(node)[:60])
        return _BINARY[type(node.op)](left, right)
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"{ast.unparse(node)[:60]}: {error}") from error


def annotation_of(node: ast.expr | None, names: Mapping[str, ast.expr], depth: int = 0) -> object:
    """The type that an annotation stands for: plain types, lists, tuples, dicts, unions and
    ``Literal``; ``Any`` for all others.
    """
    if node is None or depth > 20:
        return Any

    def inner(part: ast.expr) -> Any:
        return annotation_of(part, names, depth + 1)

    match node:
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=str() as text):
            try:
                return inner(ast.parse(text, mode="eval").body)
            except SyntaxError:
                return Any
        case ast.Name(id=name):
            return (
                _PLAIN.get(name) if name in _PLAIN else inner(names[name]) if name in names else Any
            )
        case ast.Attribute(attr=name):
            return _PLAIN.get(name, Any)
        case ast.BinOp(op=ast.BitOr()):
            return Union[inner(node.left), inner(node.right)]  # noqa: UP007 built from parts
        case ast.Subscript():
            return _subscripted(node, inner, names)
    return Any


def _subscripted(
    node: ast.Subscript, inner: Callable[[ast.expr], Any], names: Mapping[str, ast.expr]
) -> Any:
    kind = ast.unparse(node.value).rpartition(".")[2]
    parts = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    if kind == "Literal":
        return Literal[tuple(literal(p, names) for p in parts)]
    if kind == "Optional":
        return Union[inner(parts[0]), None]  # noqa: UP007 built from parts
    if kind == "Union":
        return Union[tuple(inner(p) for p in parts)]  # noqa: UP007 built from parts
    if kind in ("Annotated", "Final"):
        return inner(parts[0])
    if (plain := _PLAIN.get(kind)) in (list, tuple, dict, set):
        made = tuple(
            ... if isinstance(p, ast.Constant) and p.value is ... else inner(p) for p in parts
        )
        return types.GenericAlias(plain, made)
    return Any


def _definition(tree: ast.Module, name: str) -> ast.stmt | None:
    """The last statement at the top of a file that gives a name its meaning."""
    found: ast.stmt | None = None
    for node in _statements(tree.body):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found = node if node.name == name else found
            case ast.ImportFrom() | ast.Import():
                found = node if any((a.asname or a.name) == name for a in node.names) else found
            case ast.Assign():
                found = (
                    node
                    if any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
                    else found
                )
    return found


def _statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of a file with those under ``try`` and ``if`` among them."""
    found: list[ast.stmt] = []
    for node in body:
        found.append(node)
        if isinstance(node, ast.If | ast.Try):
            found += _statements(node.body)
            found += (
                []
                if any(isinstance(n, ast.FunctionDef | ast.ImportFrom) for n in node.body)
                else _statements(node.orelse)
            )
    return found


@lru_cache(maxsize=256)
def _assigned(tree: ast.Module) -> Mapping[str, ast.expr]:
    """Names at the top of a file that are given one value, once."""
    found: dict[str, ast.expr] = {}
    twice: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.AugAssign | ast.For) and isinstance(node.target, ast.Name):
            twice.add(node.target.id)
        if isinstance(node, ast.Global):
            twice.update(node.names)
    for node in tree.body:
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else []
        )
        for target in targets:
            if isinstance(target, ast.Name) and (value := getattr(node, "value", None)) is not None:
                twice |= {target.id} & found.keys()
                found[target.id] = value
    return {name: value for name, value in found.items() if name not in twice}


def _check_plain(use: str, node: ast.FunctionDef) -> None:
    if node.decorator_list:
        raise UserError(
            (
                f"'{use}' has the decorator @{ast.unparse(node.decorator_list[0])[:40]}, behind "
                "which its parameters cannot be read."
            ),
            "Take it off, or call the decorated function from a plain one.",
        )


def _no_function(
    use: str, module: str, function: str, tree: ast.Module, node: ast.stmt | None
) -> UserError:
    remedy = "Write a plain function with def."
    if isinstance(node, ast.AsyncFunctionDef):
        return UserError(f"'{use}' is an async function.", remedy)
    if isinstance(node, ast.ClassDef):
        return UserError(f"'{use}' is a class, not a function.", remedy)
    if isinstance(node, ast.Assign | ast.Import):
        return UserError(
            f"'{use}' is not defined by def in {module}, but in line {node.lineno} otherwise.",
            remedy,
        )
    known = functions_in(tree)
    if not known:
        return UserError(f"{module} holds no function, so no '{function}'.", remedy)
    return unknown(f"function of {module}", function, known)


def _followed(use: str, path: Path, node: ast.ImportFrom, name: str) -> tuple[Path, str]:
    """The file that a name is imported from, and its name there."""
    theirs = next(a.name for a in node.names if (a.asname or a.name) == name)
    if not node.level:
        return path_of(use, str(node.module)), theirs
    home = path.parent
    for _ in range(node.level - 1):
        home = home.parent
    *folders, last = (node.module or "").split(".")
    found = (
        _source_file(home.joinpath(*folders), last)
        if last
        else _source_file(home.parent, home.name)
    )
    if found is None:
        raise UserError(
            (
                f"'{use}' is imported from '{'.' * node.level}{node.module or ''}', which is not "
                f"beside {path}."
            ),
            "Name its file.",
        )
    return found, theirs
