"""From a name to a method: "npo" | "mine.py:function" | "package.module:function".

The positional parameters of the function say what it reads, the keyword-only ones what can be tuned. Both are read from its
source text, so that a plan is checked without importing torch or the user's code; the function itself is imported by ``load``.
"""

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from remnant.catalog import Entry, Metric
from remnant.errors import UserError, unknown

_TYPES: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool}


@dataclass(frozen=True)
class Method:
    """A function that has been found but not imported.

    ``identity`` is what distinguishes its results: the version of a built-in, the digest of a user's source.
    """

    use: str
    reads: tuple[str, ...]
    params: Mapping[str, Any]
    identity: str
    module: str
    function: str

    def load(self) -> Callable[..., Any]:
        """The function itself."""
        found = getattr(_import(self.module), self.function)
        if not callable(found):
            raise UserError(f"'{self.use}' is not a function.")
        return found  # type: ignore[no-any-return]


def resolve(
    kind: str, use: str, table: Mapping[str, Entry] | Mapping[str, Metric], readable: Collection[str], params: Mapping[str, Any]
) -> Method:
    """Find a method and check what it reads and how it is tuned.

    Raises:
        UserError: unknown name, file or function; a parameter it does not have or of a wrong type; a reading not on offer.
    """
    module, function, identity = _locate(kind, use, table)
    tree = _function(use, module, function)
    reads = tuple(arg.arg for arg in (*tree.args.posonlyargs, *tree.args.args))
    if unreadable := [name for name in reads if name not in readable]:
        raise UserError(
            f"The {kind} '{use}' reads '{unreadable[0]}', which is not on offer.", f"A {kind} may read: {', '.join(sorted(readable))}."
        )
    return Method(use, reads, _tuned(kind, use, tree, params), identity, module, function)


def _locate(kind: str, use: str, table: Mapping[str, Entry] | Mapping[str, Metric]) -> tuple[str, str, str]:
    if use in table:
        module, function = table[use].path.split(":")
        return module, function, f"{use}@{table[use].version}"
    if ":" not in use:
        raise unknown(kind, use, table)
    module, function = use.rsplit(":", 1)
    source = _source(use, module)
    return module, function, f"{function}@{hashlib.sha256(source.encode()).hexdigest()[:16]}"


def _source(use: str, module: str) -> str:
    if module.endswith(".py"):
        path = Path(module)
        if not path.is_file():
            raise UserError(f"'{use}' names the file {module}, which does not exist.", "Paths are relative to the current folder.")
    else:
        try:
            spec = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            spec = None
        if spec is None or not spec.origin:
            raise UserError(f"'{use}' names the module {module}, which is not installed.")
        path = Path(spec.origin)
    return path.read_text(encoding="utf-8")


def functions_of(path: str) -> list[str]:
    """Names of the public functions of a user's file, in order."""
    return [n.name for n in _parse(path, _source(path, path)).body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]


def _parse(use: str, source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise UserError(f"'{use}' is not valid Python: {error.msg} in line {error.lineno}.") from error


def _function(use: str, module: str, function: str) -> ast.FunctionDef:
    functions = {n.name: n for n in _parse(use, _source(use, module)).body if isinstance(n, ast.FunctionDef)}
    if function not in functions:
        raise unknown(f"function of {module}", function, functions)
    return functions[function]


def _tuned(kind: str, use: str, tree: ast.FunctionDef, params: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword-only parameters with the given values and the defaults, checked by their annotations."""
    fields: dict[str, Any] = {}
    for arg, default in zip(tree.args.kwonlyargs, tree.args.kw_defaults, strict=True):
        annotation = _TYPES.get(ast.unparse(arg.annotation), Any) if arg.annotation else Any
        fields[arg.arg] = (annotation, ast.literal_eval(default) if default is not None else ...)
    if foreign := [name for name in params if name not in fields]:
        raise unknown(f"parameter of {kind} '{use}'", foreign[0], fields)
    try:
        tuned = create_model("Params", __config__=ConfigDict(extra="forbid"), **fields)(**params)
    except ValidationError as error:
        fault = error.errors()[0]
        raise UserError(f"Parameter '{fault['loc'][0]}' of {kind} '{use}': {fault['msg'].lower()}.") from error
    return dict(tuned.model_dump())


def _import(module: str) -> Any:
    if not module.endswith(".py"):
        return importlib.import_module(module)
    path = Path(module).resolve()
    name = f"remnant_user_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded
